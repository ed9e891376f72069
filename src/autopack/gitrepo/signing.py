"""Signatures as git's `gpg.format=ssh` makes them, with the operator's key."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from ..config import Settings
from ..domain.signatures import fingerprint, signing_options
from ..domain.statement import Signature
from .errors import RepositoryUnusableError

logger = structlog.get_logger(__name__)

SETTING = Settings.variable("signing_key")


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs with one SSH key. Has no state, so any number of threads may share it."""

    executable: str
    key: Path
    timeout_seconds: float

    @classmethod
    def open(cls, settings: Settings) -> Signer | None:
        """Return the signer; None without a signing key.

        Signs once to check the key. Raises RepositoryUnusableError.
        """
        if settings.signing_key is None:
            return None
        executable = shutil.which("ssh-keygen")
        if executable is None:
            raise RepositoryUnusableError(f"{SETTING}: ssh-keygen is not installed.")
        signer = cls(executable, settings.signing_key, settings.git_timeout_seconds)
        signer.sign(b"")
        return signer

    def sign(self, payload: bytes) -> str:
        """Return the armoured signature. Raises RepositoryUnusableError."""
        try:
            done = subprocess.run(
                [self.executable, "-Y", "sign", "-n", "git", "-f", str(self.key)],
                input=payload,
                capture_output=True,
                check=False,
                timeout=self.timeout_seconds,
                # No person is there to enter a passphrase.
                env={"PATH": os.defpath, "HOME": os.devnull, "SSH_ASKPASS_REQUIRE": "never"},
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise RepositoryUnusableError(
                f"{SETTING}: ssh-keygen took longer than {self.timeout_seconds:g} seconds."
            ) from None
        if done.returncode != 0:
            words = done.stderr.decode(errors="backslashreplace").split("\n")
            reason = next((line for line in reversed(words) if line.strip()), "no reason given")
            raise RepositoryUnusableError(
                f"{SETTING}: {self.key} cannot sign: {reason.strip()[:500]}. It must be the file"
                " of a private SSH key without a passphrase, readable only by the service."
            )
        return done.stdout.decode()

    def sign_raw(self, payload: bytes) -> Signature | None:
        """Return a raw signature, as DSSE has it; None for a key that cannot make one.

        Such are keys of a security key, whose private part is in the device.
        """
        try:
            data = self.key.read_bytes()
            load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
            private: Any = load(data, password=None)
            public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            options = signing_options(public.split()[0].decode())
            return Signature(fingerprint(public), private.sign(payload, *options))
        except (AttributeError, OSError, TypeError, UnsupportedAlgorithm, ValueError) as error:
            logger.warning("statement_not_signed", why=type(error).__name__)
            return None

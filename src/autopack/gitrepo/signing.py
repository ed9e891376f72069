"""Signatures as git's `gpg.format=ssh` makes them, with the operator's key."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..config import Settings
from .errors import RepositoryUnusableError

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

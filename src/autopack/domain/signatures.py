"""Raw signatures by SSH keys, as DSSE has them, checked where Python's `cryptography` is at hand.

The checker needs the standard library alone, which has no public-key cryptography. So the package
is looked for when it is needed; without it a statement's signature is told as not checked. The
record's own signature, which `ssh-keygen` checks, covers the statement too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Final

_KEY_TYPES: Final = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384")
_PACKAGE: Final = "cryptography.hazmat.primitives"


def can_check() -> bool:
    """Tell whether signatures can be checked here."""
    return importlib.util.find_spec("cryptography") is not None


def allowed_keys(allowed_signers: bytes) -> Iterator[bytes]:
    """Yield the keys of a file in the format of `ssh-keygen`, each as `<type> <base64>`."""
    for line in allowed_signers.decode("utf-8", "replace").splitlines():
        words = line.split()
        if line.startswith("#") or "cert-authority" in line:
            continue
        for place, word in enumerate(words[:-1]):
            if word in _KEY_TYPES:
                yield f"{word} {words[place + 1]}".encode()
                break


def fingerprint(key: bytes) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` shows it; an unreadable key has none."""
    try:
        data = base64.b64decode(key.split()[1], validate=True)
    except (binascii.Error, IndexError):
        return ""
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def is_signed_by(key: bytes, signature: bytes, data: bytes) -> bool:
    """Check a raw signature by a key `<type> <base64>`; needs `can_check`."""
    load = importlib.import_module(f"{_PACKAGE}.serialization").load_ssh_public_key
    invalid = importlib.import_module("cryptography.exceptions").InvalidSignature
    unsupported = importlib.import_module("cryptography.exceptions").UnsupportedAlgorithm
    try:
        public: Any = load(key)
        public.verify(signature, data, *signing_options(key.split()[0].decode()))
    except (invalid, unsupported, ValueError):
        return False
    return True


def signing_options(key_type: str) -> tuple[Any, ...]:
    """Return how a key of a type signs, as arguments of `sign` and `verify`."""
    if key_type == "ssh-ed25519":
        return ()
    hashes = importlib.import_module(f"{_PACKAGE}.hashes")
    if key_type.startswith("ecdsa-"):
        digest = hashes.SHA384() if key_type.endswith("384") else hashes.SHA256()
        return (importlib.import_module(f"{_PACKAGE}.asymmetric.ec").ECDSA(digest),)
    padding = importlib.import_module(f"{_PACKAGE}.asymmetric.padding")
    digest = hashes.SHA256()
    return (padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size), digest)

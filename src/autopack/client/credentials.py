"""The API key of a client: from the environment or a file of its own, never from an argument.

In this order: AUTOPACK_API_KEY, the file that AUTOPACK_API_KEY_FILE names, what `autopack login`
stored for the service's address, the file that the operator's settings name for it. Files must be
readable by their owner alone.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from .errors import ClientError
from .operator_file import operator_folder, read_operator_settings

VARIABLE: Final = "AUTOPACK_API_KEY"
FILE_VARIABLE: Final = "AUTOPACK_API_KEY_FILE"
_MAX_FILE_BYTES: Final = 1_000_000


def find_key(address: str) -> str | None:
    """Return the key for the service at an address, or None. Raises ClientError."""
    given = os.environ.get(VARIABLE)
    if given:
        return usable_key(given, VARIABLE)
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return _key_in(named, FILE_VARIABLE)
    stored = _stored().get(address)
    if stored is not None:
        return usable_key(stored, str(login_file()))
    ours = read_operator_settings()
    if ours.api_key_file is None or ours.url is None or ours.url.rstrip("/") != address:
        return None
    return _key_in(ours.api_key_file, "api_key_file")


def _key_in(name: str, source: str) -> str:
    text = _private_text(Path(name).expanduser())
    if text is None:
        raise ClientError(f"{source} ({name!r}): there is no such file")
    return usable_key(text.strip(), name)


def login_file() -> Path:
    """Return the file in which `autopack login` stores keys."""
    return operator_folder() / "keys.json"


def store_key(address: str, key: str | None) -> bool:
    """Store the key for an address, or remove it (None). Returns whether something changed.

    Raises ClientError.
    """
    keys = _stored()
    if keys.get(address) == key:
        return False
    if key is None:
        del keys[address]
    else:
        keys[address] = usable_key(key, "the key")
    file = login_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made with mode 600, and put in place whole: at no time can another user read it.
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".keys-")
        with os.fdopen(descriptor, "w") as written:
            json.dump(keys, written, indent=2)
        os.replace(temporary, file)
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from error
    return True


def _stored() -> dict[str, str]:
    file = login_file()
    text = _private_text(file)
    if text is None:
        return {}
    try:
        keys = json.loads(text)
    except ValueError:
        keys = None
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise ClientError(f"{file} is not what `autopack login` writes: remove it, and log in")
    return keys


def _private_text(file: Path) -> str | None:
    """Return a file's text, None where there is none. Raises ClientError for one of mode 644."""
    try:
        with file.open("rb") as opened:
            found = os.fstat(opened.fileno())
            if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (os.geteuid(), 0):
                raise ClientError(f"{file} holds a key, and others may read it: chmod 600 {file}")
            return opened.read(_MAX_FILE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from error


def usable_key(key: str, source: str) -> str:
    """Return a key that a header may carry. Raises ClientError."""
    if not key or not (key.isascii() and key.isprintable()):
        raise ClientError(f"{source} has no key, or a character that a header must not have.")
    return key

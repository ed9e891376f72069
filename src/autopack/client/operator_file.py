"""The operator's own settings of the client: `autopack.toml` beside the stored keys.

It is in the operator's configuration folder, never in a repository: an author of a commit could
otherwise lead the client, with its key, to another service.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from .errors import ClientError

NAME: Final = "autopack.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """`api_key_file` is only used for the service at `url`."""

    url: str | None = None
    api_key_file: str | None = None


def operator_folder() -> Path:
    """Return the folder of this user's settings of Autopack."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "autopack"


def read_operator_settings() -> OperatorSettings:
    """Read the file; without one nothing is set. Raises ClientError that names file and field."""
    file = operator_folder() / NAME
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return OperatorSettings()
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClientError(f"{file} is not TOML: {error}") from error
    known = [field.name for field in fields(OperatorSettings)]
    for name, value in document.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ClientError(f"{file}: {name!r} is not a setting; the nearest known one is {near}")
        if not isinstance(value, str) or not value:
            raise ClientError(f"{file}: {name} must be a text")
    return OperatorSettings(**document)

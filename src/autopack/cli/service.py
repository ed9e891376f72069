"""What commands need that call the service: a client, files to send, which project it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..client import ApiError, Autopack, ClientError, UnreachableError
from ..client.connection import PROJECT_VARIABLE
from ..client.documents import DocumentError, parse_document
from .command import UNAVAILABLE, WRONG_USE, CommandError
from .terminal import chosen_project


@contextmanager
def asking(
    url: str | None,
    *,
    retries: int = 0,
    api_key: str | None = None,
    project: str | None = None,
) -> Iterator[Autopack]:
    """Open a client; turn its errors into CommandError.

    `project` is that of `autopack --project` when it is not given, "" the default one.
    """
    project = chosen_project() if project is None else project
    try:
        with Autopack(url, api_key=api_key, project=project, retries=retries) as client:
            yield client
    except ClientError as error:
        raise CommandError(str(error), _exit_code(error)) from error


def read_document(file: Path) -> dict[str, Any]:
    """Read a JSON or YAML file. Raises CommandError."""
    try:
        return parse_document(file.read_bytes().decode())
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file} is not UTF-8") from error
    except DocumentError as error:
        raise CommandError(f"{file} {error}") from error


def _exit_code(error: ClientError) -> int:
    """Return an error's exit code: a refusal is wrong use, a failing service is unavailable."""
    if isinstance(error, ApiError):
        is_ill = error.status >= 500 or error.code == "unreadable_answer"
        return UNAVAILABLE if is_ill else WRONG_USE
    return UNAVAILABLE if isinstance(error, UnreachableError) else WRONG_USE


def wanted_project(project: str | None = None) -> str | None:
    """Return which project a command beside the database is about; None: the default one.

    It is the given one, else that of `autopack --project`, else that of AUTOPACK_PROJECT.
    """
    project = chosen_project() if project is None else project
    return (os.environ.get(PROJECT_VARIABLE) if project is None else project) or None

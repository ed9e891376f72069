"""The errors of a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """A call failed. The message is one line that says why, or what to do."""


class ApiError(ClientError):
    """The service answered with a refusal, or with an answer that cannot be read.

    `problem` is the whole problem document (RFC 9457); `code` is stable, `detail` for people.
    """

    def __init__(self, status: int, code: str, detail: str, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{detail} ({code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.problem = problem


class UnreachableError(ClientError):
    """The service did not answer."""

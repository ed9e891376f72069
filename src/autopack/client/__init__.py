"""The client of the HTTP API."""

from __future__ import annotations

from .autopack import Autopack
from .errors import ApiError, ClientError, UnreachableError

__all__ = ["ApiError", "Autopack", "ClientError", "UnreachableError"]

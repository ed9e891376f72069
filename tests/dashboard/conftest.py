"""The dashboard over the real application: with a key that is asked for, and without."""

from __future__ import annotations

from tests.api.conftest import agents, api

__all__ = ["agents", "api"]

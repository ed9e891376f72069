"""This machine's runner of CI commands."""

from __future__ import annotations

from functools import lru_cache

from ..ci import CheckRunner
from ..config import Settings


@lru_cache(maxsize=8)
def checks_of(settings: Settings) -> CheckRunner:
    """Return this machine's runner of CI commands; created once, at the first call."""
    return CheckRunner(settings)

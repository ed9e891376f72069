"""The files that mirror runs for people: the only code that writes under AUTONOMOUS_RUNS_DIR."""

from .files import MirrorUnusableError
from .mirror import Mirror

__all__ = ["Mirror", "MirrorUnusableError"]

"""The files that mirror runs for people: the only code that writes under AUTONOMOUS_RUNS_DIR."""

from .files import MirrorUnusableError
from .mirror import Mirror
from .pull_request import PullRequest, pull_request

__all__ = ["Mirror", "MirrorUnusableError", "PullRequest", "pull_request"]

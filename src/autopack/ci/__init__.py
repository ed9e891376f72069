"""CI commands: the only code that runs a project's own code."""

from .checks import CheckRunner, CommandOutcome, Job, StoppedError, environment_for
from .tools import tools_hash

__all__ = ["CheckRunner", "CommandOutcome", "Job", "StoppedError", "environment_for", "tools_hash"]

"""CI commands: the only code that runs a project's own code."""

from .checks import CheckRunner, Job, Outcome, StoppedError, environment_for
from .tools import tools_hash

__all__ = ["CheckRunner", "Job", "Outcome", "StoppedError", "environment_for", "tools_hash"]

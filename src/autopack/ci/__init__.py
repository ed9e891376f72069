"""CI commands: the only code that runs a project's own code."""

from .checks import CheckRunner, Job, Outcome, StoppedError, environment_for

__all__ = ["CheckRunner", "Job", "Outcome", "StoppedError", "environment_for"]

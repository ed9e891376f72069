"""Set up a project's repository: the gate, the checker, the workflows, a ruleset."""

from .checks import Checks, find_checks
from .project import Action, SetUp, SetUpError, set_up

__all__ = ["Action", "Checks", "SetUp", "SetUpError", "find_checks", "set_up"]

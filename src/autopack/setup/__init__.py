"""Set up a project's repository: the preflight gate, the checker, the workflows, a ruleset."""

from .checks import Checks, find_checks, hidden_packages
from .project import Action, SetUp, SetUpError, set_up
from .unit import unit_here

__all__ = [
    "Action",
    "Checks",
    "SetUp",
    "SetUpError",
    "find_checks",
    "hidden_packages",
    "set_up",
    "unit_here",
]

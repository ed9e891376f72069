"""Runs a function in processes that die within it, one after each of its calls."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType
from typing import Final

import pytest

_OUTSIDE = {"posix", "fcntl", "_io", "io", "_posixsubprocess", "_socket", "psycopg2.extensions"}


#: Of a test that is killed after each call, and of its part that runs with all tests.
EACH_CALL: Final = pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.campaigns), 7]
)


def killed_after_calls(function: Callable[[], object], every: int = 1) -> Iterator[int]:
    """Run a function in processes that kill themselves after 0, 1, 2 ... times `every` calls.

    These are calls of the system. Yields their number after each death, and at last, when none has
    died, one that is not smaller than that of all calls.
    """
    for calls in count(step=every):
        child = os.fork()
        if not child:
            status = 1
            try:
                _die_after(calls)
                function()
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        yield calls
        if status == 0:
            assert calls > 0, "it does nothing that could be cut short"
            return


def is_outside(function: object) -> bool:
    """Tell whether what a function of C does is seen outside of its process."""
    owner = type(getattr(function, "__self__", None))
    return not _OUTSIDE.isdisjoint((getattr(function, "__module__", None), owner.__module__))


def _die_after(calls: int) -> None:
    left = iter(range(calls))

    def step(frame: FrameType, event: str, function: object) -> None:
        if event == "c_return" and is_outside(function) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(step)

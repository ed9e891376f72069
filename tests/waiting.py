"""Waiting for what other threads and processes do: for a state, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

# Far beyond what a test needs, as a machine that is busy may stand still.
PATIENCE_SECONDS = 240


def wait_until(find: Callable[[], Found | None], explain: Callable[[], str] = str) -> Found:
    """Look every 10 ms until there is something, and return it. Fails with an explanation.

    What can never come any more is for `find` to say, by an assertion.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := find()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.01)
    return found

"""Accounts without capacity: how a lack of capacity is recognized, and how long to pause.

An account pauses for all commands that share it. (docs/worker.md, Capacity)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from .agents import Agent, is_agents_own_limit
from .report import Ended, last_line

EXIT_TEMPORARY: Final = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_NOT_STARTED: Final = (126, 127)  # a shell's exit codes for a program that it cannot run
INSTANT_SECONDS: Final = 10.0
PAUSES: Final = (10.0, 60.0, 300.0)
MAX_IN_A_ROW: Final = 3


class WorkerError(Exception):
    """The worker cannot work. The message is one line that says why."""


def why_unavailable(
    ended: Ended, messages: tuple[str, ...], *, has_answer: bool, hides_failure: bool = False
) -> str | None:
    """Return why an agent could not work; None: it could, and its result counts.

    `messages` are parts of lines that this agent prints in such a case. An agent that fails at
    once, without a change and without an answer, did not start its work: it is not logged in, or
    its options are wrong. `hides_failure`: it may have failed in spite of exit code 0.
    """
    if ended.failure is not None or ended.exit_code is None:
        return None
    if ended.exit_code == 0:
        has_result = bool(ended.patch) or has_answer or not hides_failure
        return None if has_result else is_agents_own_limit(messages, ended.stdout, ended.stderr)
    said = last_line(ended)
    if ended.exit_code == EXIT_TEMPORARY:
        return f"it ended with exit code {EXIT_TEMPORARY}{said}"
    line = is_agents_own_limit(messages, ended.stdout, ended.stderr)
    if line is not None:
        return line
    if ended.patch or has_answer:
        return None
    if ended.exit_code in EXIT_NOT_STARTED or ended.seconds < INSTANT_SECONDS:
        return f"it ended at once with exit code {ended.exit_code}{said}"
    return None


class Cooling:
    """The accounts that pause, until when, and how often in a row they had no capacity."""

    def __init__(
        self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._until: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def able(self, agent: Agent) -> Agent | None:
        """Return the agent if its account has capacity, else its fallback, else None."""
        now = self._clock()
        if self._until.get(_key(agent), 0.0) <= now:
            return agent
        return self.able(agent.fallback) if agent.fallback is not None else None

    def rest(self, agent: Agent, reason: str) -> float:
        """Pause the agent's account, longer each time in a row; return the seconds."""
        key = _key(agent)
        times = self._in_a_row.get(key, 0)
        self._in_a_row[key] = times + 1
        self._reasons[key] = reason
        pause = PAUSES[min(times, len(PAUSES) - 1)]
        self._until[key] = self._clock() + pause
        instead = f"; {agent.fallback.name} works instead" if agent.fallback else ""
        self._tell(f"{agent.name} could not work, pauses {pause:g} s{instead}: {reason}")
        return pause

    def rest_until(self, agent: Agent, moment: datetime) -> None:
        """Pause the agent's account until the time when it says that it can work again."""
        seconds = (moment - datetime.now(UTC)).total_seconds()
        self._until[_key(agent)] = self._clock() + max(0.0, seconds)

    def has_worked(self, agent: Agent) -> None:
        """Reset an account's failures in a row: its agent has worked."""
        self._in_a_row.pop(_key(agent), None)

    def require_patience(self, agent: Agent) -> None:
        """Raise WorkerError when an agent without fallback failed at once MAX_IN_A_ROW times."""
        key = _key(agent)
        reason = self._reasons.get(key, "")
        is_instant = reason.startswith("it ended at once")
        if is_instant and self._in_a_row.get(key, 0) >= MAX_IN_A_ROW and agent.fallback is None:
            raise WorkerError(f"{agent.name} could not work {MAX_IN_A_ROW} times: {reason}")


def _key(agent: Agent) -> str:
    return agent.account or agent.name

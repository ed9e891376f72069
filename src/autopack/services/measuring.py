"""The outcome of CI's command on a tree: kept if it was measured before, else measured now.

A verdict is on a commit and has a record; a measurement only serves evidence. (rules §6.1)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from ..ci import CommandOutcome, Job, environment_for, tools_hash
from ..domain.errors import AutopackError
from ..domain.events import canonical_json
from ..domain.evidence_rules import CaseState, Measured, merged
from ..domain.ruleset import CiCommand
from ..domain.terms import CiProfile, Verdict
from ..gitrepo.checkout import Checkout, checked_out
from ..gitrepo.workspace import TreeEntry, Workspace, WorkspaceError
from ..store import measurements
from .context import AppContext
from .rebuilding import require_commit
from .runners import checks_of

_FORMAT: Final = 1  # of what is kept: a change makes other keys

Changes = Mapping[str, TreeEntry | None]


class OverBudgetError(Exception):
    """The time for this kind of evidence is over. The message is a line for its entry."""


class NotMeasurableError(Exception):
    """The environment failed: CI has no verdict now. The message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The command to run, and for which run and phase; they do not change its outcome."""

    run_id: str
    phase_id: str
    branch: str
    profile: CiProfile
    rules: CiCommand


@dataclass(slots=True)
class TimeLimit:
    """A time until which something may be measured."""

    why: str  # a line for the entry of what was not measured
    at: float  # by the monotonic clock

    @classmethod
    def of(cls, seconds: float, whose: str) -> TimeLimit:
        return cls(f"over {whose} of {seconds:.0f} seconds", time.monotonic() + seconds)

    @property
    def left(self) -> float:
        return self.at - time.monotonic()


class Bench:
    """Measures trees for one run, within limits of time; each command has its own limit too.

    What was kept costs nothing. A repeat of a red measurement does not count for `own`, the limit
    of everything that is asked of this bench; `shared` is one of several benches, and is hard.
    """

    def __init__(
        self,
        context: AppContext,
        question: Question,
        should_stop: Callable[[], bool],
        *,
        own: TimeLimit | None = None,
        shared: TimeLimit | None = None,
    ) -> None:
        self._context = context
        self._question = question
        self._should_stop = should_stop
        self._own = own
        self._limits = [limit for limit in (own, shared) if limit is not None]

    def measure(self, commit: str) -> Measured:
        """Return the outcome on a commit's tree.

        A red outcome is repeated as often as the profile says, so that a flaky test speaks against
        no change. Raises OverBudgetError, NotMeasurableError, StoppedError.
        """
        repository = self._context.repository
        if repository.has_commit(commit):
            kept = self._find(repository.tree_of(commit))
            if kept is not None:
                return kept
        found = self._measure(commit, lambda _: {}, self._question.rules.retries)
        assert found is not None  # noqa: S101 - for the type checker: the change gives `{}`
        return found

    def measure_changed(
        self,
        commit: str,
        change: Callable[[Workspace], Changes | None],
        *,
        is_repeated: bool = True,
    ) -> Measured | None:
        """Return the outcome on a commit's tree with changed files; None if `change` gives None.

        `change` is called for each repeat. Raises what `measure` raises.
        """
        return self._measure(commit, change, self._question.rules.retries if is_repeated else 0)

    def _measure(
        self, commit: str, change: Callable[[Workspace], Changes | None], repeats: int
    ) -> Measured | None:
        found: list[Measured] = []
        while len(found) <= repeats:
            began = time.monotonic()
            with self._checkout(commit) as checkout:
                with _environment():
                    changes = change(checkout.workspace)
                    if changes is None:
                        return None
                    workspace = checkout.workspace
                    tree = workspace.edit(changes) if changes else workspace.base_tree
                kept = None if found else self._find(tree)
                if kept is not None:
                    return kept
                found.append(self._run(checkout, tree, commit, len(found) + 1))
            if self._own is not None and len(found) > 1:
                self._own.at += time.monotonic() - began
            if found[-1].verdict is not Verdict.RED:
                break
        outcome = merged(found)
        self.keep(outcome)
        return outcome

    def keep(self, outcome: Measured) -> None:
        """Keep an outcome for the next time, unless it is flaky or the command did not run."""
        if (
            outcome.is_flaky
            or outcome.exit_status is None
            or outcome.verdict is Verdict.DID_NOT_RUN
        ):
            return
        with self._context.writing() as session:
            key = self._key(outcome.tree)
            measurements.keep(session, key, _document(outcome), self._context.now())
            session.commit()

    def _find(self, tree: str) -> Measured | None:
        with self._context.reading() as session:
            document = measurements.find(session, self._key(tree), self._context.now())
        return None if document is None else _outcome(tree, document)

    def _key(self, tree: str) -> str:
        """Return the hash of all that the outcome of the command on a tree depends on."""
        settings, rules = self._context.settings, self._question.rules
        document = {
            "format": _FORMAT,
            "tree": tree,
            "command": rules.command,
            "profile": self._question.profile,
            "junit": rules.junit,
            "timeout_seconds": rules.timeout_seconds,
            "tools": tools_hash(settings, checks_of(settings).sandbox),
        }
        return hashlib.sha256(canonical_json(document)).hexdigest()

    @contextmanager
    def _checkout(self, commit: str) -> Iterator[Checkout]:
        self._left()
        context = self._context
        with ExitStack() as stack:
            with _environment():
                require_commit(context, self._question.run_id, commit)
                checkout = stack.enter_context(
                    checked_out(context.settings, context.repository, self._question.branch, commit)
                )
            yield checkout

    def _left(self) -> tuple[float, TimeLimit | None]:
        """Return how many seconds the command may take, and which limit says so; None: its own.

        Raises OverBudgetError.
        """
        most, because = float(self._question.rules.timeout_seconds), None
        for limit in self._limits:
            left = limit.left
            if left <= 0:
                raise OverBudgetError(limit.why)
            if left < most:
                most, because = left, limit
        return most, because

    def _run(self, checkout: Checkout, tree: str, commit: str, attempt: int) -> Measured:
        question = self._question
        seconds, limit = self._left()
        outcome = checks_of(self._context.settings).run(
            Job(
                tree=checkout.tree,
                objects=checkout.objects,
                command=question.rules.command or "",
                timeout_seconds=seconds,
                environment=environment_for(
                    profile=question.profile,
                    run_id=question.run_id,
                    phase_id=question.phase_id,
                    commit=commit,
                    attempt=attempt,
                ),
                junit=question.rules.junit,
            ),
            self._should_stop,
        )
        if outcome.is_overdue and limit is not None:
            raise OverBudgetError(limit.why)
        if outcome.verdict is Verdict.DID_NOT_RUN and outcome.exit_status is None:
            raise NotMeasurableError(outcome.reason)
        return measured(tree, outcome)


@contextmanager
def _environment() -> Iterator[None]:
    """Turn a failure to lay out a tree into the environment's."""
    try:
        yield
    except (AutopackError, WorkspaceError, OSError) as error:
        why = error.detail if isinstance(error, AutopackError) else str(error)
        raise NotMeasurableError(f"a tree could not be checked out: {why}") from error


def measured(tree: str, outcome: CommandOutcome) -> Measured:
    """Return the outcome of a command on a tree as the rules read it."""
    return Measured(
        tree=tree,
        verdict=outcome.verdict,
        reason=outcome.reason,
        exit_status=outcome.exit_status,
        cases=outcome.cases,
    )


def _document(outcome: Measured) -> dict[str, Any]:
    cases: dict[str, Sequence[str]] | None = None
    if outcome.cases is not None:
        cases = {state: outcome.named(state) for state in CaseState}
    return {
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "exit_status": outcome.exit_status,
        "cases": cases,
    }


def _outcome(tree: str, document: Mapping[str, Any]) -> Measured:
    by_state = document["cases"]
    cases: dict[str, CaseState] | None = None
    if by_state is not None:
        cases = {name: CaseState(state) for state, names in by_state.items() for name in names}
    return Measured(
        tree=tree,
        verdict=Verdict(document["verdict"]),
        reason=document["reason"],
        exit_status=document["exit_status"],
        cases=cases,
    )

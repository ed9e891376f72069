"""What CI measures beside the command on a phase's commit. (rules §6.1, docs/evidence.md)

A kind of evidence is a function of MEASURES here, which makes trees and has them measured, and a
pure function of `domain/evidence_rules.py`, which says what the outcomes mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from ..domain.evidence import Evidence
from ..domain.evidence_rules import (
    Judged,
    Measured,
    conclude,
    entry,
    judge_base_tests,
    judge_baseline,
    judge_fails_before,
    judge_seeded_faults,
)
from ..domain.faults import MAX_FILES, Fault, SourceFile, is_code, seed_faults
from ..domain.paths import globs, names_of
from ..domain.redaction import redacted
from ..domain.ruleset import CiBaseline, CiRules, DeafGate
from ..domain.terms import EvidenceKind, EvidenceResult, Verdict
from ..gitrepo.workspace import TreeEntry, Workspace
from .context import AppContext
from .measuring import Bench, Changes, OverBudgetError, Question, TimeLimit

HANG_SECONDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """A commit that CI has judged, and what its evidence is measured from.

    `base_commit` is the run's, `start_commit` the one before the phase. `head` is the outcome on
    the commit, `seconds` how long that took. `limit` is that of all evidence together.
    """

    context: AppContext
    question: Question
    should_stop: Callable[[], bool]
    ci: CiRules
    commit: str
    base_commit: str
    start_commit: str
    head: Measured
    seconds: float
    limit: TimeLimit
    # The issues that this phase and the complete ones may raise, by their keys.
    expected_issues: tuple[str, ...]
    must_fail_before: bool
    failing_checks: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return self.question.rules.command or ""

    def is_test(self, path: str) -> bool:
        """Return whether a file is a test, or what tests read, by `ci.test_paths`."""
        return globs(self.ci.test_paths).match(names_of(path))

    def bench(self) -> Bench:
        """Return what measures trees for one kind of evidence, within its budget."""
        own = TimeLimit.of(self.question.rules.evidence_seconds(self.seconds), "its budget")
        return Bench(self.context, self.question, self.should_stop, own=own, shared=self.limit)


def measure_base_tests(inquiry: Inquiry) -> Evidence:
    """Run the tests as they are on the base on the new code, if the run changed any of them."""
    restored: dict[str, TreeEntry | None] = {}
    base = base_of(inquiry)
    is_missing = any(name not in (inquiry.head.cases or {}) for name in base.cases or {})

    def restore(workspace: Workspace) -> Changes | None:
        changes = workspace.differences(inquiry.base_commit, inquiry.commit)
        restored.update((path, each.old) for path, each in changes.items() if inquiry.is_test(path))
        # What was only added runs on the commit too, beside the others; but a conftest.py changes
        # what these do, and added tests can hide that others do not run.
        is_any = any(
            is_missing or entry is not None or path.rpartition("/")[2] == "conftest.py"
            for path, entry in restored.items()
        )
        return restored if is_any else None

    old = inquiry.bench().measure_changed(inquiry.commit, restore)
    return judge_base_tests(
        base,
        inquiry.head,
        old,
        restored=[path for path, entry in restored.items() if entry is not None],
        expected=inquiry.expected_issues,
        command=inquiry.command,
    )


def measure_fails_before(inquiry: Inquiry) -> Evidence:
    """Run the tests as they are on the commit on the code as it was before the phase."""

    def take_back(workspace: Workspace) -> Changes | None:
        changes = workspace.differences(inquiry.start_commit, inquiry.commit)
        code = {path: each.old for path, each in changes.items() if not inquiry.is_test(path)}
        has_tests = len(code) < len(changes)
        return code if has_tests or inquiry.must_fail_before else None

    before = inquiry.bench().measure_changed(inquiry.commit, take_back)
    return judge_fails_before(
        before,
        inquiry.head,
        is_required=inquiry.must_fail_before,
        command=inquiry.command,
    )


def measure_seeded_faults(inquiry: Inquiry) -> Evidence:
    """Run the command on the commit with one small fault at a time in the phase's lines."""
    bench = inquiry.bench()
    faults: list[tuple[Fault, str]] = []
    outcomes: list[Measured] = []

    def seed(workspace: Workspace) -> Changes | None:
        if not outcomes:
            faults[:] = _faults(inquiry, workspace)
        if len(outcomes) == len(faults):
            return None
        fault, mode = faults[len(outcomes)]
        return {fault.path: workspace.store(fault.content, mode)}

    began = time.monotonic()
    with suppress(OverBudgetError):  # what was noticed until then counts
        while True:
            began = time.monotonic()
            outcome = bench.measure_changed(inquiry.commit, seed, is_repeated=False)
            if outcome is None:
                break
            outcomes.append(outcome)
    if len(outcomes) < len(faults) and time.monotonic() - began > hang_seconds(inquiry.seconds):
        # A loop without end: the command's own limit would make it red.
        outcomes.append(replace(inquiry.head, verdict=Verdict.RED, reason="it did not end"))
    return judge_seeded_faults(
        [fault for fault, _ in faults],
        outcomes,
        inquiry.head,
        is_red=inquiry.ci.deaf_gate is DeafGate.RED,
        command=inquiry.command,
    )


def hang_seconds(plain: float) -> float:
    """Return after which time a command hangs that took `plain` seconds on the commit."""
    return 5 * plain + HANG_SECONDS


def _faults(inquiry: Inquiry, workspace: Workspace) -> list[tuple[Fault, str]]:
    """Return the faults for the phase's lines, each with its file's mode."""
    changes = workspace.differences(inquiry.start_commit, inquiry.commit)
    code = {
        path: each
        for path, each in changes.items()
        if each.new is not None and is_code(path) and not inquiry.is_test(path)
    }
    sources, modes = [], {}
    for path, each in sorted(code.items())[:MAX_FILES]:
        old, new = each.old, each.new
        if new is None or not new.mode.startswith("100"):
            continue  # a link, or a repository within this one
        is_file = old is not None and old.mode.startswith("100")
        lines = workspace.changed_lines(old, new) if old is not None and is_file else None
        sources.append(SourceFile(path=path, content=workspace.read(new), lines=lines))
        modes[path] = new.mode
    seeded = seed_faults(
        sources,
        commit=inquiry.commit,
        count=inquiry.ci.seeded_faults,
        is_test=inquiry.is_test,
    )
    return [(fault, modes[fault.path]) for fault in seeded]


#: What measures each kind, if the commit is green; each has its own budget.
MEASURES: Final[Mapping[EvidenceKind, Callable[[Inquiry], Evidence]]] = {
    EvidenceKind.BASE_TESTS: measure_base_tests,
    EvidenceKind.FAILS_BEFORE: measure_fails_before,
    EvidenceKind.SEEDED_FAULTS: measure_seeded_faults,
}


def gather(inquiry: Inquiry, kinds: Sequence[EvidenceKind]) -> tuple[Judged, tuple[Evidence, ...]]:
    """Measure what the phase needs; return the verdict after it, and the entries.

    Raises NotMeasurableError, StoppedError.
    """
    head = inquiry.head
    judged = Judged(verdict=head.verdict, reason=head.reason, failing_checks=inquiry.failing_checks)
    found: list[Evidence] = []
    if EvidenceKind.BASELINE in kinds and head.verdict is not Verdict.DID_NOT_RUN:
        judged, baseline = _baseline(inquiry, judged)
        found.append(baseline)
    if judged.verdict is Verdict.GREEN:
        for kind in kinds:
            if kind in MEASURES:
                found.append(_measured(inquiry, kind))
    return conclude(judged, found), tuple(found)


def base_of(inquiry: Inquiry) -> Measured:
    """Return the outcome on the run's base commit. It is no kind's own, so it has no own limit.

    Raises OverBudgetError.
    """
    bench = Bench(inquiry.context, inquiry.question, inquiry.should_stop, shared=inquiry.limit)
    return bench.measure(inquiry.base_commit)


def _baseline(inquiry: Inquiry, judged: Judged) -> tuple[Judged, Evidence]:
    """Return the verdict that counts after the base is known, and the entry."""
    try:
        base = base_of(inquiry)
    except OverBudgetError as error:
        return judged, _not_measured(inquiry, EvidenceKind.BASELINE, error)
    return judge_baseline(
        base,
        inquiry.head,
        judged,
        is_strict=inquiry.ci.baseline is CiBaseline.STRICT,
        command=inquiry.command,
    )


def _measured(inquiry: Inquiry, kind: EvidenceKind) -> Evidence:
    try:
        return MEASURES[kind](inquiry)
    except OverBudgetError as error:
        return _not_measured(inquiry, kind, error)


def _not_measured(inquiry: Inquiry, kind: EvidenceKind, why: OverBudgetError) -> Evidence:
    return entry(kind, EvidenceResult.NOT_MEASURED, str(why), command=inquiry.command)


def documents(evidence: Sequence[Evidence]) -> list[dict[str, object]]:
    """Return entries as they are stored, without credentials."""
    return [redacted(each.document()) for each in evidence]

"""What CI measures beside the command on a phase's commit. (rules §6.1, docs/evidence.md)

A kind of evidence is a function of MEASURES here, which makes trees and has them measured, and a
pure function of `domain/evidence_rules.py`, which says what the outcomes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..domain.evidence import Evidence
from ..domain.evidence_rules import Judged, Measured, conclude, entry, judge_baseline
from ..domain.redaction import redacted
from ..domain.ruleset import CiBaseline, CiRules
from ..domain.terms import EvidenceKind, EvidenceResult, Verdict
from .context import AppContext
from .measuring import Bench, OverBudgetError, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """A commit that CI has judged, and what its evidence is measured from.

    `base_commit` is the run's, `start_commit` the one before the phase. `head` is the outcome on
    the commit, `seconds` how long that took.
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
    failing_checks: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return self.question.rules.command or ""

    def bench(self) -> Bench:
        """Return what measures trees for one kind of evidence, within its budget."""
        seconds = self.question.rules.evidence_seconds(self.seconds)
        return Bench(self.context, self.question, self.should_stop, seconds)


#: What measures each kind, if the commit is green; each has its own budget.
MEASURES: Final[Mapping[EvidenceKind, Callable[[Inquiry], Evidence]]] = {}


def gather(inquiry: Inquiry, kinds: Sequence[EvidenceKind]) -> tuple[Judged, tuple[Evidence, ...]]:
    """Measure what the phase needs; return the verdict after it, and the entries.

    Raises NotMeasurableError, StoppedError.
    """
    head = inquiry.head
    judged = Judged(verdict=head.verdict, reason=head.reason, failing_checks=inquiry.failing_checks)
    found: list[Evidence] = []
    if EvidenceKind.BASELINE in kinds and head.verdict is not Verdict.DID_NOT_RUN:
        judged, baseline = judge_baseline(
            base_of(inquiry),
            head,
            judged,
            is_strict=inquiry.ci.baseline is CiBaseline.STRICT,
            command=inquiry.command,
        )
        found.append(baseline)
    if judged.verdict is Verdict.GREEN:
        for kind in kinds:
            if kind in MEASURES:
                found.append(_measured(inquiry, kind))
    return conclude(judged, found), tuple(found)


def base_of(inquiry: Inquiry) -> Measured:
    """Return the outcome on the run's base commit. It is no kind's own, so it has no budget."""
    bench = Bench(inquiry.context, inquiry.question, inquiry.should_stop)
    return bench.measure(inquiry.base_commit)


def _measured(inquiry: Inquiry, kind: EvidenceKind) -> Evidence:
    try:
        return MEASURES[kind](inquiry)
    except OverBudgetError as error:
        return entry(kind, EvidenceResult.NOT_MEASURED, str(error), command=inquiry.command)


def documents(evidence: Sequence[Evidence]) -> list[dict[str, object]]:
    """Return entries as they are stored, without credentials."""
    return [redacted(each.document()) for each in evidence]

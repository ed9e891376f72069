"""How the outcomes of CI's command on several trees become evidence. (rules §6.1)

Each kind of evidence has one pure function here, from what was measured to its entry.
`services/evidence.py` makes the trees and runs the command on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .evidence import MAX_EVIDENCE_CHECKS, MAX_EVIDENCE_TEXT, Evidence, counted, is_refuted
from .terms import EvidenceKind, EvidenceResult, Verdict

_SHOWN_CHECKS = 5


class CaseState(StrEnum):
    """What a JUnit report says of a test."""

    PASSED = "passed"
    SKIPPED = "skipped"
    XFAILED = "xfailed"  # expected to fail, and did
    FAILED = "failed"


_BY_WEIGHT = tuple(CaseState)


def worst(one: CaseState, other: CaseState) -> CaseState:
    """Return what counts of two tests of one name."""
    return max(one, other, key=_BY_WEIGHT.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The outcome of the command on one tree.

    `cases` are the tests by name; None: there is no complete list of them. `exit_status` is None
    if the command was stopped or not started.
    """

    tree: str
    verdict: Verdict
    reason: str
    exit_status: int | None = None
    cases: Mapping[str, CaseState] | None = None
    is_flaky: bool = False

    def named(self, *states: CaseState) -> tuple[str, ...]:
        """Return the tests in these states, in the order of their names."""
        return tuple(sorted(name for name, state in (self.cases or {}).items() if state in states))

    @property
    def failing(self) -> tuple[str, ...]:
        return self.named(CaseState.FAILED)

    @property
    def counts(self) -> dict[str, int]:
        """The number of tests, by name of the count; empty without a list of them."""
        if self.cases is None:
            return {}
        states = [*self.cases.values()]
        skipped = states.count(CaseState.SKIPPED) + states.count(CaseState.XFAILED)
        return {
            "total": len(states),
            "passed": states.count(CaseState.PASSED),
            "failed": states.count(CaseState.FAILED),
            "skipped": skipped,
        }


def merged(attempts: Sequence[Measured]) -> Measured:
    """Return the outcome of several attempts at one tree: the best state of each test counts.

    It is flaky if the attempts differ.
    """
    last = attempts[-1]
    if len(attempts) == 1:
        return last
    is_same = len({(each.verdict, each.failing) for each in attempts}) == 1
    cases: dict[str, CaseState] | None = None
    if all(each.cases is not None for each in attempts):
        cases = {}
        for each in attempts:
            for name, state in (each.cases or {}).items():
                cases[name] = min(cases.get(name, state), state, key=_BY_WEIGHT.index)
    return replace(last, cases=cases, is_flaky=not is_same)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a verdict is after the evidence: the verdict, why, and the checks that made it red."""

    verdict: Verdict
    reason: str
    failing_checks: tuple[str, ...] = ()


def entry(
    kind: EvidenceKind,
    result: EvidenceResult,
    reason: str,
    *,
    command: str | None = None,
    on: Measured | None = None,
    against: Measured | None = None,
    counts: Mapping[str, int] | None = None,
    checks: Sequence[str] = (),
) -> Evidence:
    """Return an entry of bounded size. `on` is the tree it was measured on, `against` the other."""
    return Evidence(
        kind=kind,
        result=result,
        reason=_short(reason),
        command=None if command is None else _short(command),
        tree=None if on is None else on.tree,
        base_tree=None if against is None else against.tree,
        counts=counted(counts if counts is not None else (on.counts if on else {})),
        checks=tuple(checks[:MAX_EVIDENCE_CHECKS]),
        checks_count=len(checks),
    )


def named(number: int, noun: str, checks: Sequence[str]) -> str:
    """Say how many there are, and the first names: `2 checks were red before: a, b`."""
    more = f" and {len(checks) - _SHOWN_CHECKS} more" if len(checks) > _SHOWN_CHECKS else ""
    names = f": {', '.join(checks[:_SHOWN_CHECKS])}{more}" if checks else ""
    return f"{number} {noun}{names}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_EVIDENCE_TEXT else f"{text[: MAX_EVIDENCE_TEXT - 1]}…"


def conclude(judged: Judged, evidence: Iterable[Evidence]) -> Judged:
    """Return the verdict after its evidence: green only if no entry speaks against it."""
    against = [each for each in evidence if is_refuted([each])]
    if judged.verdict is not Verdict.GREEN or not against:
        return judged
    return Judged(
        verdict=Verdict.RED,
        reason=_short("; ".join(each.text for each in against)),
        failing_checks=tuple(dict.fromkeys(name for each in against for name in each.checks)),
    )


# Baseline


def judge_baseline(
    base: Measured, head: Measured, judged: Judged, *, is_strict: bool, command: str
) -> tuple[Judged, Evidence]:
    """Compare a commit with the run's base: which red checks were red before. (rules §6.1)

    A red verdict becomes green if every red check was red on the base too, unless `is_strict`. It
    stays red if something else may be wrong: another exit status, or fewer tests than on the base.
    """

    def found(result: EvidenceResult, reason: str, checks: Sequence[str] = ()) -> Evidence:
        return entry(
            EvidenceKind.BASELINE,
            result,
            reason,
            command=command,
            on=base,
            checks=checks,
        )

    if base.verdict is Verdict.DID_NOT_RUN:
        why = f"the command does not run on the base: {base.reason}"
        return judged, found(EvidenceResult.NOT_MEASURED, why)
    if base.verdict is Verdict.GREEN:
        return judged, found(EvidenceResult.PASSED, "the base is green")
    known = base.failing
    if not known:
        why = f"the base was red, and no report names its checks: {base.reason}"
        is_green = judged.verdict is Verdict.GREEN
        return judged, found(
            EvidenceResult.PASSED if is_green else EvidenceResult.NOT_MEASURED, why
        )
    before = named(len(known), f"{_checks(len(known))} red before", known)
    passed = found(EvidenceResult.PASSED, before, known)
    if judged.verdict is not Verdict.RED:
        return judged, passed
    broken = tuple(name for name in head.failing if name not in set(known))
    if broken:
        why = f"{named(len(broken), 'checks broke' if len(broken) > 1 else 'check broke', broken)}"
        return (
            Judged(verdict=Verdict.RED, reason=_short(f"{why}; {before}"), failing_checks=broken),
            passed,
        )
    if head.cases is None or head.exit_status is None or not head.failing:
        return judged, passed
    if head.exit_status != base.exit_status:
        why = f"exit {head.exit_status}, on the base exit {base.exit_status}; {before}"
        return Judged(verdict=Verdict.RED, reason=_short(why)), passed
    if len(head.cases) < len(base.cases or {}):
        why = f"{len(head.cases)} tests ran, on the base {len(base.cases or {})}; {before}"
        return Judged(verdict=Verdict.RED, reason=_short(why)), passed
    still = head.failing
    left = named(len(still), f"{_checks(len(still))} red on the base, and still", still)
    if is_strict:
        why = f"{left}; ci.baseline is strict"
        refuted = found(EvidenceResult.FAILED, why, still)
        return Judged(verdict=Verdict.RED, reason=_short(why), failing_checks=still), refuted
    return Judged(verdict=Verdict.GREEN, reason=_short(f"no check broke; {before}")), passed


def _checks(number: int) -> str:
    return "checks were" if number != 1 else "check was"

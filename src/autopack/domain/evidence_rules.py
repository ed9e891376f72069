"""How the outcomes of CI's command on several trees become evidence. (rules §6.1)

Each kind of evidence has one pure function here, from what was measured to its entry.
`services/evidence.py` makes the trees and runs the command on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .evidence import MAX_EVIDENCE_CHECKS, MAX_EVIDENCE_TEXT, Evidence, counted, is_refuted
from .faults import Fault
from .issues import is_expected_key, weakened_test_key
from .listing import listed
from .terms import EvidenceKind, EvidenceResult, Verdict

_MOST_NAMED = 5


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
    names = f": {listed(checks, _MOST_NAMED)}" if checks else ""
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


def is_cut_short(outcome: Measured, other: Measured) -> bool:
    """Return whether tests may be missing since the command ended early: a file did not load.

    Then it is red for something that is not red in the other outcome.
    """
    is_red = outcome.verdict is Verdict.RED and outcome.exit_status is not None
    return is_red and (not outcome.cases or not set(outcome.failing) <= set(other.failing))


# The base's tests


def judge_base_tests(
    base: Measured,
    head: Measured,
    old: Measured | None,
    *,
    restored: Sequence[str],
    expected: Collection[str],
    command: str,
) -> Evidence:
    """Say which tests the run weakened: green on the base, and not any more. (rules §6.1)

    `old` is the outcome with the tests as on the base, `restored` are the files that differ there;
    None: the run changed none. `expected` are the issues that the plan lets pass. A test that was
    red there and is green only as the run changed it may be corrected or weakened: it is named.
    """
    kind = EvidenceKind.BASE_TESTS
    if base.cases is None or head.cases is None or base.verdict is Verdict.DID_NOT_RUN:
        why = f"the tests of the base are not known: {base.reason}"
        return entry(kind, EvidenceResult.NOT_MEASURED, why, command=command, on=old, against=base)
    before = base.named(CaseState.PASSED)
    rewritten = [] if old is None else _green_by_their_change(base, head, old)
    noun = "test that was" if len(rewritten) == 1 else "tests that were"
    also = named(len(rewritten), f"{noun} red there, green only as changed", rewritten)
    also = f"; {also}" if rewritten else ""
    if not before:
        why = f"no test is green on the base{also}"
        return entry(kind, EvidenceResult.NOT_NEEDED, why, command=command, against=base)
    if old is not None and old.verdict is Verdict.DID_NOT_RUN:
        why = f"the command does not run with the tests of the base: {old.reason}"
        return entry(kind, EvidenceResult.NOT_MEASURED, why, command=command, on=old, against=base)
    weakened = _weakened(before, base, head, old, restored)
    unexpected = [
        name for name in weakened if not is_expected_key(weakened_test_key(name), expected)
    ]
    told = unexpected or list(weakened)
    if weakened:
        result = EvidenceResult.FAILED if unexpected else EvidenceResult.WARNED
        noun = "weakened test" if len(told) == 1 else "weakened tests"
        noun += "" if unexpected else ", all expected by the plan"
        why = named(len(told), noun, [f"{name} ({weakened[name]})" for name in told])
    elif old is None:
        result = EvidenceResult.NOT_NEEDED
        why = "no test of the base was changed, deleted or skipped"
    else:
        result = EvidenceResult.PASSED
        why = f"{_are_green(len(before), len(restored))}{also}"
    return entry(
        kind,
        result,
        why,
        command=command,
        on=old if old is not None else head,
        against=base,
        counts={
            "files_restored": len(restored),
            "green_on_base": len(before),
            "expected": len(weakened) - len(unexpected),
            "weakened": len(weakened),
            "green_by_their_change": len(rewritten),
        },
        checks=told,
    )


def _are_green(tests: int, files: int) -> str:
    """Say that the base's tests are green with its files."""
    its = f"its {files} test file{'s' if files != 1 else ''}"
    if tests == 1:
        return f"the test that was green on the base is green with {its}"
    return f"all {tests} tests that were green on the base are green with {its}"


def _weakened(
    before: Sequence[str],
    base: Measured,
    head: Measured,
    old: Measured | None,
    restored: Sequence[str],
) -> dict[str, str]:
    """Return the tests that were green on the base and are not any more, and how they are."""
    found = {} if old is None else _not_green(before, base, old, restored)
    cases, is_fewer = head.cases or {}, len(head.cases or {}) < len(base.cases or {})
    for name in before:
        match cases.get(name):
            case CaseState.SKIPPED:
                found.setdefault(name, "skipped")
            case CaseState.XFAILED:
                found.setdefault(name, "expected to fail")
            case None if is_fewer:
                found.setdefault(name, "not collected")
    return found


def _green_by_their_change(base: Measured, head: Measured, old: Measured) -> list[str]:
    """Return the tests that were red on the base, and with its files still are."""
    still = {*base.failing} & {*old.failing}
    return [name for name in head.named(CaseState.PASSED) if name in still]


def _not_green(
    before: Sequence[str], base: Measured, old: Measured, restored: Sequence[str]
) -> dict[str, str]:
    """Return the tests that are not green any more with the base's test files, and how they are.

    A file that cannot be loaded may end the command before other files' tests: then only the tests
    of the restored files count, if their names tell which these are.
    """
    cases = old.cases or {}
    # Names may differ from run to run, such as those with an address in memory.
    is_fewer = len(cases) < len(base.cases or {})
    found: dict[str, str] = {}
    absent = []
    for name in before:
        match cases.get(name):
            case CaseState.FAILED:
                found[name] = "red"
            case CaseState.SKIPPED:
                found[name] = "skipped"
            case CaseState.XFAILED:
                found[name] = "expected to fail"
            case None if is_fewer or is_cut_short(old, base):
                absent.append(name)
    stems = tuple(_dotted(path.rpartition(".")[0] or path) for path in restored)
    theirs = [name for name in absent if any(stem in _dotted(name) for stem in stems)]
    return found | dict.fromkeys(theirs or absent, "not run")


def _dotted(path: str) -> str:
    return path.replace("/", ".").replace("\\", ".")


# The phase's tests on the code as before it


def judge_fails_before(
    before: Measured | None, head: Measured, *, is_required: bool, command: str
) -> Evidence:
    """Say which tests are red without the phase's change and green with it. (rules §6.1)

    `before` is the outcome on the code as before the phase with the phase's tests; None: it changed
    none, and needs none. A test that could not be loaded there counts as red.
    """
    kind = EvidenceKind.FAILS_BEFORE
    if before is None:
        why = "the phase changes no test"
        return entry(kind, EvidenceResult.NOT_NEEDED, why, command=command)

    def found(result: EvidenceResult, reason: str, checks: Sequence[str] = ()) -> Evidence:
        counts = {"green_after": len(after), "red_before": len(checks)}
        return entry(
            kind,
            result,
            reason,
            command=command,
            on=before,
            against=head,
            counts=counts,
            checks=checks,
        )

    after = head.named(CaseState.PASSED)
    if before.verdict is Verdict.DID_NOT_RUN or before.cases is None or head.cases is None:
        why = f"the tests cannot be compared: {before.reason}"
        return found(EvidenceResult.NOT_MEASURED, why)
    is_cut = is_cut_short(before, head)
    red = [
        name
        for name in after
        if before.cases.get(name) is CaseState.FAILED or (is_cut and name not in before.cases)
    ]
    if red:
        noun = "test fails" if len(red) == 1 else "tests fail"
        return found(
            EvidenceResult.PASSED, named(len(red), f"{noun} without this change", red), red
        )
    if is_required:
        return found(EvidenceResult.FAILED, "no test fails without this change")
    return found(
        EvidenceResult.WARNED, "no test fails without this change: its tests prove nothing of it"
    )


def _checks(number: int) -> str:
    return "checks were" if number != 1 else "check was"


# Seeded faults


def judge_seeded_faults(
    faults: Sequence[Fault],
    outcomes: Sequence[Measured],
    head: Measured,
    *,
    is_red: bool,
    command: str,
) -> Evidence:
    """Say which faults in the phase's lines the command noticed; none: it is deaf. (rules §6.1)

    `outcomes` are those of the first faults, as far as the budget went. `is_red`: what the ruleset
    says of a deaf command.
    """
    states = [_fault_state(outcome, head) for outcome in outcomes]
    states += [FaultState.NOT_MEASURED] * (len(faults) - len(states))
    noticed, unnoticed = states.count(FaultState.NOTICED), states.count(FaultState.NOT_NOTICED)
    counted = noticed + unnoticed

    def found(result: EvidenceResult, reason: str) -> Evidence:
        return entry(
            EvidenceKind.SEEDED_FAULTS,
            result,
            reason,
            command=command,
            on=head,
            counts={"faults": len(faults), "noticed": noticed, "not_noticed": unnoticed},
            checks=[f"{each.name}: {state}" for each, state in zip(faults, states, strict=True)],
        )

    missed = [
        f"{each.name} ({each.before} -> {each.after})"
        for each, state in zip(faults, states, strict=True)
        if state is FaultState.NOT_NOTICED
    ]
    if not faults:
        return found(EvidenceResult.NOT_NEEDED, "the phase changes no line of code to break")
    if noticed:
        told = f"{noticed} of {counted} seeded faults noticed"
        return found(EvidenceResult.PASSED, f"{told}; not noticed: {missed[0]}" if missed else told)
    if FaultState.NOT_MEASURED in states:
        left = states.count(FaultState.NOT_MEASURED)
        why = f"over its budget: {left} of {len(faults)} seeded faults are left, and none noticed"
        return found(EvidenceResult.NOT_MEASURED, why)
    if not unnoticed:
        return found(EvidenceResult.NOT_NEEDED, "every seeded fault broke the build")
    each = "the seeded fault" if counted == 1 else f"each of {counted} seeded faults"
    why = f"deaf_gate: the command is green with {each}: {missed[0]}"
    return found(EvidenceResult.FAILED if is_red else EvidenceResult.WARNED, why)


class FaultState(StrEnum):
    """What the command said of a fault."""

    NOTICED = "noticed"
    NOT_NOTICED = "not noticed"
    BROKE_THE_BUILD = "broke the build"
    NOT_MEASURED = "not measured"


def _fault_state(outcome: Measured, head: Measured) -> FaultState:
    """Only reports tell a broken build from a failing test: it runs none of the commit's tests."""
    if outcome.verdict is Verdict.GREEN:
        return FaultState.NOT_NOTICED
    ran = {*head.named(CaseState.PASSED, CaseState.FAILED)}
    is_built = not ran or any(
        name in ran for name in outcome.named(CaseState.PASSED, CaseState.FAILED)
    )
    if outcome.verdict is Verdict.DID_NOT_RUN or not is_built:
        return FaultState.BROKE_THE_BUILD
    return FaultState.NOTICED

"""A plan: what a client posts to start a run, and the checks on it. (rules §1)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny

from .errors import InvalidError
from .ruleset import DEBT_CATEGORY, Ruleset
from .terms import CiMode, Complexity, RunScope, SafetyProfile
from .values import (
    MAX_PROBLEMS,
    Closed,
    Identifier,
    IssueKey,
    Name,
    PathGlob,
    PositiveCount,
    PositiveUsd,
    Several,
    Text,
    Word,
)

DEBT_TIER_ID = "DEBT"


class PlanRun(Closed):
    run_id: Identifier
    safety_profile: SafetyProfile | None = None
    run_scope: RunScope | None = None
    token_cap: PositiveCount | None = None
    # Left out of the document where it is not given: the document's hash identifies a plan that was
    # sent before, also by an older client.
    cost_cap_usd: Annotated[PositiveUsd | None, Field(exclude_if=lambda cap: cap is None)] = None
    max_phases: PositiveCount | None = None
    max_duration_minutes: Annotated[int, Field(strict=True, ge=1, le=10_080)] | None = None


class PlanTier(Closed):
    tier_id: Identifier
    tier_index: Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
    name: Name
    description: Text | None = None


class PlanPhase(Closed):
    phase_id: Identifier
    phase_index: Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
    tier_id: Identifier
    name: Name
    description: Text | None = None
    task_category: Word | None = None
    complexity: Complexity | None = None
    builder_mode: Word | None = None
    allow_empty: bool = False
    allowed_paths: Several[PathGlob] | None = None
    # The phases that must have ended before this one starts; without it all before it. Left out of
    # the document where it is not given, as above.
    depends_on: Annotated[
        Several[Identifier] | None, Field(exclude_if=lambda names: names is None)
    ] = None
    expected_issues: Several[IssueKey] = ()
    # Left out of the document where it is not given, as `cost_cap_usd` is.
    must_fail_before: Annotated[
        bool,
        Field(
            strict=True,
            exclude_if=lambda wanted: not wanted,
            description="Whether a test must fail without this phase's change, and pass with it.",
        ),
    ] = False


class DebtPhase(PlanPhase):
    """A phase that the service adds to clean up an issue of the backlog; no client posts one."""

    issue_key: IssueKey


class Plan(Closed):
    """A run, its tiers and its phases, as posted."""

    run: PlanRun
    tiers: tuple[PlanTier, ...]
    phases: tuple[SerializeAsAny[PlanPhase], ...]


class InvalidPlanError(InvalidError):
    code = "invalid_plan"


def check_plan(plan: Plan, ruleset: Ruleset, *, is_recorded: bool = False) -> None:
    """Refuse a plan that cannot be run, naming every problem with its field. (rules §1)

    A recorded plan may use the names that are reserved for debt cleanup. How many tiers and phases
    a request may contain is a limit of the request's JSON, not checked here.
    Raises InvalidPlanError with `errors`, each a `loc` and a `message`, the first MAX_PROBLEMS.
    """
    found = _problems(plan, ruleset)
    if not is_recorded:
        found = chain(found, _reserved_names(plan))
    problems = list(islice(found, MAX_PROBLEMS))
    if problems:
        first_place, first = problems[0]
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise InvalidPlanError(
            f"{first_place}: {first}{more}",
            errors=[{"loc": place, "message": message} for place, message in problems],
        )


def _problems(plan: Plan, ruleset: Ruleset) -> Iterable[tuple[str, str]]:
    if not plan.tiers:
        yield "tiers", "a plan has at least one tier"
    if not plan.phases:
        yield "phases", "a plan has at least one phase"
    cap = plan.run.max_phases or ruleset.run.max_phases
    if len(plan.phases) > cap:
        runs = -(-len(plan.phases) // cap)
        yield (
            "phases",
            f"{len(plan.phases)} phases are over max_phases {cap}: split the plan into {runs} runs",
        )
    scope = plan.run.run_scope or ruleset.default_run_scope
    if scope is RunScope.SINGLE_TIER and len(plan.tiers) != 1:
        yield "tiers", f"run_scope single_tier takes exactly one tier, not {len(plan.tiers)}"
    yield from _duplicates("tiers", "tier_id", plan.tiers, lambda tier: tier.tier_id.lower())
    yield from _duplicates("tiers", "tier_index", plan.tiers, lambda tier: tier.tier_index)
    yield from _duplicates("phases", "phase_id", plan.phases, lambda phase: phase.phase_id.lower())
    yield from _duplicates(
        "phases", "phase_index", plan.phases, lambda phase: (phase.tier_id, phase.phase_index)
    )
    known = {tier.tier_id for tier in plan.tiers}
    for index, phase in enumerate(plan.phases):
        if phase.tier_id not in known:
            names = ", ".join(sorted(known)[:10]) or "none"
            yield (
                f"phases[{index}].tier_id",
                f"'{phase.tier_id}' is not a tier of the plan (it has: {names})",
            )
    yield from _order_problems(plan)


def _order_problems(plan: Plan) -> Iterable[tuple[str, str]]:
    """Yield what is wrong with `depends_on`, in linear time. (rules §2.7)"""
    tiers = {tier.tier_id: tier.tier_index for tier in plan.tiers}
    places = {
        phase.phase_id: (tiers.get(phase.tier_id, -1), phase.phase_index) for phase in plan.phases
    }
    circular = _circular({phase.phase_id: phase.depends_on or () for phase in plan.phases})
    for index, phase in enumerate(plan.phases):
        seen: set[str] = set()
        for number, name in enumerate(phase.depends_on or ()):
            place = f"phases[{index}].depends_on[{number}]"
            if name in seen:
                yield place, f"'{name}' is named twice"
            elif name == phase.phase_id:
                yield place, f"phase '{name}' cannot depend on itself"
            elif name not in places:
                yield place, f"'{name}' is not a phase of the plan"
            elif {name, phase.phase_id} <= circular:
                yield place, f"'{phase.phase_id}' and '{name}' are part of a cycle"
            elif places[name] >= places[phase.phase_id]:
                yield (
                    place,
                    f"'{name}' comes later than '{phase.phase_id}' by tier_index and phase_index",
                )
            seen.add(name)


def _circular(before: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the phases that are on a cycle of dependencies, or between two cycles."""
    known = {
        name: [each for each in set(names) if each in before] for name, names in before.items()
    }
    after: dict[str, list[str]] = {name: [] for name in known}
    for name, names in known.items():
        for each in names:
            after[each].append(name)
    return _not_sortable(known, after) & _not_sortable(after, known)


def _not_sortable(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> set[str]:
    """Return what is left when all whose predecessors are gone is taken away, again and again."""
    open_counts = {name: len(names) for name, names in before.items()}
    ready = [name for name, count in open_counts.items() if not count]
    while ready:
        for name in after[ready.pop()]:
            open_counts[name] -= 1
            if not open_counts[name]:
                ready.append(name)
    return {name for name, count in open_counts.items() if count}


def _reserved_names(plan: Plan) -> Iterable[tuple[str, str]]:
    for index, tier in enumerate(plan.tiers):
        if tier.tier_id.upper() == DEBT_TIER_ID:
            yield f"tiers[{index}].tier_id", f"'{tier.tier_id}' is reserved for debt cleanup"
    for index, phase in enumerate(plan.phases):
        if phase.phase_id.upper().startswith(f"{DEBT_TIER_ID}-"):
            yield f"phases[{index}].phase_id", f"'{phase.phase_id}' is reserved for debt cleanup"


def _duplicates(
    noun: str,
    field: str,
    items: Sequence[PlanTier] | Sequence[PlanPhase],
    key: Callable[[Any], object],
) -> Iterable[tuple[str, str]]:
    counts = Counter(key(item) for item in items)
    seen: set[object] = set()
    for index, item in enumerate(items):
        value = key(item)
        if counts[value] > 1 and value in seen:
            shown = getattr(item, field)
            case = " (without regard to case)" if isinstance(shown, str) else ""
            yield f"{noun}[{index}].{field}", f"{shown!r} is used twice{case}"
        seen.add(value)


def wants_debt_cleanup(plan: Plan, ruleset: Ruleset) -> bool:
    """Return whether starting this plan adds phases that clean up aged issues. (rules §7)"""
    scope = plan.run.run_scope or ruleset.default_run_scope
    return (
        ruleset.auto_debt_cleanup
        and ruleset.ci.mode is not CiMode.NONE
        and scope is not RunScope.SINGLE_TIER
    )


def with_debt_cleanup(
    plan: Plan, aged: Sequence[tuple[str, str]], *, must_fail_before: bool = False
) -> Plan:
    """Add a last tier with a phase for each aged issue, given as (key, category).

    `must_fail_before`: CI can measure whether a test fails without the phase's change. (rules §7.1)
    """
    if not aged:
        return plan
    last = max(tier.tier_index for tier in plan.tiers)
    tier = PlanTier(
        tier_id=DEBT_TIER_ID,
        tier_index=last + 1,
        name="Debt cleanup",
        description="Issues that have been seen in too many runs",
    )
    phases = tuple(
        DebtPhase(
            phase_id=f"{DEBT_TIER_ID}-{index + 1}",
            phase_index=index,
            tier_id=DEBT_TIER_ID,
            name=f"Clean up {key}",
            description=f"Remove the cause of the issue {key} ({category}). It is closed by a check"
            " that failed before and passes now.",
            task_category=DEBT_CATEGORY,
            issue_key=key,
            must_fail_before=must_fail_before,
        )
        for index, (key, category) in enumerate(aged)
    )
    return plan.model_copy(update={"tiers": (*plan.tiers, tier), "phases": (*plan.phases, *phases)})

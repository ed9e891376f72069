"""Answers about strategies and backtests."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from ..domain.run import FailureCode
from ..domain.states import RunStatus
from ..domain.strategy import Strategy
from . import Shape, WireTime


class DryRunAnswer(Shape):
    """`today` is the strategy under today's ruleset, if the request has another one."""

    strategy: Strategy
    today: Strategy | None


class EndingAnswer(Shape):
    state: RunStatus
    failure_code: FailureCode | None
    failure_reason: str | None
    tokens_used: int
    promotion_eligible_to_main: bool

    @property
    def words(self) -> str:
        """The state, and why the run failed."""
        return f"{self.state} ({self.failure_code})" if self.failure_code else self.state


class PartingAnswer(Shape):
    sequence: int
    at: WireTime
    detail: str


class ChangeKind(StrEnum):
    """What another ruleset would change of a run."""

    OUTCOME = "outcome"
    COST = "cost"
    PROMOTION = "promotion"
    REFUSED = "refused"  # its plan would not be accepted


class ComparisonAnswer(Shape):
    run_id: str
    recorded: EndingAnswer
    replayed: EndingAnswer | None
    changes: list[str]
    change_kinds: list[ChangeKind]
    parted_at: PartingAnswer | None
    skipped_inputs: int
    assumed_patches: int


class BacktestAnswer(Shape):
    """`changed_by_kind`: how many runs would change in a way; one can change in several.

    `runs` are all that were compared, or only those that would change.
    """

    compared_count: int
    changed_count: int
    changed_by_kind: dict[ChangeKind, int]
    runs: list[ComparisonAnswer]


class FieldChangeAnswer(Shape):
    """A field by its path, `run.token_cap`; a side is null where there is no such field."""

    field: str
    was: Any
    would: Any


class RulesetDiffAnswer(Shape):
    """What a ruleset would change of the one in force."""

    version: int
    changes: list[FieldChangeAnswer]


class RulesetVersionAnswer(Shape):
    """A ruleset as it was; `changes` are those against the version before.

    `actor` is who replaced it by the API, null for a file that was changed by hand.
    """

    version: int
    created_at: WireTime
    actor: str | None
    changes: list[FieldChangeAnswer]
    document: dict[str, Any]


class RulesetVersionsAnswer(Shape):
    """Newest first."""

    project_id: str
    versions: list[RulesetVersionAnswer]
    next_cursor: str | None = None


class ProtectedPathsAnswer(Shape):
    """What no patch may change, for a run that starts now.

    `always` and `by_default` are the service's own, `by_ruleset` the operator's, and `ci_scripts`
    the files that CI's commands call. `opened` are exceptions by task category, from all but
    `always`.
    """

    always: list[str]
    by_default: list[str]
    by_ruleset: list[str]
    ci_scripts: list[str]
    opened: dict[str, list[str]]

"""The tools that agents may call. Their arguments have the names and types of HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field

from ...domain.issues import BacklogOrder, BacklogStatus, IssueReport
from ...domain.results import AuditorReport, BuilderReport, PatchCheck
from ...domain.terms import Severity
from ...domain.values import Closed, Identifier, Text, Word
from ...services import attention as attention_service
from ...services import building, claiming, reviewing, runs
from ...services import issues as issue_services
from ...services.claiming import Claim, Release
from ...services.context import AppContext
from ...services.replies import Answer
from ...views import Shape
from ...views.attention import AttentionAnswer
from ...views.branches import PatchCheckAnswer
from ...views.issues import BacklogAnswer, RecordIssueAnswer
from ...views.results import AuditorResultAnswer, BuilderResultAnswer
from ...views.runs import RunAnswer
from ...views.work import HeartbeatAnswer, ReleaseAnswer, WorkItemAnswer
from .. import branches, issues
from ..inputs import CLAIM_KEY_MEANING, KEY_MEANING, KeyText
from ..work import Heartbeat

RequestT = TypeVar("RequestT", bound=BaseModel)

RunId = Annotated[Identifier, Field(description="The run's id.")]
PhaseId = Annotated[Identifier, Field(description="The phase's id, as the work item has it.")]
Key = Annotated[KeyText | None, Field(description=KEY_MEANING)]


@dataclass(frozen=True, slots=True)
class Tool:
    """A use case with the models of its arguments and its answer; the docstring is for agents.

    `operation` is that of HTTP which calls the same use case: it takes the same roles.
    """

    operation: str
    call: type[BaseModel]
    answer: type[BaseModel]
    run: Callable[[AppContext, Any], object]
    is_read_only: bool = False

    @property
    def description(self) -> str:
        return self.run.__doc__ or ""


class ClaimWork(Claim):
    run_id: Annotated[Identifier | None, Field(description="Only work of this run.")] = None
    idempotency_key: Annotated[KeyText | None, Field(description=CLAIM_KEY_MEANING)] = None


class ClaimAnswer(Shape):
    """`work` is null when there is no work now."""

    work: WorkItemAnswer | None
    message: str


class KeepLease(Heartbeat):
    run_id: RunId
    phase_id: PhaseId


class ReleaseWork(Release):
    run_id: RunId
    phase_id: PhaseId
    idempotency_key: Key = None


class CheckPatch(PatchCheck):
    run_id: RunId


class SubmitBuilderResult(BuilderReport):
    run_id: RunId
    phase_id: PhaseId
    idempotency_key: Key = None


class SubmitAuditorResult(AuditorReport):
    run_id: RunId
    phase_id: PhaseId
    idempotency_key: Key = None


class RecordIssue(IssueReport):
    run_id: RunId
    phase_id: PhaseId
    idempotency_key: Key = None


class GetRun(Closed):
    run_id: RunId


class GetAttention(Closed):
    pass


class GetBacklog(Closed):
    limit: Annotated[int, Field(strict=True, ge=1, le=1_000)] = 100
    cursor: Annotated[str, Field(max_length=500)] | None = None
    status: BacklogStatus | None = None
    category: Word | None = None
    severity: Severity | None = None
    text: Annotated[Text, Field(max_length=64)] | None = None
    order: BacklogOrder = BacklogOrder.FIRST_SEEN


def claim_work(context: AppContext, call: ClaimWork) -> object:
    """Take the next work item, of one run or of any, with a lease on it.

    The item contains everything: task, repository and base commit, what is left of the budgets, the
    gate, earlier attempts, open issues, and for an auditor the patch under review. Send
    `work.lease.token` as `lease_token` from then on. `work` is null when there is no work now: ask
    again in some seconds. An error `run_over` means that there will be none.

    With an `idempotency_key`, a claim whose answer was lost gets its lease again when it is sent
    again; call `heartbeat` at once then, as the lease may end soon.
    """
    wanted, key = _part(call, Claim), call.idempotency_key
    if call.run_id is None:
        claimed = claiming.claim_any(context, wanted, key)
    else:
        claimed = claiming.claim(context, call.run_id, wanted, key)
    item = claimed.item
    if item is None:
        why = f": {claimed.waits}" if claimed.waits else ""
        return {"work": None, "message": f"no work now; ask again in some seconds{why}"}
    message = f"phase '{item.phase_id}' of run '{item.run_id}'"
    return Answer({"work": item, "message": message}, claimed.is_repeat)


def heartbeat(context: AppContext, call: KeepLease) -> object:
    """Keep a lease while you work; the answer says whether to continue.

    `stop`: the run ended, the budget is used up or the lease was lost.
    """
    return claiming.heartbeat(
        context, call.run_id, call.phase_id, call.lease_token, call.tokens_used, call.cost_usd
    )


def release_work(context: AppContext, call: ReleaseWork) -> object:
    """Give a lease back when you cannot work (rate limit, quota, missing program): no try is used.

    The phase waits until `retry_at`; agents that claim with another `account` need not wait. A task
    that you tried and could not solve is not such a case: submit it as failed.
    """
    return claiming.release(
        context, call.run_id, call.phase_id, _part(call, Release), call.idempotency_key
    )


def check_patch(context: AppContext, call: CheckPatch) -> object:
    """Check a patch as a submission would; nothing is recorded, no try is used.

    `problem` says what to repair: for a conflict, hunk by hunk, with the lines that are there now.
    """
    return branches.patch_check(context, call.run_id, _part(call, PatchCheck))


def submit_builder_result(context: AppContext, call: SubmitBuilderResult) -> object:
    """Submit one attempt at a phase. `patch_content` is one patch against the base, as `git diff`
    writes it (the prompt `builder` has the command).

    It becomes a commit on the run's branch, or waits for the Auditor. A patch that conflicts, is
    malformed or against policy uses up one try and ends the lease: claim again, repair, submit.
    """
    report = _part(call, BuilderReport)
    return building.submit_builder_result(
        context, call.run_id, call.phase_id, report, call.idempotency_key
    )


def submit_auditor_result(context: AppContext, call: SubmitAuditorResult) -> object:
    """Submit one review.

    `approve` applies the patch under review, then `suggested_patches`; `revise` sends the phase
    back with `review_notes`; `escalate` fails the phase.
    """
    report = _part(call, AuditorReport)
    return reviewing.submit_auditor_result(
        context, call.run_id, call.phase_id, report, call.idempotency_key
    )


def record_issue(context: AppContext, call: RecordIssue) -> object:
    """Record a problem you saw, in its phase, its run and the project's backlog.

    Use the same `issue_key` for the same problem each time. Every report counts.
    """
    report = _part(call, IssueReport)
    return issue_services.record_issue(
        context, call.run_id, call.phase_id, report, call.idempotency_key
    )


def get_run(context: AppContext, call: GetRun) -> object:
    """Read a run with its tiers and phases: states, budgets, counts, branch and head."""
    return runs.get_run(context, call.run_id)


def get_backlog(context: AppContext, call: GetBacklog) -> object:
    """Read the project's issues over all runs, each with its age in runs and tiers."""
    return issues.backlog(context, **dict(call))


def get_attention(context: AppContext, call: GetAttention) -> object:
    """Read what needs a person now, the most urgent first, each with the call that settles it."""
    return attention_service.attention(context)


_PHASE = "/runs/{run_id}/phases/{phase_id}"
TOOLS = {
    tool.run.__name__: tool
    for tool in (
        Tool("POST /claim", ClaimWork, ClaimAnswer, claim_work),
        Tool(f"POST {_PHASE}/heartbeat", KeepLease, HeartbeatAnswer, heartbeat),
        Tool(f"POST {_PHASE}/release", ReleaseWork, ReleaseAnswer, release_work),
        Tool(
            "POST /runs/{run_id}/patch_check",
            CheckPatch,
            PatchCheckAnswer,
            check_patch,
            is_read_only=True,
        ),
        Tool(
            f"POST {_PHASE}/builder_result",
            SubmitBuilderResult,
            BuilderResultAnswer,
            submit_builder_result,
        ),
        Tool(
            f"POST {_PHASE}/auditor_result",
            SubmitAuditorResult,
            AuditorResultAnswer,
            submit_auditor_result,
        ),
        Tool(f"POST {_PHASE}/record_issue", RecordIssue, RecordIssueAnswer, record_issue),
        Tool("GET /runs/{run_id}", GetRun, RunAnswer, get_run, is_read_only=True),
        Tool(
            "GET /project/issues/backlog", GetBacklog, BacklogAnswer, get_backlog, is_read_only=True
        ),
        Tool("GET /attention", GetAttention, AttentionAnswer, get_attention, is_read_only=True),
    )
}


def _part(call: BaseModel, kind: type[RequestT]) -> RequestT:
    """Return the part of a call that is a body in HTTP; it was validated with the call."""
    given = call.model_fields_set & kind.model_fields.keys()
    return kind.model_construct(given, **{name: getattr(call, name) for name in given})

"""Common steps for results of Builders and Auditors: names, identity, the record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from ..domain.capacity import Unavailable
from ..domain.errors import InvalidError
from ..domain.money import ZERO_USD, cost_at
from ..domain.outcomes import Outcome
from ..domain.results import AuditorReport, BuilderReport, without_patches
from ..domain.terms import Role
from ..models import Lease, Patch, Phase, Submission
from ..store import runs, submissions
from .change import RunChange
from .context import AppContext
from .replies import Once, key_scope, lease_scope, once

# A longer patch is identified by its hash: writing megabytes as JSON is one call of C code, which
# would block the event loop.
LONG_TEXT: Final = 100_000


def identify(
    context: AppContext,
    phase_id: str,
    role: Role,
    report: BuilderReport | AuditorReport,
    idempotency_key: str | None,
) -> Once:
    """Identify a result: by its key, else its lease, else the phase's latest result. (rules §5)

    The same words of two holders of API keys are two results: both may be approvals.
    """
    holder = context.caller.holder
    document = report.model_dump(mode="json")
    for part in (document, *document.get("suggested_patches", ())):
        for name in ("patch_content", "patch_content_base64"):
            if len(part.get(name) or "") > LONG_TEXT:
                part[name] = hashlib.sha256(part[name].encode(errors="replace")).hexdigest()
    return once(
        f"{role}_result",
        {"phase_id": phase_id, "report": document} | ({"holder": holder} if holder else {}),
        [
            key_scope(idempotency_key),
            lease_scope(report.lease_token),
            f"latest:{phase_id}:{role}",
        ],
    )


def record_submission(
    change: RunChange,
    phase: Phase,
    report: BuilderReport | AuditorReport,
    patches: Sequence[Patch],
    lease: Lease | None,
) -> Submission:
    """Store a result as it arrived; its outcome is `failed` until it is decided.

    A result without a model has the one that its claim named.
    """
    if isinstance(report, BuilderReport):
        role, status = Role.BUILDER, str(report.status)
    else:
        role, status = Role.AUDITOR, str(report.recommendation)
    agent = report.agent or (lease.agent if lease else None)
    change.name_agent(agent)
    change.touch(phase.phase_id)
    model = report.model or (lease.model if lease else None)
    cost, price = _cost(change, report, model)
    return submissions.add_submission(
        change.session,
        submissions.SUBMISSIONS.new(
            run_pk=change.run.id,
            phase_pk=phase.id,
            role=role,
            agent=agent,
            actor=change.actor,
            model=model,
            status=status,
            body=without_patches(report),
            tokens_used=report.tokens,
            input_tokens=report.input_tokens,
            output_tokens=report.output_tokens,
            cached_tokens=report.cached_tokens,
            reasoning_tokens=report.reasoning_tokens,
            is_measured=report.is_measured,
            cost_usd=cost,
            price=price,
            retry_at=report.retry_at,
            account=report.account or (lease.account if lease else None),
            outcome=Outcome.FAILED,
            base_commit=change.head,
            created_at=change.now,
        ),
        patches,
    )


def could_not_work(
    phase: Phase,
    role: Role,
    report: BuilderReport | AuditorReport,
    submission: Submission,
    notes: str | None,
) -> Unavailable:
    """Record that a submission is not an attempt, and return the input for the rules.

    Without a reason, the notes are the reason.
    """
    reason = report.reason or notes or "no reason was given"
    submission.outcome, submission.reason = Outcome.UNAVAILABLE, reason
    return Unavailable(
        phase_id=phase.phase_id,
        role=role,
        reason=reason,
        retry_at=report.retry_at,
        account=submission.account,
        tokens=submission.tokens_used,
        cost=submission.cost_usd or ZERO_USD,
        is_measured=submission.is_measured,
    )


def _cost(
    change: RunChange, report: BuilderReport | AuditorReport, model: str | None
) -> tuple[Decimal | None, dict[str, Any] | None]:
    """Return the cost of an attempt, and the price it was computed from if the agent gave none.

    Prices are those of the run's strategy, which do not change after the start.
    """
    if report.cost_usd is not None or model is None or not report.tokens:
        return report.cost_usd, None
    prices = runs.get_strategy(change.session, change.run).get("prices", {})
    if model not in prices:
        return None, None
    price = {"model": model, **prices[model]}
    cost = cost_at(
        price,
        tokens_used=report.tokens,
        input_tokens=report.input_tokens or 0,
        output_tokens=report.output_tokens or 0,
        cached_tokens=report.cached_tokens or 0,
    )
    return cost, price


def require_same_names(
    run_id: str, phase_id: str, body_run_id: str | None, body_phase_id: str | None
) -> None:
    """Refuse a body that names another run or phase than the path. Raises InvalidError."""
    for field, inside, outside in (
        ("run_id", body_run_id, run_id),
        ("phase_id", body_phase_id, phase_id),
    ):
        if inside is not None and inside != outside:
            raise InvalidError(
                f"{field} is '{inside}' in the body and '{outside}' in the path; they must agree",
                errors=[{"loc": field, "message": "differs from the path"}],
            )

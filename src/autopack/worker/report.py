"""From what an agent's command left behind to the result that is handed in."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from ..api.schemas.work import WorkItemAnswer
from ..domain.building import BuilderStatus
from ..domain.issues import IssueReport
from ..domain.results import MAX_SUGGESTED_ISSUES
from ..domain.reviewing import Recommendation
from ..domain.values import MAX_TEXT, Closed, Count, IssueKey, Quantity, Text, Word

MOST_RESULT_BYTES = 1_000_000
MOST_NOTES = 4_000
# A line of a review, however its Markdown is; only the last one that says anything counts, as all
# before it may be a quotation of what was reviewed.
_VERDICT = re.compile(
    r"[\s>*_#`-]*RECOMMENDATION[\s*_`]*:[\s*_`]*(approve|revise|escalate)[\s*_`.]*\Z",
    re.IGNORECASE,
)

Json = dict[str, Any]
Issues = Annotated[tuple[IssueReport, ...], Field(max_length=MAX_SUGGESTED_ISSUES)]


class ResultFile(Closed):
    """What any agent may write to AUTOPACK_RESULT, as a whole or in part."""

    tokens_used: Count = 0
    model: Word | None = None
    cost_usd: Quantity | None = None


class BuilderFile(ResultFile):
    status: BuilderStatus | None = None
    notes: Text | None = None
    suggested_issues: Issues = ()


class AuditorFile(ResultFile):
    recommendation: Recommendation | None = None
    review_notes: Text | None = None
    confidence: Literal["low", "medium", "high"] | None = None
    issues_found: Issues = ()
    resolved_issues: Annotated[tuple[IssueKey, ...], Field(max_length=MAX_SUGGESTED_ISSUES)] = ()


AnyFile = TypeVar("AnyFile", BuilderFile, AuditorFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an agent's command ended. `failure` says why its work does not count, where it does not.

    `nested`: folders that are repositories of their own, which no patch can hold.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    patch: bytes = b""
    nested: Sequence[str] = ()
    failure: str | None = None


def read_result(path: Path, kind: type[AnyFile]) -> tuple[AnyFile, str | None]:
    """Read what an agent wrote of its result; what cannot be used counts as not there.

    Returns it with one sentence on why it cannot be used, or None.
    """
    try:
        if not path.is_file():
            return kind(), None
        with path.open("rb") as file:
            text = file.read(MOST_RESULT_BYTES + 1)
        if len(text) > MOST_RESULT_BYTES:
            return kind(), f"AUTOPACK_RESULT was ignored: it holds over {MOST_RESULT_BYTES} bytes."
        # Checked as JSON, where a list may stand for a tuple.
        return kind.model_validate_json(text), None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        why = f"{place}: {first['msg']}" if place else first["msg"]
    except OSError as error:
        why = str(error.strerror)
    return kind(), f"AUTOPACK_RESULT was ignored: {why}."


def reported_tokens(path: Path) -> int:
    """Return the tokens that an agent which is still at work has reported so far."""
    try:
        with path.open("rb") as file:
            tokens = json.loads(file.read(MOST_RESULT_BYTES)).get("tokens_used")
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else 0


def builder_report(
    item: WorkItemAnswer, ended: Ended, file: BuilderFile, remark: str | None
) -> Json:
    """Write a Builder's result. (03)

    An exit code of 0 with something changed is a success, unless the agent says otherwise; any
    other exit code is a failed try, whatever it says.
    """
    failure = ended.failure
    if failure is None and ended.exit_code:
        failure = f"The command ended with exit code {ended.exit_code}."
    if failure is None and not ended.patch and not item.task.allow_empty:
        failure = "The command changed nothing that git does not ignore."
    status = BuilderStatus.FAILED if failure else file.status or BuilderStatus.SUCCESS
    left_out = (
        f"Left out, as repositories of their own: {', '.join(ended.nested)}."
        if ended.nested
        else None
    )
    body = {
        "status": status,
        "notes": _text(failure, left_out, remark, file.notes),
        "suggested_issues": [issue.model_dump(mode="json") for issue in file.suggested_issues],
        "duration_minutes": round(ended.seconds / 60, 2),
        "base_commit": item.repository.base_commit,
        "probe_results": [_probe(ended)] if ended.exit_code is not None else [],
        **_common(item, file),
    }
    if status is not BuilderStatus.FAILED:
        body |= _patch(ended.patch)
    return body


def auditor_report(
    item: WorkItemAnswer, ended: Ended, file: AuditorFile, remark: str | None
) -> Json | None:
    """Write an Auditor's result, or None when there is no verdict. (03)

    The verdict stands in the result file, else in the last line of the output. What the agent
    changed goes along with an approval, and with a revision where it can be a fix-up.
    """
    verdict = file.recommendation or _last_word(ended.stdout)
    if verdict is None or ended.failure is not None or ended.exit_code:
        return None
    is_pending = item.review is not None and item.review.is_pending
    takes_patch = verdict is Recommendation.APPROVE or (
        verdict is Recommendation.REVISE and not is_pending and _has_patch(item)
    )
    fix_up = {"description": "What the Auditor changed.", **_patch(ended.patch)}
    return {
        "recommendation": verdict,
        "review_notes": _text(remark, file.review_notes or ended.stdout[-MOST_NOTES:]),
        "confidence": file.confidence,
        "issues_found": [issue.model_dump(mode="json") for issue in file.issues_found],
        "resolved_issues": list(file.resolved_issues),
        "suggested_patches": [fix_up] if ended.patch and takes_patch else [],
        "audit_id": item.review.audit_id if item.review else None,
        **_common(item, file),
    }


def refused_report(item: WorkItemAnswer, tokens_used: int, why: str) -> Json:
    """Write the failed try that stands for a Builder's result which the service does not take."""
    return {
        "status": BuilderStatus.FAILED,
        "notes": _text(why),
        "tokens_used": tokens_used,
        "lease_token": item.lease.token if item.lease else None,
    }


def _last_word(output: str) -> Recommendation | None:
    lines = [line for line in output.splitlines() if any(sign.isalnum() for sign in line)]
    said = _VERDICT.match(lines[-1]) if lines else None
    return Recommendation(said[1].lower()) if said else None


def _common(item: WorkItemAnswer, file: ResultFile) -> Json:
    return {
        "tokens_used": file.tokens_used,
        "model": file.model,
        "cost_usd": file.cost_usd,
        "lease_token": item.lease.token if item.lease else None,
    }


def _has_patch(item: WorkItemAnswer) -> bool:
    review = item.review
    return review is not None and bool(review.patch_content or review.patch_content_base64)


def _patch(patch: bytes) -> Json:
    if not patch:
        return {}
    try:
        return {"patch_content": patch.decode()}
    except UnicodeDecodeError:
        return {"patch_content_base64": base64.b64encode(patch).decode()}


def _probe(ended: Ended) -> Json:
    return {
        "probe_type": "builder_command",
        "exit_code": ended.exit_code,
        "stdout": _text(ended.stdout[-MAX_TEXT:]) or "",
        "stderr": _text(ended.stderr[-MAX_TEXT:]) or "",
        "duration_seconds": round(ended.seconds, 2),
    }


def _text(*parts: str | None) -> str | None:
    """Join what there is into a text that the service takes."""
    text = "\n".join(part.strip() for part in parts if part).replace("\0", "")
    return text.encode(errors="replace").decode()[:MAX_TEXT] or None

"""From the output and files of an agent's command to the result that the worker submits."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from ..domain.issues import IssueReport
from ..domain.listing import listed
from ..domain.results import MAX_SUGGESTED_ISSUES
from ..domain.terms import BuilderStatus, Recommendation
from ..domain.values import MAX_TEXT, Closed, Count, IssueKey, Text, Usd, Word
from ..views.work import WorkItemAnswer
from .agents import Said

MAX_RESULT_BYTES = 1_000_000
MAX_NOTES = 4_000
MAX_NAMED = 10
MAX_LINE = 500
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours of a terminal
# The verdict line of a review, in any Markdown. Only the last line with text counts, since an
# earlier one may be a quotation from the reviewed text.
_VERDICT = re.compile(
    r"[\s>*_#`-]*RECOMMENDATION[\s*_`]*:[\s*_`]*(approve|revise|escalate)[\s*_`.]*\Z",
    re.IGNORECASE,
)

_FENCED = re.compile(r"```(?:json)?\s*\n(\{[^`]*\})\s*\n```\s*\Z")

Json = dict[str, Any]
Issues = Annotated[tuple[IssueReport, ...], Field(max_length=MAX_SUGGESTED_ISSUES)]


class ResultFile(Closed):
    """What any agent may answer as JSON, in full or in part: in its file, or as its last output.

    `reason` and `retry_at` go with the status or recommendation `unavailable`.
    """

    tokens_used: Count = 0
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_tokens: Count | None = None
    model: Word | None = None
    cost_usd: Usd | None = None
    reason: Text | None = None
    retry_at: AwareDatetime | None = None


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
    """How an agent's command ended. `failure` says why its work does not count, if it does not.

    `stdout` is for people to read; `said` has the figures that a known agent printed. `unavailable`
    says why it could not work, if it could not.

    `nested`: folders that are other repositories, which a patch cannot contain. `dropped`: files of
    agents and editors themselves, which are left out of the patch.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    patch: bytes = b""
    nested: Sequence[str] = ()
    dropped: Sequence[str] = ()
    failure: str | None = None
    said: Said | None = None
    unavailable: str | None = None


def read_result(path: Path, kind: type[AnyFile]) -> tuple[AnyFile, str | None]:
    """Read an agent's result file; a file that cannot be used counts as missing.

    Returns it with one sentence on why it cannot be used, or None.
    """
    try:
        text = _bytes_of(path, MAX_RESULT_BYTES + 1)
        if text is None:
            return kind(), None
        if len(text) > MAX_RESULT_BYTES:
            return kind(), f"The answer file was ignored: it has over {MAX_RESULT_BYTES} bytes."
        # Validated as JSON, where a list is a valid tuple.
        return kind.model_validate_json(text), None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        why = f"{place}: {first['msg']}" if place else first["msg"]
    except OSError as error:
        why = str(error.strerror)
    return kind(), f"The answer file was ignored: {why}."


def with_last_words(file: AnyFile, text: str, remark: str | None) -> tuple[AnyFile, str | None]:
    """Prefer the JSON at the end of an agent's output to its file, which another process may write.

    That JSON is one object with the file's fields: the whole output, its last line, or its last
    fenced block.
    """
    for candidate in _last_objects(text):
        try:
            said = type(file).model_validate_json(candidate)
        except ValidationError:
            continue
        if not said.model_fields_set:
            continue
        fields = {name: getattr(said, name) for name in said.model_fields_set}
        return file.model_copy(update=fields), None if file == type(file)() else remark
    return file, remark


def _last_objects(text: str) -> Iterator[str]:
    text = text.strip()
    last_line = text.rpartition("\n")[2].strip()
    fenced = _FENCED.search(text)
    for candidate in (text, last_line, fenced[1] if fenced else ""):
        if candidate.startswith("{") and len(candidate) <= MAX_RESULT_BYTES:
            yield candidate


def _bytes_of(path: Path, most: int) -> bytes | None:
    """Read a file of an agent's work tree; None unless it is a regular file (a link is not)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def reported_tokens(path: Path) -> int:
    """Return the tokens that a running agent has reported so far."""
    try:
        tokens = json.loads(_bytes_of(path, MAX_RESULT_BYTES) or b"").get("tokens_used")
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else 0


def builder_report(
    item: WorkItemAnswer, ended: Ended, file: BuilderFile, remark: str | None
) -> Json:
    """Return a Builder's result. (docs/agents.md)

    An exit code of 0 with a change is a success, unless the agent's answer says otherwise; any
    other exit code is a failed try, whatever the answer says.
    """
    if ended.unavailable is not None or file.status is BuilderStatus.UNAVAILABLE:
        return {
            "status": BuilderStatus.UNAVAILABLE,
            "notes": _text(remark, file.notes),
            "probe_results": [_probe(ended)] if ended.exit_code is not None else [],
            **_why_unavailable(item, ended, file),
        }
    failure = ended.failure
    if failure is None and ended.exit_code:
        failure = f"The command ended with exit code {ended.exit_code}."
    if failure is None and not ended.patch and not item.task.allow_empty:
        failure = "The command changed nothing that git does not ignore."
    status = BuilderStatus.FAILED if failure else file.status or BuilderStatus.SUCCESS
    body = {
        "status": status,
        "notes": _text(failure, _left_out(ended), remark, file.notes),
        "suggested_issues": [issue.model_dump(mode="json") for issue in file.suggested_issues],
        "duration_minutes": round(ended.seconds / 60, 2),
        "base_commit": item.repository.base_commit,
        "probe_results": [_probe(ended)] if ended.exit_code is not None else [],
        **_common(item, file, ended),
    }
    if status is not BuilderStatus.FAILED:
        body |= _patch(ended.patch)
    return body


def auditor_report(
    item: WorkItemAnswer, ended: Ended, file: AuditorFile, remark: str | None
) -> Json | None:
    """Return an Auditor's result, or None without a recommendation. (docs/agents.md)

    The recommendation is the last line of the output, else a field of the answer. The agent's
    changes are submitted with an approval, and with a revision if they can be a fix-up.
    """
    verdict = last_word(ended.stdout) or file.recommendation
    if ended.unavailable is not None or verdict is Recommendation.UNAVAILABLE:
        return {
            "recommendation": Recommendation.UNAVAILABLE,
            "review_notes": _text(remark, file.review_notes or ended.stdout[-MAX_NOTES:]),
            "audit_id": item.review.audit_id if item.review else None,
            **_why_unavailable(item, ended, file),
        }
    if verdict is None or ended.failure is not None or ended.exit_code:
        return None
    is_pending = item.review is not None and item.review.is_pending
    takes_patch = verdict is Recommendation.APPROVE or (
        verdict is Recommendation.REVISE and not is_pending and _has_patch(item)
    )
    fix_up = {"description": "What the Auditor changed.", **_patch(ended.patch)}
    return {
        "recommendation": verdict,
        "review_notes": _text(
            _left_out(ended), remark, file.review_notes or ended.stdout[-MAX_NOTES:]
        ),
        "confidence": file.confidence,
        "issues_found": [issue.model_dump(mode="json") for issue in file.issues_found],
        "resolved_issues": list(file.resolved_issues),
        "suggested_patches": [fix_up] if ended.patch and takes_patch else [],
        "audit_id": item.review.audit_id if item.review else None,
        "output_tail": _text(ended.stdout[-MAX_NOTES:], ended.stderr[-MAX_NOTES:]),
        **_common(item, file, ended),
    }


def refused_report(item: WorkItemAnswer, refused: Json, why: str) -> Json:
    """Return a failed try in place of a Builder's result that the service refused.

    What the attempt spent counts nevertheless.
    """
    return {
        "status": BuilderStatus.FAILED,
        "notes": _text(why),
        **{name: refused[name] for name in _FIGURES if name in refused},
        "lease_token": item.lease.token if item.lease else None,
    }


def last_line(ended: Ended) -> str:
    """Return the last line with a word that the agent printed, after a colon; without one nothing.

    A known agent's own words come before its standard error, which has its log too.
    """
    outputs = [ended.stderr, ended.stdout]
    if ended.said is not None and ended.said.is_known:
        outputs.reverse()
    for output in outputs:
        for line in reversed(_CONTROL.sub("", output).splitlines()):
            if any(sign.isalnum() for sign in line):
                return f": {line.strip()[:MAX_LINE]}"
    return ""


def _left_out(ended: Ended) -> str | None:
    reasons = {
        "they are other repositories": ended.nested,
        "agents and editors made them for themselves": ended.dropped,
    }
    return _text(
        *(
            f"Left out, since {why}: {listed(paths, MAX_NAMED)}."
            for why, paths in reasons.items()
            if paths
        )
    )


def last_word(output: str) -> Recommendation | None:
    """Return the recommendation that the last line with a word names, if it does."""
    lines = [line for line in output.splitlines() if any(sign.isalnum() for sign in line)]
    said = _VERDICT.match(lines[-1]) if lines else None
    return Recommendation(said[1].lower()) if said else None


def _why_unavailable(item: WorkItemAnswer, ended: Ended, file: ResultFile) -> Json:
    return {
        "reason": _text(ended.unavailable or file.reason),
        "retry_at": file.retry_at.isoformat() if file.retry_at else None,
        "output_tail": _text(ended.stdout[-MAX_NOTES:], ended.stderr[-MAX_NOTES:]),
        **_common(item, file, ended),
    }


def _common(item: WorkItemAnswer, file: ResultFile, ended: Ended) -> Json:
    """Return a result's common fields; usage is what a known agent printed, else its answer's."""
    said = ended.said if ended.said and ended.said.tokens else file
    tokens = said.tokens if isinstance(said, Said) else file.tokens_used
    cost = (ended.said.cost_usd if ended.said else None) or file.cost_usd
    kinds = {name: getattr(said, name) for name in _KINDS}
    if not tokens:
        tokens = sum(kind or 0 for kind in kinds.values())
    return {
        "tokens_used": tokens,
        **kinds,
        "model": (ended.said.model if ended.said else None) or file.model,
        "cost_usd": None if cost is None else str(cost),
        "lease_token": item.lease.token if item.lease else None,
    }


_KINDS = ("input_tokens", "output_tokens", "cached_tokens")
_FIGURES = ("tokens_used", *_KINDS, "reasoning_tokens", "is_measured", "model", "cost_usd")


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
    """Join texts into one that the service accepts."""
    text = "\n".join(part.strip() for part in parts if part).replace("\0", "")
    return text.encode(errors="replace").decode()[:MAX_TEXT] or None

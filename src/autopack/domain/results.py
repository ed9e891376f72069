"""What Builders and Auditors post. (rules §2.2)"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from .errors import InvalidError
from .issues import IssueReport
from .terms import BuilderStatus, CiProfile, Recommendation, Verdict
from .values import (
    Closed,
    Count,
    FilePath,
    Identifier,
    IssueKey,
    Name,
    Quantity,
    Several,
    Text,
    Usd,
    Word,
)

MAX_SUGGESTED_ISSUES = 200
MAX_LOG_TAIL = 4_000
UNAVAILABLE: Final = "unavailable"  # a Builder's status, an Auditor's recommendation
TOKENS_MEANING: Final = (
    "LLM tokens that this attempt used since its claim, all kinds together; never a running total "
    "over attempts. A later figure of the same attempt replaces an earlier one."
)
MEASURED_MEANING: Final = (
    "Whether a gateway between the agent and its model counted the tokens. It rests on the word of "
    "the client that sends the result."
)
ACCOUNT_MEANING: Final = (
    "A short label of the account whose limits the agent shares, such as `openai-team`."
)
MODEL_MEANING: Final = (
    "The model that works. The ruleset may ask that an Auditor's differs from the Builder's."
)


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "contains a lone surrogate, which UTF-8 cannot encode: send patch_content_base64"
        ) from None
    return value


def _ascii(value: str) -> str:
    if not value.isascii():
        raise ValueError("is not valid base64")
    return value


# A patch is bytes with its own limit (`max_patch_bytes`), so it is not a Text. Base64 is decoded
# where its bytes are needed; here it only becomes text of which a hash can be made.
PatchText = Annotated[str, AfterValidator(_encodable)]
PatchBase64 = Annotated[str, AfterValidator(_ascii)]


class ProbeResult(Closed):
    """A command that an agent ran to check its work."""

    probe_type: Word
    exit_code: Annotated[int, Field(strict=True, ge=-(2**31), le=2**31)] | None = None
    stdout: Text = ""
    stderr: Text = ""
    duration_seconds: Quantity | None = None


class AgentReport(Closed):
    """The common fields of both roles' results: agent, tokens, cost, and why it could not work."""

    lease_token: Word | None = None
    agent: Word | None = None
    model: Annotated[Word | None, Field(description=MODEL_MEANING)] = None
    tokens_used: Annotated[Count, Field(description=TOKENS_MEANING)] = 0
    input_tokens: Annotated[Count | None, Field(description="Tokens that the model read.")] = None
    output_tokens: Annotated[Count | None, Field(description="Tokens that the model wrote.")] = None
    cached_tokens: Annotated[
        Count | None, Field(description="Tokens read from a cache; not part of `input_tokens`.")
    ] = None
    reasoning_tokens: Annotated[
        Count | None,
        Field(description="The part of `output_tokens` that the answer does not show."),
    ] = None
    is_measured: Annotated[bool, Field(description=MEASURED_MEANING)] = False
    cost_usd: Annotated[
        Usd | None,
        Field(description="Cost of this attempt in USD; by default, from the ruleset's `prices`."),
    ] = None
    output_tail: Annotated[
        Text | None, Field(description="The end of the agent's output, for people to read.")
    ] = None
    reason: Annotated[
        Text | None, Field(description="Why the agent was `unavailable`, for example a rate limit.")
    ] = None
    retry_at: Annotated[
        AwareDatetime | None, Field(description="When an `unavailable` agent can work again.")
    ] = None
    account: Annotated[Word | None, Field(description=ACCOUNT_MEANING)] = None

    @property
    def tokens(self) -> int:
        """The tokens of the attempt: the given total, else the sum of the kinds."""
        if "tokens_used" in self.model_fields_set:
            return self.tokens_used
        return (self.input_tokens or 0) + (self.output_tokens or 0) + (self.cached_tokens or 0)

    @model_validator(mode="after")
    def _reasoning_is_output(self) -> Self:
        if self.reasoning_tokens is not None and self.reasoning_tokens > (self.output_tokens or 0):
            raise ValueError(
                f"reasoning_tokens is {self.reasoning_tokens}, and output_tokens, of which it is a "
                f"part, is {self.output_tokens or 0}"
            )
        return self

    @model_validator(mode="after")
    def _waits_only_where_unavailable(self) -> Self:
        status = getattr(self, "status", None) or getattr(self, "recommendation", None)
        if status != UNAVAILABLE:
            for name in ("reason", "retry_at"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is only for results that are '{UNAVAILABLE}'")
        return self


class BuilderReport(AgentReport):
    """A Builder's result: one attempt at a phase."""

    phase_id: Identifier | None = None
    run_id: Identifier | None = None
    status: BuilderStatus
    patch_content: PatchText | None = None
    patch_content_base64: PatchBase64 | None = None
    files_changed: Several[FilePath] = ()
    lines_added: Count | None = None
    lines_removed: Count | None = None
    builder_attempts: Count | None = None
    duration_minutes: Quantity | None = None
    notes: Text | None = None
    probe_results: tuple[ProbeResult, ...] = ()
    suggested_issues: tuple[IssueReport, ...] = ()
    base_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None

    def patch(self) -> bytes | None:
        """Return the patch's bytes, None when there is none. Raises InvalidError."""
        return _patch_bytes(self.patch_content, self.patch_content_base64)


class PatchCheck(Closed):
    """A patch that an agent checks before it submits it."""

    phase_id: Identifier | None = None
    patch_content: PatchText | None = None
    patch_content_base64: PatchBase64 | None = None
    base_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None

    def patch(self) -> bytes:
        """Return the patch's bytes. Raises InvalidError."""
        patch = _patch_bytes(self.patch_content, self.patch_content_base64)
        if patch is None:
            raise InvalidError("patch_content: send a patch, here or as patch_content_base64")
        return patch


class CheckCounts(Closed):
    """The counts of a CI run."""

    total: Count
    passed: Count = 0
    failed: Count = 0
    skipped: Count = 0

    @property
    def problem(self) -> str | None:
        """Why a run with these counts is not green, though it ended well; None: it is. (rules §6)

        A report may give the total alone, so what was not skipped has run.
        """
        if self.failed:
            return "tests failed"
        return "no test ran" if self.total <= self.skipped else None


class CiReport(Closed):
    """The report of a CI run."""

    phase_id: Identifier | None = None
    run_id: Identifier | None = None
    commit_sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    profile: CiProfile | None = None
    verdict: Verdict
    tests: CheckCounts | None = None
    failing_checks: Several[Name] = ()
    passed_checks: Annotated[
        Several[Name],
        Field(description="Names of checks that ran and passed: they can close an aged issue."),
    ] = ()
    flaky: bool = False
    url: Annotated[str, Field(max_length=2_000, pattern=r"^https?://[!-~]+$")] | None = None
    summary: Text | None = None

    def judged(self) -> tuple[Verdict, str]:
        """Return the verdict that counts, and its reason. (rules §6)"""
        problem = self.tests and self.tests.problem
        if self.verdict is Verdict.GREEN and problem:
            return Verdict.RED, f"reported as green, but {problem}"
        checks = ", ".join(self.failing_checks[:5])
        return self.verdict, self.summary or checks or f"reported as {self.verdict}"


class AuditRequest(Closed):
    """A review is requested."""

    phase_id: Identifier | None = None
    run_id: Identifier | None = None
    tier_id: Identifier | None = None
    review_focus: Text | None = None
    auditor_profile: Word | None = None


class SuggestedPatch(Closed):
    """A patch of the Auditor's own."""

    description: Text | None = None
    patch_content: PatchText | None = None
    patch_content_base64: PatchBase64 | None = None
    files_affected: Several[FilePath] = ()

    def patch(self) -> bytes | None:
        """Return the patch's bytes, None when there is none. Raises InvalidError."""
        return _patch_bytes(self.patch_content, self.patch_content_base64)


class AuditorReport(AgentReport):
    """An Auditor's result: one review of a phase."""

    phase_id: Identifier | None = None
    run_id: Identifier | None = None
    review_notes: Text | None = None
    recommendation: Recommendation
    confidence: Literal["low", "medium", "high"] | None = None
    issues_found: tuple[IssueReport, ...] = ()
    resolved_issues: Several[IssueKey] = ()
    suggested_patches: tuple[SuggestedPatch, ...] = ()
    auditor_attempts: Count | None = None
    audit_id: Count | None = None


def without_patches(report: BuilderReport | AuditorReport) -> dict[str, Any]:
    """Return the part of a report to store; its patches are stored elsewhere.

    A lease token is a secret and is not stored.
    """
    document = report.model_dump(
        mode="json",
        exclude={"patch_content", "patch_content_base64", "lease_token"},
        exclude_unset=True,
    )
    for suggested in document.get("suggested_patches", ()):
        suggested.pop("patch_content", None)
        suggested.pop("patch_content_base64", None)
    return document


def log_tail(body: Mapping[str, Any], ci_tails: Sequence[str] = ()) -> str | None:
    """Return the last output of an agent's probes, from its stored report, and then of CI."""
    texts = [
        f"$ {probe['probe_type']}: exit {probe.get('exit_code')}\n"
        + "\n".join(part.rstrip("\n") for name in ("stdout", "stderr") if (part := probe.get(name)))
        for probe in body.get("probe_results", ())
    ]
    if not texts and body.get("output_tail"):
        texts = [body["output_tail"]]
    return "\n".join([*texts, *ci_tails])[-MAX_LOG_TAIL:] or None


def _patch_bytes(text: str | None, encoded: str | None) -> bytes | None:
    if text and encoded:
        raise InvalidError("send patch_content or patch_content_base64, not both")
    if encoded:
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidError("patch_content_base64 is not valid base64") from None
    return text.encode() if text else None

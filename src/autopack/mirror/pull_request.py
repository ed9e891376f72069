"""The pull request that proposes a run's branch: its title and its Markdown body.

Like the pages, it is a function of the run alone. A forge acts on text: it notifies mentioned
accounts and closes named issues. So text of agents is escaped so that it does neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..domain.listing import listed
from ..domain.money import measured_text, short_usd
from ..domain.run import CompletedBy, DebtStatus
from ..domain.run_issues import OpenIssue
from ..domain.state_words import PHASE_WORDS
from ..domain.states import PhaseStatus
from ..domain.terms import Verdict
from ..views.promotion import PullRequestAnswer
from ..views.runs import PhaseDetail, RunDetail
from .dependencies import dependency_section
from .markdown import NONE, bullets, code, inline, plain, table
from .pages import DEBT_WORDS, RUN_WORDS, verdict_words

MAX_TITLE = 120
MAX_PHASES = 100  # GitHub accepts 65,536 characters
MAX_REASONS = 50
MAX_EVIDENCE = 100
MAX_ACTORS = 20
_NAME = 100
_REASON = 300
_TEXT = 150
_CALL_SIGNS = re.compile(r"(?<!@)@++(?=\w)|(?<!#)#++(?=\d)|(?<=GH)-(?=\d)", re.IGNORECASE)


def pull_request(
    run: RunDetail,
    *,
    reasons: Sequence[str],
    warnings: Sequence[str],
    open_issues: Sequence[OpenIssue],
) -> PullRequestAnswer:
    """Return a run's pull request; if the run is not eligible, it starts with the reasons."""
    phases = run.phases
    blocks = (
        _opening(run, phases),
        "## Verdict",
        *_verdict(run, reasons, warnings),
        "## What was done",
        _phase_table(phases),
        *dependency_section(phases),
        *_evidence(phases),
        *_issues(open_issues),
        "## Figures",
        bullets(f"**{name}:** {value}" for name, value in _figures(run, phases)),
        f"---\n\nWritten by Autopack for run {code(run.run_id)}, revision {run.revision}.",
    )
    body = "\n\n".join(block for block in blocks if block) + "\n"
    return PullRequestAnswer(
        title=_title(run, phases), body=body, head=run.branch, base=run.base_branch
    )


def pull_request_page(request: PullRequestAnswer) -> bytes:
    """Render `pull_request.md`: the title as its heading, then the body."""
    return f"# {request.title}\n\n{request.body}".encode("utf-8", "replace")


def _title(run: RunDetail, phases: Sequence[PhaseDetail]) -> str:
    """Return the title: the phase's name, or the tiers' names of a plan with several phases."""
    tiers = [tier.name for tier in run.tiers if tier.phases]
    names = tiers if len(phases) > 1 else [phase.name for phase in phases]
    others = len(names) - 1
    more = f" and {others} more tier{'s' if others > 1 else ''}" if others > 0 else ""
    prefix = f"[{run.run_id}] "
    name = _CALL_SIGNS.sub("", plain(names[0])) if names else "no phases"
    room = max(20, MAX_TITLE - len(prefix) - len(more))
    return prefix + (name if len(name) <= room else name[: room - 1].rstrip() + "…") + more


def _opening(run: RunDetail, phases: Sequence[PhaseDetail]) -> str:
    done = sum(phase.state is PhaseStatus.COMPLETE for phase in phases)
    what = f"{done} of {len(phases)} phases complete" if len(phases) != 1 else "1 phase"
    return (
        f"Merges {code(run.branch)} into {code(run.base_branch)}: {what}. "
        f"**{RUN_WORDS[run.state]}** (`{run.state}`)."
    )


def _verdict(run: RunDetail, reasons: Sequence[str], warnings: Sequence[str]) -> Iterable[str]:
    if reasons:
        yield f"**Not eligible** for {code(run.base_branch)}; do not merge:"
        yield _listed(reasons)
    else:
        yield f"**Eligible** for {code(run.base_branch)}: every rule for promotion is met."
    if warnings:
        yield "To look at before merging:"
        yield _listed(warnings)


def _listed(texts: Sequence[str]) -> str:
    shown = [inline(text, _REASON) for text in texts[:MAX_REASONS]]
    if len(texts) > MAX_REASONS:
        shown.append(f"and {len(texts) - MAX_REASONS} more")
    return bullets(shown)


def _phase_table(phases: Sequence[PhaseDetail]) -> str:
    if not phases:
        return "No phases."
    header = ("Phase", "What", "State", "CI", "Attempts", "Commit")
    rows = (
        (
            code(phase.phase_id),
            inline(phase.name, _NAME),
            PHASE_WORDS[phase.state]
            + (" by hand" if phase.completed_by is CompletedBy.HAND else ""),
            verdict_words(phase) if phase.verdict else NONE,
            str(phase.builder_attempts_used + phase.auditor_attempts_used),
            (phase.commit or NONE)[:12],  # a bare sha becomes a link
        )
        for phase in phases[:MAX_PHASES]
    )
    listing = table(header, rows, right=(4,))
    hidden = len(phases) - MAX_PHASES
    return f"{listing}\n\n{hidden} more phases are not listed." if hidden > 0 else listing


def _evidence(phases: Sequence[PhaseDetail]) -> Iterable[str]:
    """Say what the verdicts rest on beside the command, for the phases of the table."""
    rows = [
        (code(phase.phase_id), str(each.kind), _words(each.result), inline(each.reason, _TEXT))
        for phase in phases[:MAX_PHASES]
        for each in phase.evidence
    ]
    if rows:
        yield "## Evidence"
        yield table(("Phase", "Measured", "Result", "Found"), rows[:MAX_EVIDENCE])
        if len(rows) > MAX_EVIDENCE:
            yield f"{len(rows) - MAX_EVIDENCE} more measurements are not listed."


def _words(name: str) -> str:
    return name.replace("_", " ")


def _issues(issues: Sequence[OpenIssue]) -> Iterable[str]:
    if not issues:
        return
    yield "## Open issues"
    header = ("Issue", "Severity", "Seen", "Phases", "Description")
    yield table(
        header,
        (
            (
                code(issue.issue_key, _NAME),
                issue.effective_severity,
                f"{issue.occurrence_count}x",
                ", ".join(map(code, issue.phases[:5])),
                inline(issue.description, _TEXT) if issue.description else NONE,
            )
            for issue in issues
        ),
        right=(2,),
    )


def _figures(run: RunDetail, phases: Sequence[PhaseDetail]) -> Iterable[tuple[str, str]]:
    green = sum(phase.verdict is Verdict.GREEN for phase in phases)
    yield "CI", f"{green} of {len(phases)} phases have a green verdict"
    measured = measured_text(run.tokens_used, run.tokens_measured)
    words = f"{run.tokens_used:,} of {run.token_cap:,}"
    yield "Tokens", f"{words}, {measured}" if measured else words
    if run.cost_usd:
        yield "Cost", short_usd(run.cost_usd)
    if run.debt_status is not DebtStatus.CLEAN:
        yield "Debt", DEBT_WORDS[run.debt_status]
    if run.started_by:
        yield "Started by", code(run.started_by)
    for what, actors in (
        ("Built by", [phase.built_by for phase in phases]),
        ("Reviewed by", [phase.reviewed_by for phase in phases]),
        ("Approved by", [each for phase in phases for each in phase.approved_by]),
        ("Judged by", [phase.judged_by for phase in phases]),
    ):
        named = dict.fromkeys(actor for actor in actors if actor is not None)
        if named:
            yield what, listed([code(each, _NAME) for each in named], MAX_ACTORS)
    if run.continues is not None:
        yield "Continues", f"{code(run.continues)}, recorded at {run.continued_commit}"
    if run.rebases is not None:
        yield "Rebases", f"{code(run.rebases)}, recorded at {run.rebased_commit}"
    yield "Base commit", run.base_commit
    yield "Head commit", run.head_commit
    if run.last_snapshot:
        yield "Last snapshot", code(run.last_snapshot)

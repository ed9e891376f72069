"""`run.json`: the record of a finished run, which the checker verifies. (docs/promotion.md)

It names every other file of the run's folder by its SHA-256, and every commit of the branch by its
ids. So the hash of this one file covers the whole run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..domain.record_text import SCHEMA_VERSION
from ..views.record import RecordedCiRun, RecordedCommit
from ..views.runs import PhaseDetail, RunDetail
from .documents import encode_with_lines, lines_of

_RUN = (
    "run_id",
    "revision",
    "project_id",
    "branch",
    "base_branch",
    "base_commit",
    "continues",
    "continued_commit",
    "rebases",
    "rebased_commit",
    "head_commit",
    "last_snapshot",
    "state",
    "failure_code",
    "failure_reason",
    "is_rolled_back",
    "base_problem",
    "is_sandbox_required",
    "dependencies_need_review",
    "is_parallel",
    "run_scope",
    "safety_profile",
    "strategy_version",
    "started_by",
    "created_at",
    "ended_at",
)
_BUDGETS = (
    "token_cap",
    "tokens_used",
    "tokens_measured",
    "cost_cap_usd",
    "cost_usd",
    "max_phases",
    "max_duration_minutes",
    "max_minor_issues_total",
    "minor_issues_count",
    "major_issues_count",
    "debt_status",
)
_TIER = (
    "tier_id",
    "tier_index",
    "name",
    "state",
    "cleanliness",
    "cleanliness_reasons",
    "token_cap",
    "tokens_used",
    "tokens_measured",
    "cost_usd",
    "ci_run_cap",
    "ci_runs_count",
    "minors_tolerated",
    "minor_issues_count",
    "majors_tolerated",
    "major_issues_count",
)
_PHASE = (
    "phase_id",
    "tier_id",
    "tier_index",
    "phase_index",
    "name",
    "task_category",
    "complexity",
    "state",
    "ci_profile",
    "verdict",
    "sandbox",
    "evidence_required",
    "evidence",
    "completed_by",
    "independence",
    "approvals_needed",
    "depends_on",
    "built_by",
    "reviewed_by",
    "approved_by",
    "judged_by",
    "max_builder_attempts",
    "builder_attempts_used",
    "max_auditor_attempts",
    "auditor_attempts_used",
    "incident_token_cap",
    "tokens_used",
    "tokens_measured",
    "cost_usd",
    "minor_issues_count",
    "major_issues_count",
    "start_commit",
    "commit",
    "snapshot_tag",
    "failure_reason",
)


def run_record(
    run: RunDetail,
    *,
    commits: Sequence[RecordedCommit],
    ci_runs: Mapping[str, Sequence[RecordedCiRun]],
    events: Iterable[Mapping[str, Any]],
) -> Callable[[Mapping[str, bytes]], bytes]:
    """Return a function that renders `run.json` with all other files of the run's folder.

    A statement is about the record without the statement's own file, so a run needs both.
    """
    phases = run.phases
    head = {
        "schema_version": SCHEMA_VERSION,
        **_read(run, _RUN),
        "budgets": _read(run, _BUDGETS),
        "promotion": {
            "eligible": run.promotion_eligible_to_main,
            "reasons": run.promotion_reasons,
            "warnings": run.promotion_warnings,
        },
    }
    recorded = [_phase(phase, ci_runs.get(phase.phase_id, ())) for phase in phases]
    lists = {
        "tiers": lines_of(_read(tier, _TIER) for tier in run.tiers),
        "phases": lines_of(recorded),
        "commits": lines_of(dict(commit) for commit in commits),
        "files": "",
        "events": lines_of(events),
    }

    def render(files: Mapping[str, bytes]) -> bytes:
        hashes = ((name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files))
        named = lines_of({"path": name, "sha256": digest} for name, digest in hashes)
        return encode_with_lines(head, {**lists, "files": named})

    return render


def _phase(phase: PhaseDetail, ci_runs: Sequence[RecordedCiRun]) -> dict[str, Any]:
    return {
        **_read(phase, _PHASE),
        "dependencies": [each.model_dump(exclude_none=True) for each in phase.dependencies],
        "evidence": [dict(each) for each in phase.evidence],
        "ci_runs": [dict(run) for run in ci_runs],
    }


def _read(source: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}

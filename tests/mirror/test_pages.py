"""What a person finds in the files of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from autopack.domain.issues import IssueState, IssueStatus
from autopack.domain.outcomes import Outcome
from autopack.domain.run import CompletedBy, DebtStatus, FailureCode
from autopack.domain.run_issues import IndexEntry
from autopack.domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from autopack.domain.terms import Role, Severity, Verdict
from autopack.mirror import Mirror
from autopack.views.issues import IssueIndexAnswer, PhaseIssue
from autopack.views.results import AttemptDetail
from autopack.views.runs import PhaseDetail, RunDetail

pytestmark = pytest.mark.unit

MakeRun = Callable[..., RunDetail]
MakePhase = Callable[..., PhaseDetail]
MakeAttempt = Callable[..., AttemptDetail]
MakeIssue = Callable[..., PhaseIssue]

BASE = "0123456789abcdef0123456789abcdef01234567"
FIRST = "aaaaaaa111111111111111111111111111111111"
SECOND = "bbbbbbb222222222222222222222222222222222"
HOSTILE = (
    "# Done\n"
    "| a | b |\n|---|---|\n"
    "<script>alert(1)</script><!-- \n"
    "```\n---\n===\n"
    "[click](https://evil.example) ![x](http://evil.example/x.png) www.evil.example\n"
    "- [x] item\n1. one\n> quoted\n"
    "\x1b[31mred\x00\r\u2028\u202eevil\ud800 `code` **bold** _em_ ~~gone~~ $x$ &lt;b&gt; \\"
)


def page(mirror: Mirror, name: str) -> str:
    return (mirror.folder("run-001") / name).read_text()


@pytest.fixture
def failed_run(
    a_run: MakeRun, a_phase: MakePhase, an_attempt: MakeAttempt, an_issue: MakeIssue
) -> RunDetail:
    """One phase complete, one failed after two tries, one never started."""
    noon = a_run().created_at
    complete = a_phase(
        "P1.1",
        name="Add the login form",
        description="Users sign in.\n\nKeep the old page.",
        state=PhaseStatus.COMPLETE,
        builder_attempts_used=1,
        tokens_used=120_000,
        start_commit=BASE,
        commit=FIRST,
        snapshot_tag="autonomous/run-001/tier-T1/phase-P1.1",
        minor_issues_count=1,
        issue_state=IssueState.HAS_MINOR_ISSUES,
        verdict=Verdict.GREEN,
        completed_by=CompletedBy.RULES,
        started_at=noon,
        ended_at=noon + timedelta(minutes=20),
        attempts=[an_attempt(tokens_used=120_000, commits=[FIRST])],
        issues=[an_issue()],
    )
    failed = a_phase(
        "P1.2",
        index=1,
        name="Refuse weak passwords",
        state=PhaseStatus.FAILED,
        builder_attempts_used=2,
        max_builder_attempts=2,
        tokens_used=300_000,
        start_commit=FIRST,
        verdict=Verdict.RED,
        failure_reason="Two tries failed alike: test_password_length",
        attempts=[
            an_attempt(outcome=Outcome.CONFLICT, reason="does not fit src/app.py", commits=[]),
            an_attempt(attempt=2, outcome=Outcome.APPLIED, commits=[SECOND]),
            an_attempt(
                role=Role.AUDITOR, outcome=Outcome.ESCALATED, commits=[], notes="Not salvageable."
            ),
        ],
    )
    skipped = a_phase("P2.1", tier=1, index=2, state=PhaseStatus.SKIPPED)
    run = a_run(
        [complete, failed, skipped],
        state=RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
        tokens_used=420_000,
        minor_issues_count=1,
        debt_status=DebtStatus.HAS_MINOR_ISSUES,
        failure_code=FailureCode.PHASE_FAILED,
        failure_reason="phase 'P1.2' failed",
        promotion_reasons=["the run is not DONE_SUCCESS", "tier 'T1' is not clean: P1.2 failed"],
        promotion_warnings=["nothing verified phase 'P1.1'"],
        head_commit=SECOND,
        last_snapshot="autonomous/run-001/tier-T1/phase-P1.1",
        revision=17,
        ended_at=noon + timedelta(minutes=72, seconds=5),
    )
    first = run.tiers[0].model_copy(
        update={
            "state": TierStatus.FAILED,
            "cleanliness": Cleanliness.NOT_CLEAN,
            "cleanliness_reasons": ["P1.2 failed"],
            "tokens_used": 420_000,
            "ci_runs_count": 2,
        }
    )
    return run.model_copy(update={"tiers": [first, *run.tiers[1:]]})


def test_the_summary_tells_a_person_what_happened_and_what_to_do(
    mirror: Mirror, failed_run: RunDetail
) -> None:
    mirror.write_run(failed_run)
    text = page(mirror, "run_summary.md")
    for expected in (
        "# Run run-001",
        "**Failed: needs a person's review** (`DONE_FAILED_REQUIRES_HUMAN_REVIEW`)",
        "> phase 'P1.2' failed",
        "Read [incident.md](incident.md)",
        "| Phases complete | 1 | 3 | 33% |",
        "| Tokens | 420,000 | 5,000,000 | 8% |",
        "| Duration | 1 h 12 min | 2 h | 60% |",
        "| Minor issues | 1 | 9 | 11% |",
        "**Not eligible** for `main`:",
        "- tier 'T1' is not clean: P1.2 failed",
        "- nothing verified phase 'P1.1'",
        "### [T1](tiers/tier_0_T1.md): Foundations",
        "| [P1.1](phases/phase_0_P1.1.md) | Add the login form | complete | 1 | 120,000 | $0.00 "
        "| 1 minor | green | `aaaaaaa` |",
        "| [P1.2](phases/phase_1_P1.2.md) | Refuse weak passwords | failed | 2 | 300,000 | $0.00 "
        "| - | red | - |",
        f"- **Head:** `{SECOND}`",
        "- **Branch:** `autonomous/run-001`",
        "- **Ended:** 2025-03-01T13:12:05Z",
    ):
        assert expected in text
    assert text.startswith("<!-- autopack revision=17 created_at=2025-03-01T12:00:00.000000Z -->\n")


def test_every_link_of_the_pages_leads_to_a_file(mirror: Mirror, failed_run: RunDetail) -> None:
    mirror.write_run(failed_run, documents={"project_implementation_strategy_v1.json": b""})
    pages = list(mirror.folder("run-001").rglob("*.md"))
    links = [
        (path, link) for path in pages for link in re.findall(r"\]\((.+?)\)", path.read_text())
    ]
    assert len(links) > 10
    for path, link in links:
        assert (path.parent / link).is_file(), (path, link)


def test_a_tier_page_shows_why_the_tier_is_not_clean(mirror: Mirror, failed_run: RunDetail) -> None:
    mirror.write_run(failed_run)
    text = page(mirror, "tiers/tier_0_T1.md")
    for expected in (
        "# Tier T1: Foundations",
        "**Failed** (`FAILED`), not clean. Part of [run run-001](../run_summary.md).",
        "- P1.2 failed",
        "| Tokens | 420,000 | 1,500,000 | 28% |",
        "| CI runs | 2 | 2 | 100% |",
        "[P1.2](../phases/phase_1_P1.2.md)",
    ):
        assert expected in text


def test_a_phase_page_shows_each_attempt_and_its_outcome(
    mirror: Mirror, failed_run: RunDetail
) -> None:
    mirror.write_run(failed_run)
    complete = page(mirror, "phases/phase_0_P1.1.md")
    for expected in (
        "> Users sign in.\n>\n> Keep the old page.",
        "| 1 | Builder | codex@<!-- -->host-3 | applied | - | 1 | 120,000 | - | `aaaaaaa` "
        "| 2025-03-01T12:00:00Z |",
        "| `flaky_login_test` | minor | open | 2x | test | Sometimes it fails. |",
        "- **Snapshot:** `autonomous/run-001/tier-T1/phase-P1.1`",
        f"- **Ended at:** `{FIRST}`",
        "- **Verdict:** green",
    ):
        assert expected in complete
    failed = page(mirror, "phases/phase_1_P1.2.md")
    for expected in (
        "**Failed** (`FAILED`).",
        "> Two tries failed alike: test_password_length",
        "| Builder tries | 2 | 0 | 2 |",
        "| conflict | does not fit src/app.py |",
        "### Notes of Auditor attempt 1\n\n> Not salvageable.",
        f"- **Builder attempt 2:** `{SECOND}`",
    ):
        assert expected in failed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"is_expected": True}, "minor, expected"),
        ({"effective_severity": "major"}, "major, aged from minor"),
        ({"status": IssueStatus.RESOLVED}, "| resolved |"),
    ],
)
def test_an_issue_shows_what_it_counts_as(
    mirror: Mirror,
    a_run: MakeRun,
    a_phase: MakePhase,
    an_issue: MakeIssue,
    changes: dict[str, Any],
    expected: str,
) -> None:
    mirror.write_run(a_run([a_phase(issues=[an_issue(**changes)])]))
    assert expected in page(mirror, "phases/phase_0_P1.1.md")


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (RunStatus.PLAN_BOOTSTRAP, {}, "Nothing"),
        (RunStatus.RUN_CREATED, {}, "A Builder takes phase [P1.1]"),
        (RunStatus.PHASE_QUEUEING, {}, "`POST /runs/run-001/phases/P1.1/builder_result`"),
        (RunStatus.PHASE_EXECUTION, {}, "a Builder has phase [P1.1]"),
        (RunStatus.GATE, {}, "An Auditor reviews phase [P1.1]"),
        (RunStatus.CI_RUNNING, {}, "CI judges phase [P1.1]"),
        (RunStatus.SNAPSHOT_CREATED, {}, "A Builder takes phase [P1.1]"),
        (RunStatus.DONE_SUCCESS, {"promotion_eligible_to_main": True}, "open a pull request"),
        (RunStatus.DONE_SUCCESS, {}, "the reasons below forbid to merge it"),
        (RunStatus.DONE_FAILED_BUDGET_EXHAUSTED, {}, "raise that budget"),
        (RunStatus.DONE_FAILED_POLICY_VIOLATION, {}, "settle what broke the rules"),
        (
            RunStatus.DONE_FAILED_POLICY_VIOLATION,
            {"failure_code": FailureCode.BRANCH_MOVED},
            "find out which process moved `autonomous/run-001`",
        ),
        (RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW, {}, "[incident.md](incident.md)"),
        (
            RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW,
            {"failure_code": FailureCode.CANCELLED},
            "Nothing, unless you want to keep",
        ),
        (RunStatus.DONE_FAILED_ENVIRONMENT, {}, "repair what could not run"),
    ],
)
def test_every_state_says_what_to_do_next(
    mirror: Mirror, a_run: MakeRun, state: RunStatus, changes: dict[str, Any], expected: str
) -> None:
    mirror.write_run(a_run(state=state, **changes))
    text = page(mirror, "run_summary.md")
    assert expected in text.partition("## What next\n\n")[2].partition("\n")[0]
    assert f"(`{state}`)" in text


def test_what_agents_wrote_builds_nothing_in_a_page(
    mirror: Mirror,
    a_run: MakeRun,
    a_phase: MakePhase,
    an_attempt: MakeAttempt,
    an_issue: MakeIssue,
) -> None:
    """Pages of hostile words have the headings, tables and links of pages of tame words."""

    def pages_with(words: str) -> dict[str, str]:
        phase = a_phase(
            name=words,
            description=words,
            task_category=words,
            builder_mode=words,
            auditor_profile=words,
            allowed_paths=[words],
            expected_issues=[words],
            failure_reason=words,
            attempts=[an_attempt(agent=words, model=words, reason=words, notes=words)],
            issues=[an_issue(issue_key=words, source=words, description=words)],
        )
        run = a_run(
            [phase],
            state=RunStatus.DONE_SUCCESS,
            failure_reason=words,
            promotion_reasons=[words],
            promotion_warnings=[words],
            base_branch=words,
        )
        tier = run.tiers[0].model_copy(
            update={"name": words, "description": words, "cleanliness_reasons": [words]}
        )
        mirror.write_run(run.model_copy(update={"tiers": [tier]}))
        folder = mirror.folder("run-001")
        return {path.name: path.read_bytes().decode() for path in folder.rglob("*.md")}

    def skeleton(text: str) -> list[str]:
        """Take what builds: beginnings of lines, unescaped pipes, links, tags."""
        without_code = re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
        found = []
        for line in without_code.split("\n"):
            if line.startswith(">"):
                assert not re.match(r"> ?([#>+=|`~:-]|\d+[.)])", line), line
                continue
            start = re.match(r"#+ |\| |- |\*\*|<!--|`|$", line)
            found.append(
                (start[0] if start else "text")
                + "|" * len(re.findall(r"(?<!\\)\|", line))
                + "".join(re.findall(r"(?<!\\)\]\([^)]*\)", line))
                + "".join(re.findall(r"<[^>]*", line))
            )
        return found

    tame = pages_with("word")
    hostile = pages_with(HOSTILE)
    for name, text in hostile.items():
        assert skeleton(text) == skeleton(tame[name]), name
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", text)


def test_the_same_report_is_the_same_bytes(mirror: Mirror, failed_run: RunDetail) -> None:
    mirror.write_run(failed_run)
    before = page(mirror, "run_summary.md")
    mirror.write_run(failed_run)
    assert page(mirror, "run_summary.md") == before


def test_a_tier_without_phases_has_a_page(mirror: Mirror, a_run: MakeRun) -> None:
    run = a_run()
    empty = run.tiers[0].model_copy(
        update={"tier_id": "T2", "tier_index": 1, "state": TierStatus.SKIPPED, "phases": []}
    )
    mirror.write_run(run.model_copy(update={"tiers": [*run.tiers, empty]}))
    assert "No phases." in page(mirror, "tiers/tier_1_T2.md")


def test_a_phase_made_complete_by_hand_says_so(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase
) -> None:
    phase = a_phase(state=PhaseStatus.COMPLETE, completed_by=CompletedBy.HAND)
    mirror.write_run(a_run([phase]))
    assert "| complete by hand |" in page(mirror, "run_summary.md")


def test_the_issue_file_of_a_phase_has_the_names_of_the_interface(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase, an_issue: MakeIssue
) -> None:
    phase = a_phase(
        issues=[an_issue(description=HOSTILE)],
        minor_issues_count=1,
        issue_state=IssueState.HAS_MINOR_ISSUES,
    )
    mirror.write_run(a_run([phase], revision=5))
    raw = (mirror.runs_dir / mirror.phase_issue_file("run-001", 0, "P1.1")).read_bytes()
    assert b"\x1b" not in raw
    document = json.loads(raw)
    (issue,) = document.pop("issues")
    assert document == {
        "run_id": "run-001",
        "phase_id": "P1.1",
        "phase_index": 0,
        "tier_id": "T1",
        "revision": 5,
        "issue_state": "has_minor_issues",
        "minor_issue_count": 1,
        "major_issue_count": 0,
    }
    assert issue["issue_key"] == "flaky_login_test"
    assert issue["evidence_refs"] == ["tests/test_login.py:12"]
    assert issue["last_seen_at"] == "2025-03-01T12:00:00.000000Z"
    assert issue["description"] == HOSTILE


def test_the_run_index_has_one_entry_a_key(mirror: Mirror, a_run: MakeRun) -> None:
    entry = IndexEntry(
        category="test_failure",
        severity=Severity.MINOR,
        effective_severity=Severity.MAJOR,
        status=IssueStatus.OPEN,
        first_phase_index=0,
        last_phase_index=3,
        occurrence_count=4,
        tiers=("T1", "T2"),
        phases=("P1.1", "P2.1"),
    )
    index = IssueIndexAnswer(run_id="run-001", issues_by_key={'käse "quoted"\u009b': entry})
    mirror.write_run(a_run(revision=3), phases=(), index=index)
    raw = page(mirror, "run_issue_index.json")
    assert "käse" in raw
    assert "\u009b" not in raw
    assert json.loads(raw) == {
        "run_id": "run-001",
        "revision": 3,
        "issues_by_key": {
            'käse "quoted"\u009b': {
                "category": "test_failure",
                "severity": "minor",
                "effective_severity": "major",
                "status": "open",
                "first_phase_index": 0,
                "last_phase_index": 3,
                "occurrence_count": 4,
                "tiers": ["T1", "T2"],
                "phases": ["P1.1", "P2.1"],
            }
        },
    }

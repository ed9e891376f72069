"""Honest records pass and tampered ones are refused, by all three ways to check one. (rules §8)

The ways: `autopack verify`; what `GET /runs/{run_id}/promotion` calls; the script of a project.
Whatever a forger without the signing key can make right again, the tests make right: a record that
was changed is sealed anew, and so are events.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pygit2
import pytest
from tests.checker import stories
from tests.checker.alone import SCRIPT, compiled
from tests.checker.stories import RUN, STRATEGY, Branches, GitDrive, Story, finish, walk

from autopack.checker.objects import Git
from autopack.cli.app import main
from autopack.config import Settings
from autopack.domain.events import canonical_json
from autopack.domain.naming import RECORD, RUNS_FOLDER, branch_name, branch_ref, patch_name
from autopack.domain.record_check import CheckedRecord, check_record
from autopack.domain.record_text import RecordSubject
from autopack.domain.states import PhaseStatus, RunStatus, TierStatus
from autopack.gitrepo import Repository
from autopack.models import Run
from autopack.services.context import AppContext
from autopack.services.records import recorded_verdict
from autopack.services.rehearsal import rehearse

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "api" / "records"
OLD_VERDICTS: dict[str, Any] = json.loads((OLD / "verdicts.json").read_text())
WALKS = 45
MOVED = f"branch 'autonomous/{RUN}' is at "
Json = dict[str, Any]


# The three ways


@dataclass(frozen=True, slots=True)
class Said:
    """What one way says of a branch."""

    reasons: list[str]
    warnings: list[str]

    def names(self, reason: str) -> bool:
        return any(reason in each for each in self.reasons)


def read(code: int, text: str) -> Said:
    verdict = json.loads(text)
    assert code == (0 if verdict["eligible"] else 1)
    assert verdict["eligible"] is (verdict["reasons"] == [])
    return Said(verdict["reasons"], verdict["warnings"])


@cache
def script() -> ModuleType:
    """Load the script by itself: nothing of it comes from the package."""
    spec = importlib.util.spec_from_file_location("check_promotion", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for a class's types
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def git_is_asked_once() -> Iterator[None]:
    """Let each checker put a patch on a tree once, and ask once where a repository's objects are.

    The stories share their patches and their repository. Most git commands of a check are for them.
    """

    def remembering(apply: Callable[[Any, str, bytes], str | None]) -> Callable[..., str | None]:
        made: dict[tuple[str, bytes], str | None] = {}

        def apply_once(git: object, tree: str, patch: bytes) -> str | None:
            if (tree, patch) not in made:
                made[tree, patch] = apply(git, tree, patch)
            return made[tree, patch]

        return apply_once

    def locating(ask: Callable[..., Any]) -> Callable[..., Any]:
        answers: dict[Path, Any] = {}

        def ask_once(git: Any, *arguments: str) -> Any:
            if arguments != ("rev-parse", "--git-path", "objects"):
                return ask(git, *arguments)
            if git.repository not in answers:
                answers[git.repository] = ask(git, *arguments)
            return answers[git.repository]

        return ask_once

    with pytest.MonkeyPatch.context() as patch:
        for git in (Git, script().Git):
            patch.setattr(git, "apply", remembering(git.apply))
            patch.setattr(git, "_theirs", locating(git._theirs))
        yield


@cache
def opened(path: Path) -> Repository:
    """Open a repository as the service does; its folders lie beside it."""
    return Repository.open(
        Settings(
            _env_file=None,
            repo_path=path,
            home=path.with_name("home"),
            autonomous_runs_dir=path.with_name("runs"),
        )
    )


class Checkers:
    """A repository with the branches of runs, and the three ways to check one there."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.capsys = capsys
        self.repository = opened(path)

    def verify(self, run_id: str) -> Said:
        """Call `autopack verify` in the repository's folder."""
        code = main(["verify", run_id, "--json"])
        return read(code, self.capsys.readouterr().out)

    def promotion(self, run_id: str, head: str, base_commit: str) -> Said:
        """Call what `/promotion` calls for a run whose row names this head."""
        run = Run(
            run_id=run_id,
            base_branch="main",
            base_commit=base_commit,
            head_commit=head,
            work_commit="",
            ended_at=datetime.now(UTC),
        )
        verdict = recorded_verdict(self.repository, run)
        context = cast("AppContext", SimpleNamespace(repository=self.repository))
        _, today = rehearse(context, run)
        return Said([*verdict.reasons, *today], list(verdict.warnings))

    def script(self, run_id: str) -> Said:
        """Call the script's own `main`, as a module that is alone."""
        words = [f"--run-id={run_id}", f"--branch={branch_name(run_id)}"]
        code = script().main([*words, f"--repository={self.path}", "--json"])
        return read(code, self.capsys.readouterr().out)


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Branches:
    return Branches(tmp_path_factory.mktemp("stories") / "repo.git")


@pytest.fixture
def checkers(
    branches: Branches,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Checkers]:
    monkeypatch.chdir(branches.path)
    yield Checkers(branches.path, capsys)
    branches.move("refs/heads/main", branches.base)


# Honest records


def check_honest(drive: GitDrive, checkers: Checkers) -> None:
    story = finish(drive)
    head = story.write()
    expected = Said(list(drive.run.promotion_reasons), list(drive.run.promotion_warnings))
    assert checkers.verify(RUN) == expected
    assert checkers.script(RUN) == expected
    assert checkers.promotion(RUN, head, story.branches.base) == expected


@pytest.mark.parametrize("drive", stories.NAMED)
def test_an_honest_record_passes(
    drive: Callable[[Branches], GitDrive], branches: Branches, checkers: Checkers
) -> None:
    check_honest(drive(branches), checkers)


@pytest.mark.parametrize("seed", range(WALKS))
def test_the_record_of_whatever_happens_to_a_run_passes(
    seed: int, branches: Branches, checkers: Checkers
) -> None:
    check_honest(walk(branches, seed), checkers)


@pytest.mark.parametrize("run_id", OLD_VERDICTS)
def test_a_record_of_an_earlier_version_passes(
    run_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clone = tmp_path / "clone"
    command = ["git", "clone", "--quiet", "--mirror", str(OLD / "records.bundle"), str(clone)]
    subprocess.run(command, check=True)
    monkeypatch.chdir(clone)
    checkers = Checkers(clone, capsys)
    head = checkers.repository.read_ref(branch_ref(run_id))
    base = checkers.repository.read_ref("refs/heads/main")
    assert head is not None
    assert base is not None
    expected = Said(OLD_VERDICTS[run_id]["reasons"], OLD_VERDICTS[run_id]["warnings"])
    assert checkers.verify(run_id) == expected
    assert checkers.script(run_id) == expected
    assert checkers.promotion(run_id, head, base) == expected


@pytest.mark.parametrize(("cap", "value"), [("token_cap", 22), ("cost_cap_usd", "0.250000")])
def test_a_run_that_used_a_cap_up_to_the_last_passes(
    cap: str, value: object, told: Callable[[str], Story], checkers: Checkers
) -> None:
    story = told(GREEN)
    put(story, f"budgets.{cap}", value)
    story.event("RunStarted")["data"]["terms_sha256"] = None  # as of a run that had this cap
    story.seal()
    head = story.write()
    expected = Said(list(story.run.promotion_reasons), list(story.run.promotion_warnings))
    assert checkers.verify(RUN) == checkers.script(RUN) == expected
    assert checkers.promotion(RUN, head, story.branches.base) == expected


# Records whose `run.json` was changed: the row of the run, too, names the forged commit

_STORIES = {each.__name__: each for each in stories.NAMED}


@pytest.fixture(scope="module")
def told(branches: Branches) -> Callable[[str], Story]:
    """Return a copy of a story that was told once."""

    @cache
    def tell(name: str) -> Story:
        return finish(_STORIES[name](branches))

    return lambda name: tell(name).copy()


Tampering = Callable[[Story], object]
GREEN, REVIEWED, UNCLEAN, UNDONE = "green", "reviewed", "unclean", "undone"
OTHER_TERMS = "the events tell of a run with other caps, profiles or required evidence"
ROLLED_BACK, LATE, BY_HAND, OVER = "rolled_back", "too_late", "by_hand", "over_budget"
CANCELLED, JUDGED, TWICE = "cancelled", "reviewed_and_judged", "approved_twice"


def put(story: Story, path: str, value: object) -> None:
    """Change one value of a record; a path reads `tiers.0.state`."""
    *way, last = path.split(".")
    at: Any = story.record
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    old = at[int(last)] if isinstance(at, list) else at.get(last)
    assert old != value, "nothing is changed"
    at[int(last) if isinstance(at, list) else last] = value


FIELDS: list[tuple[str, str, object, str]] = [
    (GREEN, "schema_version", 2, "run.json is of version 2, this checker reads 1"),
    (GREEN, "run_id", "run-2", "the record is of run 'run-2', not of 'run-1'"),
    (GREEN, "branch", "autonomous/x", "the record is of branch 'autonomous/x'"),
    (GREEN, "base_branch", "next", "the run started from 'next', not from 'main'"),
    (GREEN, "base_commit", "1" * 40, "the events tell of a run from another base"),
    (GREEN, "state", "GATE", "the run: state is GATE in the record, DONE_SUCCESS by its events"),
    (CANCELLED, "state", "DONE_SUCCESS", "the run: state is DONE_SUCCESS in the record"),
    (OVER, "failure_code", None, "the run: failure_code is null in the record, token_cap by"),
    (OVER, "failure_reason", "bad luck", "the run: failure_reason is bad luck in the record"),
    (ROLLED_BACK, "is_rolled_back", False, "the run: is_rolled_back is false in the record"),
    (GREEN, "is_sandbox_required", True, "another tale of whether a sandbox is required"),
    (GREEN, "ended_at", "2026-01-01T13:00:00.000000Z", "the run: ended_at is 2026-01-01T13"),
    (GREEN, "head_commit", "1" * 40, "the run: head_commit is 1111"),
    (GREEN, "commits.0.phase_id", "P2", "the record's commits are not those that its events"),
    (GREEN, "strategy_version", 2, "the run: strategy_version is 2 in the record, 1 by its"),
    (GREEN, "budgets.token_cap", 21, "DONE_SUCCESS with 22 tokens used, 21 allowed"),
    (GREEN, "budgets.cost_cap_usd", "0.240000", "with 0.250000 USD spent, 0.240000 allowed"),
    (GREEN, "budgets.tokens_used", 21, "the run: tokens_used is 21 in the record, 22 by its"),
    (GREEN, "budgets.tokens_measured", 1, "the run: tokens_measured is 1 in the record, 0 by"),
    (GREEN, "budgets.cost_usd", "0.100000", "the run: cost_usd is 0.100000 in the record"),
    (GREEN, "budgets.max_minor_issues_total", 0, "debt_status is excess_minor_issues: 1 minor"),
    (GREEN, "budgets.minor_issues_count", 0, "the run: minor_issues_count is 0 in the record"),
    (UNCLEAN, "budgets.major_issues_count", 0, "the run: major_issues_count is 0 in the record"),
    (GREEN, "budgets.debt_status", "clean", "the run: debt_status is clean in the record"),
    (GREEN, "promotion.eligible", False, "the record's own verdict is not what its figures"),
    (GREEN, "promotion.reasons", ["because"], "the record's own verdict is not what its figures"),
    (GREEN, "promotion.warnings", ["mind"], "the record's own verdict is not what its figures"),
    (GREEN, "tiers.0.tier_id", "T9", "the events cannot be replayed: KeyError('T1')"),
    (GREEN, "tiers.1.tier_id", "T1", "the record names tier 'T1' 2 times"),
    (GREEN, "tiers.0.state", "FAILED", "tier 'T1': state is FAILED in the record"),
    (UNCLEAN, "tiers.0.cleanliness", "clean", "tier 'T1': cleanliness is clean in the record"),
    (UNCLEAN, "tiers.0.cleanliness_reasons", [], "tier 'T1': cleanliness_reasons is [] in the"),
    (GREEN, "tiers.0.token_cap", 14, "15 tokens, 14 allowed"),
    (GREEN, "tiers.0.tokens_used", 14, "tier 'T1': tokens_used is 14 in the record, 15 by"),
    (GREEN, "tiers.0.cost_usd", "0.000000", "tier 'T1': cost_usd is 0.000000 in the record"),
    (GREEN, "tiers.0.ci_run_cap", 1, "2 CI runs, 1 allowed"),
    (GREEN, "tiers.0.ci_runs_count", 1, "tier 'T1': ci_runs_count is 1 in the record, 2 by"),
    (GREEN, "tiers.0.minors_tolerated", 0, "1 minor issues, 0 allowed"),
    (GREEN, "tiers.0.minor_issues_count", 0, "tier 'T1': minor_issues_count is 0 in the record"),
    (UNCLEAN, "tiers.0.majors_tolerated", 1, "tier 'T1': cleanliness_reasons is"),
    (UNCLEAN, "tiers.0.major_issues_count", 0, "tier 'T1': major_issues_count is 0 in the"),
    (GREEN, "phases.0.phase_id", "P9", "the events cannot be replayed: KeyError('P1')"),
    (GREEN, "phases.1.phase_id", "P1", "the record names phase 'P1' 2 times"),
    (GREEN, "phases.0.tier_id", "T2", "event 2 puts phase 'P1' into tier T1"),
    (GREEN, "phases.0.state", "SKIPPED", "phase 'P1': state is SKIPPED in the record"),
    (GREEN, "phases.0.ci_profile", "lax", "the events cannot be replayed: ValueError"),
    (GREEN, "phases.0.ci_profile", "normal", OTHER_TERMS),
    (GREEN, "phases.0.evidence_required", ["baseline"], OTHER_TERMS),
    (GREEN, "phases.0.approvals_needed", 2, OTHER_TERMS),
    (GREEN, "phases.0.independence", "model", OTHER_TERMS),
    (GREEN, "phases.0.phase_index", 7, OTHER_TERMS),
    (GREEN, "tiers.0.majors_tolerated", 9, OTHER_TERMS),
    (GREEN, "budgets.token_cap", 10**6, OTHER_TERMS),
    (GREEN, "budgets.max_minor_issues_total", 99, OTHER_TERMS),
    (GREEN, "phases.0.verdict", "red", "phase 'P1': verdict is red in the record, green by"),
    (LATE, "phases.0.verdict", "green", "phase 'P1': verdict is green in the record, did_not_run"),
    (GREEN, "phases.0.sandbox", "bubblewrap", "phase 'P1': sandbox is bubblewrap in the record"),
    (BY_HAND, "phases.0.completed_by", "rules", "phase 'P1': completed_by is rules in the"),
    (GREEN, "phases.0.tokens_used", 14, "phase 'P1': tokens_used is 14 in the record"),
    (GREEN, "phases.0.cost_usd", "9.000000", "phase 'P1': cost_usd is 9.000000 in the record"),
    (GREEN, "phases.0.builder_attempts_used", 1, "phase 'P1': builder_attempts_used is 1 in"),
    (REVIEWED, "phases.0.auditor_attempts_used", 1, "phase 'P1': auditor_attempts_used is 1"),
    (GREEN, "phases.0.minor_issues_count", 0, "phase 'P1': minor_issues_count is 0 in the"),
    (UNCLEAN, "phases.0.major_issues_count", 0, "phase 'P1': major_issues_count is 0 in the"),
    (GREEN, "phases.0.start_commit", "1" * 40, "phase 'P1': start_commit is 1111"),
    (GREEN, "phases.0.commit", "1" * 40, "phase 'P1': commit is 1111"),
    (UNDONE, "phases.0.failure_reason", None, "phase 'P1': failure_reason is null in the record"),
    (GREEN, "commits.0.sha", "1" * 40, "the record's commits are not those that its events"),
    (GREEN, "commits.0.tree", "1" * 40, "the record's commits are not those that its events"),
    (GREEN, "commits.0.parent", "1" * 40, "the record's commits are not those that its events"),
    (UNDONE, "commits.1.kind", "rollback", "the record's commits are not those that its events"),
    (GREEN, "commits.0.patch_sha256", None, "the record's commits are not those that its events"),
    (GREEN, "phases.0.state", 7, "run.json: phases[0]: state is 7, which is not of its kind"),
    (GREEN, "is_rolled_back", "no", "run.json: is_rolled_back is no, which is not of its kind"),
    (GREEN, "tiers", {}, "run.json: tiers is no list"),
    (GREEN, "budgets", [], "run.json: budgets is no object"),
    (GREEN, "tiers.0.token_cap", True, "tiers[0]: token_cap is true, which is not of its kind"),
    (GREEN, "promotion.eligible", 0, "promotion: eligible is 0, which is not of its kind"),
]


def named(tamper: Tampering, *words: str) -> Tampering:
    """Name a tampering, for the name of its test."""
    tamper.__name__ = "_".join(words)
    return tamper


def on(kind: str, name: str, value: object) -> Tampering:
    """Change a column of the first event of a kind, or a member of its data."""

    def change(story: Story) -> None:
        event = story.event(kind)
        place = event if name in event else event["data"]
        assert place.get(name) != value, "nothing is changed"
        place[name] = value

    return named(change, kind, name)


PASSED: Json = {"kind": "baseline", "result": "passed", "reason": "the base is green"}
REFUTED: Json = {**PASSED, "result": "failed", "reason": "1 check is still red"}
WARNED: Json = {**PASSED, "result": "warned", "reason": "as the plan expects"}


def resting_on(*evidence: Json) -> Tampering:
    """Let the last verdict, which is green, rest on evidence."""

    def change(story: Story) -> None:
        story.events("CiVerdictReceived")[-1]["data"]["evidence"] = list(evidence)

    return named(change, *(str(each.get("result")) for each in evidence))


EVENTS: list[tuple[str, Tampering, str]] = [
    (GREEN, on("RunStarted", "base_commit", "1" * 40), "the events tell of a run from another"),
    (GREEN, on("RunStarted", "base_branch", "next"), "the events tell of a run from another base"),
    (GREEN, on("RunStarted", "strategy_version", 3), "strategy_version is 1 in the record, 3 by"),
    (GREEN, on("RunStarted", "is_sandbox_required", True), "another tale of whether a sandbox"),
    (GREEN, on("RunStarted", "to_state", "GATE"), "the run starts as GATE"),
    (GREEN, on("RunStarted", "kind", "RunBegun"), "unknown event kind 'RunBegun'"),
    (GREEN, on("RunStarted", "at", "2026-01-01T12:00:00Z"), "the time 2026-01-01T12:00:00Z of"),
    (GREEN, on("RunStarted", "at", "noon"), "the events cannot be replayed: ValueError"),
    (GREEN, on("RunEnded", "at", "2025-01-01T12:00:00.000000Z"), "lies before the one that it"),
    (GREEN, on("RunEnded", "to_state", "GATE"), "the run: state is DONE_SUCCESS in the record"),
    (GREEN, on("RunEnded", "to_state", "PLAN_BOOTSTRAP"), "to PLAN_BOOTSTRAP, which no rule"),
    (OVER, on("RunEnded", "failure_code", "cancelled"), "failure_code is token_cap in the record"),
    (OVER, on("RunEnded", "reason", "bad luck"), "failure_reason is run token_cap 10 passed"),
    (GREEN, on("RunEnded", "from_state", "RUN_CREATED"), "does not follow: the run is "),
    (GREEN, on("RunStateChanged", "from_state", "GATE"), "does not follow: the run is "),
    (GREEN, on("TierStateChanged", "from_state", "COMPLETE"), "which no rule allows"),
    (GREEN, on("TierStateChanged", "to_state", "COMPLETE"), "moves tier 'T1' from PENDING to COMP"),
    (GREEN, on("TierStateChanged", "tier_id", "T9"), "the events cannot be replayed: KeyError"),
    (UNCLEAN, on("TierCleanlinessChanged", "from_state", "not_clean"), "tier 'T1' is clean"),
    (UNCLEAN, on("TierCleanlinessChanged", "to_state", "clean"), "cleanliness is not_clean in"),
    (GREEN, on("RunEnded", "tier_id", "T1"), "(RunEnded) has tier_id T1, which its kind has not"),
    (
        GREEN,
        on("TokensCounted", "from_state", "GATE"),
        "(TokensCounted) has from_state GATE, which",
    ),
    (GREEN, on("PhaseStarted", "phase_id", "P9"), "the events cannot be replayed: KeyError('P9')"),
    (GREEN, on("PhaseStarted", "phase_id", "P2"), "puts phase 'P2' into tier T1"),
    (GREEN, on("PhaseStarted", "tier_id", "T2"), "event 2 puts phase 'P1' into tier T2"),
    (GREEN, on("PhaseStarted", "tier_id", None), "event 2 puts phase 'P1' into tier null"),
    (GREEN, on("PhaseStarted", "from_state", "GATE"), "does not follow: phase 'P1' is QUEUED"),
    (GREEN, on("PhaseStarted", "to_state", "GATE"), "moves phase 'P1' from QUEUED to GATE, which"),
    (GREEN, on("PhaseGated", "to_state", "COMPLETE"), "from EXECUTING to COMPLETE, which no rule"),
    (GREEN, on("PhaseCompleted", "completed_by", "hand"), "completed_by is rules in the record"),
    (GREEN, on("PhaseCompleted", "to_state", "FAILED"), "PhaseCompleted cannot be read: it leads"),
    (LATE, on("PhaseFailed", "actor", "client"), "verdict is did_not_run in the record, null by"),
    (UNDONE, on("PhaseFailed", "reason", "x"), "failure_reason is "),
    (GREEN, on("TokensCounted", "tokens", 9), "tokens_used is 22 in the record, 21 by"),
    (GREEN, on("TokensCounted", "is_measured", True), "tokens_measured is 0 in the record, "),
    (GREEN, on("TokensCounted", "tokens", True), "TokensCounted cannot be read: True is not of"),
    (GREEN, on("TokensCounted", "cost_usd", "0.200000"), "cost_usd is 0.250000 in the record"),
    (GREEN, on("TokensCounted", "cost_usd", "1E+999999999"), "is no amount in USD"),
    (GREEN, on("TokensCounted", "cost_usd", "-1.000000"), "is no amount in USD"),
    (GREEN, on("TokensCounted", "cost_usd", "NaN"), "TokensCounted cannot be read"),
    (GREEN, on("CiVerdictReceived", "verdict", "green"), "to QUEUED, and its verdict is green"),
    (GREEN, on("CiVerdictReceived", "commit", "1" * 40), "which is not the commit of phase 'P1'"),
    (GREEN, on("CiVerdictReceived", "sandbox", "nowhere"), "CiVerdictReceived cannot be read"),
    (GREEN, resting_on({}), "CiVerdictReceived cannot be read"),
    (GREEN, resting_on(REFUTED), "CI is green, and its evidence speaks against it"),
    (GREEN, resting_on(PASSED, PASSED), "two entries of evidence of one kind"),
    (GREEN, resting_on(WARNED), "the record's own verdict is not what its figures give"),
    (GREEN, on("CiVerdictReceived", "is_repeated", True), "ci_runs_count is 2 in the record, 1"),
    (GREEN, on("CiVerdictReceived", "verdict", "did_not_run"), "ci_runs_count is 2 in the record"),
    (GREEN, on("IssueRecorded", "effective_severity", "major"), "major_issues_count is 0 in the"),
    (GREEN, on("IssueRecorded", "is_expected", True), "minor_issues_count is 1 in the record, 0"),
    (GREEN, on("PatchApplied", "commit", "1" * 40), "the record's commits are not those that its"),
    (GREEN, on("PatchApplied", "tree", "1" * 40), "the record's commits are not those that its"),
    (GREEN, on("PatchApplied", "parent", "1" * 40), "the record's commits are not those that its"),
    (GREEN, on("PatchApplied", "patch_sha256", "1"), "the record's commits are not those that"),
    (GREEN, on("PatchApplied", "submission_id", "1"), "PatchApplied cannot be read: '1' is not of"),
    (UNDONE, on("PhaseUndone", "commit", "1" * 40), "the record's commits are not those that its"),
    (ROLLED_BACK, on("RunRolledBack", "commit", "1" * 40), "the record's commits are not those"),
]


def without(kind: str, which: int = 0) -> Tampering:
    """Leave an event out, and number what is left."""

    def change(story: Story) -> None:
        story.record["events"].remove(story.events(kind)[which])
        story.number()

    return named(change, "without", kind)


def twice(kind: str) -> Tampering:
    def change(story: Story) -> None:
        events = story.record["events"]
        event = story.event(kind)
        events.insert(events.index(event), copy.deepcopy(event))
        story.number()

    return named(change, "twice", kind)


def last_before(kind: str, other: str) -> Tampering:
    """Let an event take place before another one."""

    def change(story: Story) -> None:
        events = story.record["events"]
        event = story.events(kind)[-1]
        events.remove(event)
        events.insert(events.index(story.event(other)), {**event, "at": story.event(other)["at"]})
        story.number()

    return named(change, kind, "before", other)


def resolved_by(cause: str | None) -> Tampering:
    """Let an issue be resolved that nothing resolved."""

    def change(story: Story) -> None:
        events = story.record["events"]
        seen = story.event("IssueRecorded")
        data: Json = {"issue_key": seen["data"]["issue_key"]}
        if cause is not None:
            data["cause"] = cause
        events.insert(events.index(seen) + 1, {**seen, "kind": "IssueResolved", "data": data})
        story.number()

    return named(change, "resolved_by", str(cause))


def resolved_unseen(story: Story) -> None:
    resolved_by("auditor")(story)
    story.event("IssueResolved")["data"]["issue_key"] = "unseen"


def resolved_after(kind: str, which: int, cause: str, source: str) -> Tampering:
    """Let an issue of phase P1 be resolved right after an event that may not resolve it."""

    def change(story: Story) -> None:
        events = story.record["events"]
        seen, before = story.event("IssueRecorded"), story.events(kind)[which]
        seen["data"]["source"] = source
        data = {"issue_key": seen["data"]["issue_key"], "cause": cause}
        resolved = {**seen, "kind": "IssueResolved", "data": data, "at": before["at"]}
        events.insert(events.index(before) + 1, resolved)
        story.number()

    return named(change, "resolved_after", kind, str(which))


def ended_early(story: Story) -> None:
    """The run ends before its last phase, which is left as it was."""
    events = story.record["events"]
    del events[events.index(story.events("PhaseStarted")[-1]) : -1]
    story.number()


def after_the_end(story: Story) -> None:
    """Tokens are counted after the run's success, in the events and wherever they are summed."""
    record = story.record
    late = {**story.event("TokensCounted"), "at": record["ended_at"]}
    record["events"].append(late)
    for figures in (record["budgets"], record["tiers"][0], record["phases"][0]):
        figures["tokens_used"] += late["data"]["tokens"]
        figures["cost_usd"] = "0.500000"
    story.number()


def later_than_the_end(story: Story) -> None:
    """A failed run goes on, a minute later."""
    late = {**story.event("BuilderResultReceived"), "at": "2027-01-01T12:00:00.000000Z"}
    story.record["events"].append(late)
    story.number()


def tokens_given_back(story: Story) -> None:
    """Fewer tokens are counted than none, in the events and wherever they are summed."""
    record = story.record
    data = story.event("TokensCounted")["data"]
    for figures in (record["budgets"], record["tiers"][0], record["phases"][0]):
        figures["tokens_used"] -= data["tokens"] + 1
    data["tokens"] = -1


def verdict_of_another_phase(story: Story) -> None:
    story.events("CiVerdictReceived")[-1].update(phase_id="P1", tier_id="T1")


def without_a_phase(story: Story) -> None:
    """A phase and its tier are left out, with all their events and tokens; its commit is not."""
    record = story.record
    del record["phases"][1], record["tiers"][1]
    record["budgets"]["tokens_used"] -= 7
    kept = [each for each in record["events"] if each["tier_id"] != "T2"]
    record["events"] = kept
    story.number()


def with_a_phase(story: Story) -> None:
    """One phase more than the events tell of."""
    first = story.record["phases"][0]
    story.record["phases"].append({**first, "phase_id": "P3"})


def never_rolled_back(story: Story) -> None:
    record = story.record
    record["events"].remove(story.event("RunRolledBack"))
    record["is_rolled_back"] = False
    record["promotion"] = {"eligible": True, "reasons": [], "warnings": []}
    story.number()


def no_events(story: Story) -> None:
    story.record["events"] = []


def by_one_key(*kinds: str) -> Tampering:
    """Let one key do everything of these kinds, in a record that asks for another."""

    def change(story: Story) -> None:
        story.record["phases"][0]["independence"] = "agent"
        for kind in kinds:
            for event in story.events(kind):
                event["actor"] = "key:both:builder"

    return named(change, "by_one_key", *kinds)


def approved_by_one(story: Story) -> None:
    """Let the key whose approval came first give the last one, too."""
    one, two = "key:claude:auditor", "key:gemini:auditor"
    story.event("PhaseApproved")["actor"] = one
    for event in story.events("AuditorResultReceived")[-1:]:
        event["actor"] = one
    phase = story.record["phases"][0]
    assert phase["approved_by"] == [one, two]
    phase["approved_by"], phase["reviewed_by"] = [one], one


def without_the_other_approval(story: Story) -> None:
    story.record["events"].remove(story.events("ApprovalGiven")[-1])
    story.number()


ORDER: list[tuple[str, Tampering, str]] = [
    (GREEN, without("RunStarted"), "event 1 (PhaseStarted) does not follow: a run starts once"),
    (GREEN, without("PhaseStarted"), "(PhaseGated) does not follow: phase 'P1' is QUEUED"),
    (GREEN, without("BuilderResultReceived"), "builder_attempts_used is 2 in the record, 1 by"),
    (GREEN, without("TokensCounted"), "tokens_used is 22 in the record, 12 by its events"),
    (GREEN, without("PatchApplied"), "the record's commits are not those that its events tell"),
    (GREEN, without("PhaseGated"), "does not follow: phase 'P1' is EXECUTING"),
    (GREEN, without("PhaseCiStarted"), "does not follow: phase 'P1' is GATE"),
    (GREEN, without("CiVerdictReceived"), "ci_runs_count is 2 in the record, 1 by its events"),
    (GREEN, without("CiVerdictReceived", -1), "phase 'P2': verdict is green in the record, null"),
    (GREEN, without("IssueRecorded"), "minor_issues_count is 1 in the record, 0 by its events"),
    (GREEN, without("PhaseQueued"), "(PhaseStarted) does not follow: phase 'P1' is CI_RUNNING"),
    (GREEN, without("PhaseCompleted"), "ends the run while phase 'P1' is CI_RUNNING"),
    (GREEN, without("TierStateChanged"), "does not follow: tier 'T1' is PENDING"),
    (GREEN, without("RunStateChanged"), "does not follow: the run is RUN_CREATED"),
    (GREEN, without("RunEnded"), "the run: state is DONE_SUCCESS in the record"),
    (UNCLEAN, without("TierCleanlinessChanged"), "cleanliness is not_clean in the record, clean"),
    (REVIEWED, without("AuditorResultReceived"), "auditor_attempts_used is 2 in the record, 1"),
    (UNDONE, without("PhaseUndone"), "the record's commits are not those that its events tell"),
    (UNDONE, without("PhaseFailed"), "ends the run while phase 'P1' is CI_RUNNING"),
    (ROLLED_BACK, without("RunRolledBack"), "is_rolled_back is true in the record, false by"),
    (GREEN, twice("RunStarted"), "event 2 (RunStarted) does not follow: a run starts once"),
    (GREEN, twice("PhaseStarted"), "(PhaseStarted) does not follow: phase 'P1' is EXECUTING"),
    (GREEN, twice("TokensCounted"), "tokens_used is 22 in the record, 32 by its events"),
    (GREEN, twice("BuilderResultReceived"), "builder_attempts_used is 2 in the record, 3 by"),
    (GREEN, twice("PatchApplied"), "the record's commits are not those that its events tell"),
    (GREEN, twice("CiVerdictReceived"), "ci_runs_count is 2 in the record, 3 by its events"),
    (GREEN, twice("PhaseCompleted"), "does not follow: phase 'P1' is COMPLETE"),
    (GREEN, twice("RunEnded"), "does not follow: the run is DONE_SUCCESS"),
    (GREEN, last_before("PhaseCompleted", "PhaseStarted"), "does not follow: phase 'P2' is QUEUED"),
    (GREEN, last_before("RunEnded", "PhaseCompleted"), "ends the run while phase 'P1' is"),
    (GREEN, last_before("CiVerdictReceived", "PatchApplied"), "which is not the commit of phase"),
    (GREEN, last_before("PatchApplied", "PatchApplied"), "the record's commits are not those"),
    (TWICE, approved_by_one, "the approval of phase 'P1' by key:claude:auditor twice"),
    (TWICE, without_the_other_approval, "pass with 1 of 2 approvals"),
    (TWICE, on("PhaseApproved", "actor", "key:codex:auditor"), 'approved_by is ["key:claude'),
    (
        REVIEWED,
        by_one_key("BuilderResultReceived", "AuditorResultReceived"),
        "is by key:both:builder, whose own work it judges",
    ),
    (
        JUDGED,
        by_one_key("BuilderResultReceived", "CiVerdictReceived"),
        "is by key:both:builder, whose own work it judges",
    ),
    (
        JUDGED,
        by_one_key("AuditorResultReceived", "CiVerdictReceived"),
        "is by key:both:builder, whose own work it judges",
    ),
    (UNCLEAN, resolved_by("auditor"), "in phase 'P1', and no review says so"),
    (UNCLEAN, resolved_by("green_verdict"), "where CI did not raise it, or is not green"),
    (
        GREEN,
        resolved_after("CiVerdictReceived", 0, "green_verdict", "ci"),
        "where CI did not raise it, or is not green",
    ),
    (
        GREEN,
        resolved_after("CiVerdictReceived", -1, "green_verdict", "ci"),
        "where CI did not raise it, or is not green",
    ),
    (
        REVIEWED,
        resolved_after("BuilderResultReceived", -1, "auditor", "test"),
        "in phase 'P1', and no review says so",
    ),
    (
        JUDGED,
        resolved_after("CiVerdictReceived", -1, "auditor", "test"),
        "in phase 'P1', and no review says so",
    ),
    (UNCLEAN, resolved_by("nobody"), "IssueResolved cannot be read"),
    (UNCLEAN, resolved_by(None), "minor_issues_count is 3 in the record, 2 by its events"),
    (UNCLEAN, resolved_unseen, "resolves unseen in phase 'P1', where it was never seen"),
    (GREEN, after_the_end, "(TokensCounted) comes after the end of the run"),
    (OVER, later_than_the_end, "(BuilderResultReceived) comes after the end of the run"),
    (GREEN, tokens_given_back, "counts -1 tokens"),
    (GREEN, verdict_of_another_phase, "from CI_RUNNING to COMPLETE, and its verdict is null"),
    (GREEN, without_a_phase, "the record's commits are not those that its events tell of"),
    (GREEN, with_a_phase, "ends the run while phase 'P3' is QUEUED"),
    (ROLLED_BACK, never_rolled_back, "the record's commits are not those that its events tell"),
    (GREEN, ended_early, "ends the run while phase 'P2' is QUEUED"),
    (GREEN, no_events, "the run: state is DONE_SUCCESS in the record, RUN_CREATED by its events"),
]


def check_tampered(
    story: Story, head: str, reason: str, checkers: Checkers, *, is_in_the_row: bool = True
) -> None:
    """Expect each way to refuse the branch, and to say why in the same words."""
    verified, scripted = checkers.verify(RUN), checkers.script(RUN)
    assert verified == scripted
    assert verified.names(reason), verified.reasons
    assert not verified.names("cannot be checked")
    answered = checkers.promotion(RUN, head, story.branches.base)
    assert answered.names(reason if is_in_the_row else MOVED), answered.reasons


@pytest.mark.parametrize(("name", "path", "value", "reason"), FIELDS)
def test_a_figure_that_was_edited_is_refused(
    name: str,
    path: str,
    value: object,
    reason: str,
    told: Callable[[str], Story],
    checkers: Checkers,
) -> None:
    story = told(name)
    put(story, path, value)
    check_tampered(story, story.write(), reason, checkers)


@pytest.mark.parametrize(("name", "tamper", "reason"), [*EVENTS, *ORDER])
def test_an_event_that_was_edited_is_refused_though_its_hash_is_right(
    name: str, tamper: Tampering, reason: str, told: Callable[[str], Story], checkers: Checkers
) -> None:
    story = told(name)
    tamper(story)
    story.seal()
    check_tampered(story, story.write(), reason, checkers)


# Of each event every column, and its place: without the right hash nothing may be changed


def unsealed(story: Story, column: str, value: object) -> str:
    event = story.events("CiVerdictReceived")[-1]
    assert event[column] != value
    event[column] = value
    return f"event {story.record['events'].index(event) + 1} "


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("sequence", 1), ("at", "2026-01-01T12:00:00.000001Z"), ("actor", "eve")],
        *[("kind", "CiStarted"), ("phase_id", "P1"), ("tier_id", "T1"), ("from_state", "GATE")],
        *[("to_state", "GATE"), ("reason", "just so"), ("data", {}), ("previous_hash", "1" * 64)],
        ("hash", "1" * 64),
    ],
)
def test_an_event_is_refused_where_the_chain_of_hashes_breaks(
    column: str, value: object, told: Callable[[str], Story], checkers: Checkers
) -> None:
    story = told(GREEN)
    event = unsealed(story, column, value)
    check_tampered(story, story.write(), event, checkers)


def exchanged(story: Story) -> None:
    events = story.record["events"]
    events[3], events[4] = events[4], events[3]


def cut(story: Story) -> None:
    del story.record["events"][2]


def repeated(story: Story) -> None:
    story.record["events"].insert(3, story.record["events"][2])


@pytest.mark.parametrize(("tamper", "number"), [(exchanged, 4), (cut, 3), (repeated, 4)])
def test_events_are_refused_out_of_their_order(
    tamper: Tampering, number: int, told: Callable[[str], Story], checkers: Checkers
) -> None:
    story = told(GREEN)
    tamper(story)
    reason = f"event {number} is missing, or out of its place"
    check_tampered(story, story.write(), reason, checkers)


# The text of `run.json`, and its seal

TEXTS: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"\xff" + data, "run.json cannot be read: 'utf-8' codec"),
    (lambda data: data[:-1], "run.json cannot be read: "),
    (lambda data: b"[]", "run.json is no object"),
    (lambda data: b'{"a": 1, "a": 2}', "run.json cannot be read: it names a member twice"),
    (lambda data: b'{"a": NaN}', "run.json cannot be read: NaN is no JSON"),
    (lambda data: b'{"a": 1e999}', "run.json cannot be read: Out of range float"),
    (lambda data: b'{"a": "\\ud800"}', "run.json cannot be read: 'utf-8' codec"),
    (lambda data: b'{"a": 1' + b"0" * 99 + b"}", "it has a number of too many digits"),
    (lambda data: b"[" * 99_999 + b"]" * 99_999, "run.json cannot be read: maximum recursion"),
    (lambda data: b"{}", "run.json has no 'schema_version'"),
]


@pytest.mark.parametrize(("change", "reason"), TEXTS)
def test_a_record_that_is_no_record_is_refused(
    change: Callable[[bytes], bytes],
    reason: str,
    told: Callable[[str], Story],
    checkers: Checkers,
) -> None:
    story = told(GREEN)
    data = change(json.dumps(story.record).encode())
    check_tampered(story, story.write(data=data), reason, checkers)


def test_a_record_whose_seal_is_another_is_refused(
    told: Callable[[str], Story], checkers: Checkers
) -> None:
    story = told(GREEN)
    reason = "run.json is not what the record's commit says: it was changed"
    check_tampered(story, story.write(seal="1" * 64), reason, checkers)


def test_a_record_with_two_seals_is_refused(
    told: Callable[[str], Story], checkers: Checkers
) -> None:
    """Neither of them is the one that the service set, whichever comes first."""
    story = told(GREEN)
    head = story.write()
    message = story.branches.git[head].peel(pygit2.Commit).message
    twice = story.branches.commit(story.branches.tree_of(head), message * 2, story.work)
    story.branches.move(branch_ref(RUN), twice)
    reason = "the head of the branch is no record: something was committed after it"
    check_tampered(story, twice, reason, checkers)


# What git holds: the row of the run still names the honest commit


def after_the_record(story: Story, head: str) -> str:
    tree = story.branches.put(story.branches.tree_of(head), {"evil": b"evil\n"})
    return story.branches.commit(tree, "Slip in\n", head)


def before_the_record(story: Story, head: str) -> str:
    tree = story.branches.put(story.branches.tree_of(story.work), {"evil": b"evil\n"})
    story.work = story.branches.commit(tree, "Slip in\n", story.work)
    return story.write()


def back_to_the_work(story: Story, head: str) -> str:
    return story.work


def back_to_the_base(story: Story, head: str) -> str:
    return story.branches.base


def another_message(story: Story, head: str) -> str:
    return story.branches.commit(story.branches.tree_of(head), "Record\n", story.work)


def without_the_last_commit(story: Story, head: str) -> str:
    story.work = story.record["commits"][-1]["parent"]
    return story.write()


def with_file(name: str, content: bytes | None) -> Callable[[Story, str], str]:
    def tamper(story: Story, head: str) -> str:
        if content is None:
            del story.files[name]
        else:
            story.files[name] = content
        return story.write()

    return tamper


def another_patch(story: Story, head: str) -> str:
    name = patch_name(story.record["commits"][0]["patch_sha256"])
    story.files[name] += b"\n"
    return story.write()


def another_strategy(story: Story, head: str) -> str:
    """The record names another hash of the policy that the run was led by."""
    entry = next(each for each in story.record["files"] if each["path"] == STRATEGY)
    entry["sha256"] = "1" * 64
    return story.write()


def record_beside(path: str) -> Callable[[Story, str], str]:
    """The record's commit adds another file, too."""

    def tamper(story: Story, head: str) -> str:
        tree = story.branches.put(story.branches.tree_of(head), {path: b"evil\n"})
        return _again(story, head, tree)

    return tamper


def summary_as(mode: int) -> Callable[[Story, str], str]:
    """The record's summary has its content, and another mode of a file."""

    def tamper(story: Story, head: str) -> str:
        index = pygit2.Index()
        index.read_tree(story.branches.git[story.branches.tree_of(head)].peel(pygit2.Tree))
        path = f"{RUNS_FOLDER}/{RUN}/run_summary.md"
        index.add(pygit2.IndexEntry(path, index[path].id, pygit2.enums.FileMode(mode)))
        return _again(story, head, str(index.write_tree(story.branches.git)))

    return tamper


def _again(story: Story, head: str, tree: str) -> str:
    message = story.branches.git[head].peel(pygit2.Commit).message
    return story.branches.commit(tree, message, story.work)


def commits_in_another_order(story: Story, head: str) -> str:
    story.record["commits"].reverse()
    return story.write()


def a_commit_named_twice(story: Story, head: str) -> str:
    story.record["commits"].append(story.record["commits"][-1])
    return story.write()


MOVES: list[tuple[Callable[[Story, str], str], str]] = [
    (after_the_record, "is on the branch, but the record does not name it"),
    (before_the_record, "is on the branch, but the record does not name it"),
    (back_to_the_work, "holds no record of run 'run-1'"),
    (back_to_the_base, "holds no record of run 'run-1'"),
    (another_message, "the head of the branch is no record: something was committed after it"),
    (without_the_last_commit, "which the record names, is not on the branch"),
    (with_file("run_summary.md", b"All is well.\n"), "run_summary.md of the record was changed"),
    (with_file("run_summary.md", None), "run_summary.md is missing from the record"),
    (with_file("evil.md", b"evil\n"), "the record does not name its file evil.md"),
    (with_file(STRATEGY, b'{"version": 2}\n'), f"{STRATEGY} of the record was changed"),
    (another_strategy, f"{STRATEGY} of the record was changed: its hash is another"),
    (another_patch, ".patch of the record was changed: its hash is another"),
    (record_beside("evil"), "changes more than the record's folder"),
    (record_beside(f"{RUNS_FOLDER}/run-0/run.json"), "changes more than the record's folder"),
    (record_beside(f"{RUNS_FOLDER}/evil"), "changes more than the record's folder"),
    (summary_as(0o100755), "run_summary.md of the record is no plain file"),
    (summary_as(0o120000), "run_summary.md of the record is no plain file"),
    (commits_in_another_order, "the record names the branch's commits in another order"),
    (a_commit_named_twice, "the record's commits are not those that its events tell of"),
]


@pytest.mark.parametrize(("move", "reason"), MOVES)
def test_a_branch_that_was_moved_is_refused(
    move: Callable[[Story, str], str],
    reason: str,
    told: Callable[[str], Story],
    checkers: Checkers,
) -> None:
    story = told(GREEN)
    head = story.write()
    story.branches.move(branch_ref(RUN), move(story, head))
    check_tampered(story, head, reason, checkers, is_in_the_row=False)


def test_a_base_branch_that_lost_the_start_of_the_run_is_refused(
    told: Callable[[str], Story], checkers: Checkers
) -> None:
    story = told(GREEN)
    head = story.write()
    branches = story.branches
    branches.move(
        "refs/heads/main", branches.commit(branches.tree_of(branches.base), "Anew\n", None)
    )
    check_tampered(story, head, "which is not in the history of 'main' (any more)", checkers)


# The tables of transitions, written down once more

PHASE_MOVES = {
    "QUEUED": {"EXECUTING", "SKIPPED"},
    "EXECUTING": {"GATE", "QUEUED", "FAILED", "SKIPPED"},
    "GATE": {"CI_RUNNING", "COMPLETE", "QUEUED", "FAILED", "SKIPPED"},
    "CI_RUNNING": {"COMPLETE", "QUEUED", "GATE", "FAILED", "SKIPPED"},
}
TIER_MOVES = {
    "PENDING": {"IN_PROGRESS", "SKIPPED"},
    "IN_PROGRESS": {"COMPLETE", "FAILED", "SKIPPED"},
}
_WORK = {"PHASE_QUEUEING", "PHASE_EXECUTION", "GATE", "CI_RUNNING", "SNAPSHOT_CREATED"}
_FAILED = {each.value for each in RunStatus if each.startswith("DONE_FAILED")}
RUN_MOVES = {
    "PLAN_BOOTSTRAP": {"RUN_CREATED", *_FAILED},
    "RUN_CREATED": {*_WORK, *_FAILED, "DONE_SUCCESS"},
    **{state: (_WORK - {state}) | _FAILED | {"DONE_SUCCESS"} for state in _WORK},
}


def checked(story: Story, check: Callable[..., Any], subject: Callable[..., Any]) -> CheckedRecord:
    data = json.dumps(story.record).encode()
    given = subject(run_id=RUN, branch=branch_name(RUN), base_branch="main")
    return cast("CheckedRecord", check(data, "", given))


@pytest.mark.parametrize(
    ("kind", "states", "moves"),
    [
        ("PhaseStarted", PhaseStatus, PHASE_MOVES),
        ("TierStateChanged", TierStatus, TIER_MOVES),
        ("RunStateChanged", RunStatus, RUN_MOVES),
    ],
)
def test_a_move_is_refused_unless_the_rules_have_it(
    kind: str,
    states: type[PhaseStatus] | type[TierStatus] | type[RunStatus],
    moves: dict[str, set[str]],
    told: Callable[[str], Story],
) -> None:
    for before in states:
        for after in states:
            story = told(GREEN)
            story.event(kind).update(from_state=before.value, to_state=after.value)
            story.seal()
            for check, subject in (
                (check_record, RecordSubject),
                (script().check_record, script().RecordSubject),
            ):
                reasons = checked(story, check, subject).reasons
                is_refused = any(f"{before} to {after}, which no rule" in each for each in reasons)
                assert is_refused is (after not in moves.get(before, ())), (before, after)


# The script as a project has it


@pytest.mark.parametrize(
    ("name", "path", "value", "code", "line"),
    [
        (GREEN, None, None, 0, "'autonomous/run-1' may go to 'main'"),
        (ROLLED_BACK, None, None, 1, "the branch was rolled back by hand"),
        (GREEN, "budgets.tokens_used", 21, 1, "the run: tokens_used is 21 in the record, 22 by"),
        (GREEN, "events.4.hash", "1" * 64, 1, "the chain of hashes breaks there"),
        (GREEN, "phases.0.verdict", "red", 1, "phase 'P1': verdict is red in the record"),
    ],
)
def test_the_script_stands_alone(
    name: str,
    path: str | None,
    value: object,
    code: int,
    line: str,
    told: Callable[[str], Story],
    tmp_path: Path,
) -> None:
    story = told(name)
    if path is not None:
        put(story, path, value)
    story.write()
    alone = tmp_path / "empty"
    alone.mkdir()
    words = [f"--run-id={RUN}", f"--branch={branch_name(RUN)}"]
    command = [sys.executable, "-I", "-S", compiled(), *words]
    command.append(f"--repository={story.branches.path}")
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert any(line in each for each in done.stdout.splitlines())
    json_too = subprocess.run([*command, "--json"], cwd=alone, capture_output=True, check=False)
    assert json_too.returncode == code
    assert json.loads(json_too.stdout)["eligible"] is (code == 0)
    assert list(alone.iterdir()) == []


def test_the_script_says_when_it_is_called_wrongly(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run(command).returncode == 2
    done = run([*command, "--run-id=x", "--branch=y"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "check_promotion.py: . is no git repository\n"


def test_there_are_enough_of_each() -> None:
    assert len(stories.NAMED) + WALKS + len(OLD_VERDICTS) >= 60
    assert len(FIELDS) + len(EVENTS) + len(ORDER) + len(TEXTS) + len(MOVES) >= 60


def test_a_copy_of_a_record_is_the_record(told: Callable[[str], Story]) -> None:
    """What the tests tamper with is what the service wrote, to the member."""
    story = told(GREEN)
    before = canonical_json(story.record)
    story.seal()
    story.number()
    assert canonical_json(story.record) == before
    assert RECORD not in story.files

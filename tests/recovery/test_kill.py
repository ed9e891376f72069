"""Killed at any step of a change, the service starts again unharmed. (docs/architecture.md)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from .conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

Json = dict[str, Any]


def plan(run: str, *phase_ids: str, category: str = "docs") -> Json:
    return {
        "run": {"run_id": run},
        "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
        "phases": [
            {
                "phase_id": phase_id,
                "phase_index": index,
                "tier_id": "T1",
                "name": f"Do {phase_id}",
                "task_category": category,
            }
            for index, phase_id in enumerate(phase_ids)
        ],
    }


def new_file(path: str) -> str:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1 @@\n+This is {path}.\n"
    )


STALE = (
    "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
    "@@ -1 +1 @@\n-VALUE = 41\n+VALUE = 42\n"
)


def result(run: str, phase_id: str, patch: str) -> tuple[str, Json]:
    body = {"status": "success", "patch_content": patch, "tokens_used": 7}
    return f"/runs/{run}/phases/{phase_id}/builder_result", body


def issue(run: str) -> tuple[str, Json]:
    # A key of its own: one that is seen in many runs becomes major.
    return report(run, f"seen_in_{run}")


def report(run: str, key: str) -> tuple[str, Json]:
    body = {"issue_key": key, "source": "test", "category": "test_failure"}
    return f"/runs/{run}/phases/P1/record_issue", body


def seen_in_two_runs(stage: Stage, run: str) -> None:
    """The next run that reports the key makes it age."""
    for name in (f"{run}-a", f"{run}-b", run):
        stage.must("POST", "/runs/start", plan(name, "P1"))
        if name != run:
            stage.must("POST", *report(name, f"seen_before_{run}"))


def has_aged(stage: Stage, run: str) -> None:
    """It has aged once, whether the service decided that before or after it was killed."""
    entry = stage.must("GET", f"/project/issues/seen_before_{run}")
    assert (entry["status"], entry["total_occurrences"]) == ("needs_cleanup", 3)
    assert [(each["kind"], each["run_id"]) for each in entry["life"]] == [("aged", run)]
    again = stage.must("POST", *report(run, f"seen_before_{run}"))
    assert again["project_backlog_entry"]["total_occurrences"] == 4


def started(stage: Stage, run: str) -> None:
    stage.must("POST", "/runs/start", plan(run, "P1", "P2"))
    stage.must("POST", *issue(run))  # so that files exist which the next change leaves alone


def one_phase_left(stage: Stage, run: str) -> None:
    started(stage, run)
    stage.must("POST", *result(run, "P1", new_file("src/one.txt")))


def patch_pending(stage: Stage, run: str) -> None:
    stage.must("POST", "/runs/start", plan(run, "P1", "P2", category="schema_contract_change"))
    stage.must("POST", *result(run, "P1", new_file("src/one.txt")))


def beside_another(stage: Stage, run: str) -> None:
    """Two phases side by side: an agent has the first one."""
    document = plan(run, "P1", "P2", "P3")
    for phase, path in zip(document["phases"][:2], ("src/one.txt", "src/two.txt"), strict=True):
        phase |= {"depends_on": [], "allowed_paths": [path]}
    stage.must("POST", "/runs/start", document)
    claim = {"role": "builder", "agent": "codex", "lease_seconds": 900}
    assert stage.must("POST", f"/runs/{run}/claim", claim)["phase_id"] == "P1"


def waiting_for_ci(stage: Stage, run: str) -> None:
    """Two of three phases side by side wait for CI: the first is judged, nobody does it."""
    if stage.jobs != "outside":  # no worker of CI, and no upkeep that writes files
        stage.stop()
        stage.jobs = "outside"
        stage.start()
        profile = {"command": "true"}
        rules = {"mode": "local", "profiles": {"normal": profile, "strict": profile}}
        stage.must("PUT", "/project/ruleset", {"project_id": "Autopack", "ci": rules})
    document = plan(run, "P1", "P2", "P3")
    document["run"]["run_scope"] = "multi_tier"
    for phase in document["phases"]:
        phase |= {"depends_on": [], "allowed_paths": [f"src/{phase['phase_id']}/**"]}
    stage.must("POST", "/runs/start", document)
    for phase_id in ("P1", "P2", "P3"):
        claim = {"role": "builder", "agent": "codex", "lease_seconds": 900}
        item = stage.must("POST", f"/runs/{run}/claim", claim)
        assert item["phase_id"] == phase_id
        stage.leases[phase_id] = item["lease"]["token"]
        if phase_id != "P3":  # its agent is still at work
            hand_in(stage, run, phase_id)


def hand_in(stage: Stage, run: str, phase_id: str) -> None:
    path, body = result(run, phase_id, new_file(f"src/{phase_id}/new.txt"))
    stage.must("POST", path, body | {"lease_token": stage.leases[phase_id]})


def others_go_on(stage: Stage, run: str) -> None:
    """The work of the phases beside the undone one is there, and the agent at work continues."""
    names = stage.repo.git("ls-tree", "-r", "--name-only", f"autonomous/{run}", "src/")
    assert [name for name in names.split() if name.endswith("new.txt")] == ["src/P2/new.txt"]
    hand_in(stage, run, "P3")
    [tier] = stage.must("GET", f"/runs/{run}")["tiers"]
    states = {phase["phase_id"]: phase["state"] for phase in tier["phases"]}
    assert states == {"P1": "FAILED", "P2": "CI_RUNNING", "P3": "CI_RUNNING"}
    queued = stage.must("GET", f"/runs/{run}/ci")["ci_runs"]
    assert [run["phase_id"] for run in queued if run["ended_at"] is None] == ["P2"]


def ended(stage: Stage, run: str) -> None:
    one_phase_left(stage, run)
    stage.must("POST", *result(run, "P2", new_file("src/two.txt")))


def base_moved(stage: Stage, run: str) -> None:
    ended(stage, run)
    tree = stage.repo.git("rev-parse", "main^{tree}")
    commit = stage.repo.git("commit-tree", tree, "-p", "main", "-m", "Another's work")
    stage.repo.git("update-ref", "refs/heads/main", commit)


def approval(run: str) -> tuple[str, Json]:
    key, tidy = f"untidy_in_{run}", new_file("src/tidy.txt")
    body = {
        "recommendation": "approve",
        "issues_found": [{"issue_key": key, "source": "audit", "category": "style"}],
        "suggested_patches": [{"description": "Tidy up", "patch_content": tidy}],
    }
    return f"/runs/{run}/phases/P1/auditor_result", body


@dataclass(frozen=True)
class Change:
    """A request to a run, what has to be there, and the steps at which its work can be cut short.

    Those of `undecided` come before the commit in Postgres, those of `decided` after it.
    """

    prepare: Callable[[Stage, str], None]
    request: Callable[[str], tuple[str, Json]]
    status: int
    undecided: tuple[str, ...]
    decided: tuple[str, ...]
    key: str = ""
    # Whether the first answer is given again; otherwise the request finds nothing left to do.
    is_repeated: bool = True
    see: Callable[[Stage, str], None] | None = None


AFTER_REFS = (  # "ref_moved" lies between the branch and the tag
    *("committed", "ref_moved", "refs_moved"),
    *("file_renamed", "file_renamed 2", "projected", "mirrored"),
)
CHANGES = {
    "start_run": Change(
        prepare=lambda stage, run: None,
        request=lambda run: ("/runs/start", plan(run, "P1", "P2")),
        status=201,
        undecided=("locked", "flushed", "refs_prepared"),
        decided=("committed", "refs_moved", "file_renamed 2", "mirrored"),
    ),
    "patch_applied": Change(
        prepare=started,
        request=lambda run: result(run, "P1", new_file("src/one.txt")),
        status=200,
        undecided=(
            *("locked", "objects_verified", "commit_written"),
            *("object_written", "object_written 3", "objects_written", "flushed"),
            *("ref_locked", "ref_locked 2", "refs_prepared"),
        ),
        decided=AFTER_REFS,
    ),
    "patch_applied_side_by_side": Change(
        prepare=beside_another,
        request=lambda run: result(run, "P2", new_file("src/two.txt")),
        status=200,
        undecided=("commit_written", "refs_prepared"),
        decided=("committed", "refs_moved", "mirrored"),
    ),
    "phase_undone_beside_others": Change(
        prepare=waiting_for_ci,
        request=lambda run: (f"/runs/{run}/phases/P1/update_status", {"state": "FAILED"}),
        status=200,
        # The first commit restores the tree, the second has the patch of P2 again.
        undecided=("locked", "commit_written", "commit_written 2", "flushed", "refs_prepared"),
        decided=("committed", "refs_moved", "file_renamed 2", "mirrored"),
        is_repeated=False,
        see=others_go_on,
    ),
    "patch_refused": Change(
        prepare=started,
        request=lambda run: result(run, "P1", STALE),
        status=409,
        undecided=("locked",),
        decided=("files_begun", "file_renamed", "mirrored"),
    ),
    "run_completed": Change(
        prepare=one_phase_left,
        request=lambda run: result(run, "P2", new_file("src/two.txt")),
        status=200,
        # The second commit is the record.
        undecided=("commit_written", "commit_written 2", "objects_written 2", "refs_prepared"),
        decided=("committed", "refs_moved", "file_renamed 3", "mirrored"),
    ),
    "pending_patch_approved_with_a_fix_up": Change(
        prepare=patch_pending,
        request=approval,
        status=200,
        undecided=("objects_written 2", "commit_written 2", "refs_prepared"),
        decided=("committed", "refs_moved", "file_renamed 2", "backlog_written", "mirrored"),
    ),
    "issue_recorded": Change(
        prepare=started,
        request=issue,
        status=201,
        undecided=("locked",),
        decided=("counted", "files_begun", "file_renamed", "files_written", "backlog_written"),
        key="issue-1",
    ),
    "issue_aged": Change(
        prepare=seen_in_two_runs,
        request=lambda run: report(run, f"seen_before_{run}"),
        status=201,
        undecided=(),
        decided=("counted", "entries_locked", "aged", "files_begun", "projected"),
        key="issue-2",
        see=has_aged,
    ),
    "rolled_back": Change(
        prepare=ended,
        request=lambda run: (f"/runs/{run}/rollback", {"to_phase": "P1", "reason": "P2 is wrong"}),
        status=200,
        undecided=("commit_written", "refs_prepared"),
        decided=("committed", "refs_moved", "file_renamed"),
        key="rollback-1",
    ),
    "rebased": Change(
        prepare=base_moved,
        request=lambda run: (f"/runs/{run}/rebase", {}),
        status=201,
        undecided=("locked", "commit_written 2", "commit_written 3", "refs_prepared"),
        decided=("committed", "refs_moved", "file_renamed 2", "mirrored"),
    ),
}


def send(stage: Stage, change: Change, run: str) -> httpx.Response:
    path, body = change.request(run)
    return stage.call("POST", path, body, change.key)


def cut_short(stage: Stage, change: Change, run: str, step: str) -> None:
    """Send the request to a service that dies of it at a step, and start the service again."""
    name, _, passage = step.partition(" ")
    stage.kill_at(name, int(passage or 1))
    with pytest.raises(httpx.TransportError):
        send(stage, change, run)
    stage.await_death()
    stage.start()


def history(stage: Stage, run: str) -> list[tuple[Any, ...]]:
    """What happened, without the times and ids that differ from one telling to the next."""
    events = stage.must("GET", f"/runs/{run}/events?limit=1000")["events"]
    return [(e["kind"], e["phase_id"], e["from_state"], e["to_state"]) for e in events]


# All but one are a campaign: the steps are in code that all changes share.
each_change = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "patch_applied" else pytest.mark.campaigns)
        for name in CHANGES
    ],
)


@each_change
def test_a_change_cut_short_after_its_commit_is_finished_and_answered_as_the_first_time(
    stage: Stage, name: str
) -> None:
    """One service dies at one step after the other, each time of the change to a run of its own."""
    change = CHANGES[name]
    is_new_run = name in ("start_run", "rebased")
    for number, step in enumerate(change.decided):
        run = f"run-{number}"
        change.prepare(stage, run)
        unchanged = None if is_new_run else history(stage, run)
        # The upkeep may write the files of what came before, and so end the service too early.
        for _ in range(3):
            cut_short(stage, change, run, step)
            stage.assert_consistent(run)
            before = history(stage, run)
            if before != unchanged:
                break
        answer = send(stage, change, run)
        if is_new_run:  # it says by its status that the run was there
            assert answer.status_code == 200, f"{step}: {answer.text}"
        else:
            assert answer.status_code == change.status, f"{step}: {answer.text}"
            assert ("Idempotency-Replayed" in answer.headers) is change.is_repeated, step
        assert history(stage, run) == before, step
        if change.see is not None:
            change.see(stage, run)
    stage.assert_consistent()


@each_change
def test_a_change_that_stops_before_its_commit_leaves_nothing_and_succeeds_when_sent_again(
    stage: Stage, name: str
) -> None:
    """One service dies at one step after the other: as each death leaves nothing, it may."""
    change, run = CHANGES[name], "run-001"
    change.prepare(stage, run)
    before = history(stage, run) if name != "start_run" else []
    for step in change.undecided:
        cut_short(stage, change, run, step)
        stage.assert_consistent()
        if name == "start_run":
            assert stage.call("GET", f"/runs/{run}").status_code == 404, step
        else:
            assert history(stage, run) == before, step
    answer = send(stage, change, run)
    assert answer.status_code == change.status, answer.text
    assert "Idempotency-Replayed" not in answer.headers
    stage.assert_consistent()
    after = history(stage, run)
    assert send(stage, change, run).json() == answer.json()
    assert history(stage, run) == after
    if change.see is not None:
        change.see(stage, run)
        stage.assert_consistent()

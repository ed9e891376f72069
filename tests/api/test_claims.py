"""Agents claim work, keep their leases, lose them, and hand in what they made. (rules §4)"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text

from autopack.config import Settings
from autopack.database import make_engine
from autopack.domain.path_policy import DEFAULT_PROTECTED
from autopack.domain.ruleset import DEFAULT_UNAVAILABLE_MESSAGES
from autopack.mirror.files import MirrorUnusableError

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration

Json = dict[str, Any]
SECONDS = 900
STALE = (
    "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
    "@@ -1 +1 @@\n-VALUE = 41\n+VALUE = 42\n"
)
NEEDS_APPROVAL = {"task_category": "debt_cleanup"}  # its patches wait for an Auditor


@pytest.fixture
def engine(agents: Agents) -> Engine:
    engine: Engine = agents.app.state.context.engine
    return engine


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


class TestClaim:
    def test_a_builder_and_then_an_auditor_take_a_phase_to_its_end(
        self, api: Api, agents: Agents
    ) -> None:
        api.start(phase=NEEDS_APPROVAL)
        agents.nothing_for("auditor")
        item = agents.claim()
        assert api.phase()["state"] == "EXECUTING"
        assert api.run()["state"] == "PHASE_EXECUTION"
        agents.nothing_for("builder")
        assert agents.build(item).json()["phase_state"] == "GATE"
        agents.nothing_for("builder")
        review = agents.claim("auditor")
        assert api.phase()["state"] == "GATE"
        assert review["lease"]["fence"] > item["lease"]["fence"]
        agents.nothing_for("auditor")
        answer = agents.review(token=review["lease"]["token"])
        assert answer.json()["phase_state"] == "COMPLETE", answer.text
        assert api.run()["state"] == "DONE_SUCCESS"
        by = {attempt["role"]: attempt["agent"] for attempt in attempts(api)}
        assert by == {"builder": "builder@host-1", "auditor": "auditor@host-1"}

    @pytest.mark.parametrize("role", ["builder", "auditor"])
    def test_of_a_run_that_is_over_is_refused_with_its_reason(
        self, api: Api, agents: Agents, role: str
    ) -> None:
        api.start()
        api.client.post("/runs/run-001/cancel", json={"reason": "the plan was wrong"})
        api.refused(agents.ask(role), 409, "run_over", "the plan was wrong")
        api.refused(agents.peek(role), 409, "run_over", "the plan was wrong")

    def test_at_the_end_of_a_runs_time_is_refused(self, api: Api, agents: Agents) -> None:
        api.start(max_duration_minutes=5)
        agents.wait(minutes=6)
        api.refused(agents.peek(), 409, "run_over", "max_duration_minutes 5")
        api.refused(agents.ask(), 409, "run_over", "max_duration_minutes 5")

    def test_of_an_unknown_run_is_404_and_of_an_unknown_role_422(
        self, api: Api, agents: Agents
    ) -> None:
        api.refused(agents.ask(run_id="nobody"), 404, "not_found", "nobody")
        api.refused(agents.peek(run_id="nobody"), 404, "not_found", "nobody")
        api.start()
        for wrong in ({"role": "verifier"}, {"lease_seconds": 0}, {"lease_seconds": 86_401}):
            api.refused(agents.ask(**wrong), 422)
        assert api.phase()["state"] == "QUEUED"

    def test_with_nothing_left_to_spend_ends_the_run_and_says_so(
        self, api: Api, agents: Agents
    ) -> None:
        api.start(phases=2, token_cap=100)
        assert agents.build(agents.claim(), tokens_used=100).status_code == 200
        api.refused(agents.peek(), 409, "run_over", "token_cap 100")
        assert api.run()["ended_at"] is None
        api.refused(agents.ask(), 409, "run_over", "token_cap 100 is used up: 100 tokens used")
        run = api.run()
        assert run["state"] == "DONE_FAILED_BUDGET_EXHAUSTED"
        assert run["failure_code"] == "token_cap"
        assert "100 tokens used" in api.file("run-001", "incident.md")

    def test_is_handed_over_even_where_files_lag(
        self, api: Api, agents: Agents, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api.start()

        def refuse(top: Any, files: Any) -> None:
            raise MirrorUnusableError(top.path, OSError(28, "No space left on device"))

        with monkeypatch.context() as disk:
            disk.setattr("autopack.mirror.mirror.replace_files", refuse)
            item = agents.claim()
        assert agents.build(item).status_code == 200
        assert "DONE_SUCCESS" in api.file("run-001", "run_summary.md")


class TestLease:
    def test_fences_rise_with_every_claim(self, api: Api, agents: Agents) -> None:
        api.start()
        fences = []
        for number in range(3):
            item = agents.claim()
            fences.append(item["lease"]["fence"])
            agents.build(item, status="failed", patch="", notes=f"try {number}")
        assert fences == sorted(set(fences))

    def test_that_is_not_held_any_more_is_lost(self, api: Api, agents: Agents) -> None:
        api.start(phases=2)
        used = agents.claim()
        agents.build(used, status="failed", patch="")
        api.refused(agents.build(used), 409, "lease_lost", "P0.0")
        lapsed = agents.claim()
        agents.wait(seconds=SECONDS)
        api.refused(agents.build(lapsed), 409, "lease_lost", "P0.0")
        agents.claim()
        unknown = {**lapsed, "lease": {"token": "x" * 43}}
        for stale in (used, lapsed, unknown):
            api.refused(agents.build(stale), 409, "lease_lost", "P0.0")
        assert api.phase()["builder_attempts_used"] == 2
        assert api.head() == api.run()["base_commit"]

    def test_is_for_its_phase_and_its_role_alone(self, api: Api, agents: Agents) -> None:
        api.start(phases=2, phase=NEEDS_APPROVAL)
        item = agents.claim()
        token = item["lease"]["token"]
        elsewhere = api.result(phase_id="P0.1", lease_token=token)
        api.refused(elsewhere, 409, "lease_lost", "P0.1")
        api.refused(agents.review(token=token), 409, "lease_lost", "P0.0")
        agents.build(item)
        review = agents.claim("auditor")
        api.refused(agents.build(review), 409, "lease_lost", "P0.0")
        assert agents.review(token=review["lease"]["token"]).status_code == 200

    def test_that_another_holds_keeps_results_out(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        item = agents.claim()
        before = api.run()
        until = item["lease"]["expires_at"][:16]
        api.refused(api.result(), 409, "lease_held", "P0.0", until)
        assert api.run() == before
        agents.build(item)
        review = agents.claim("auditor")
        api.refused(agents.review(), 409, "lease_held", "P0.0")
        assert agents.review(token=review["lease"]["token"]).status_code == 200

    def test_is_not_needed_while_no_agent_holds_one(self, api: Api, agents: Agents) -> None:
        api.start(phases=2, phase=NEEDS_APPROVAL)
        assert api.result().status_code == 200
        assert agents.review().status_code == 200
        agents.claim()
        agents.wait(seconds=SECONDS)
        assert api.result(phase_id="P0.1").status_code == 200

    def test_that_was_used_gives_the_same_answer_to_the_same_result(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim()
        first = agents.build(item)
        again = agents.build(item)
        assert again.headers["idempotency-replayed"] == "true"
        assert again.json() == first.json()
        assert len(api.commits()) == 1

    def test_of_an_ended_run_is_answered_that_the_run_is_over(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim()
        api.client.post("/runs/run-001/cancel", json={"reason": "enough"})
        api.refused(agents.build(item), 409, "run_over", "enough")

    def test_that_lapsed_uses_a_try_and_shuts_out_the_agent_that_slept(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        asleep = agents.claim()
        agents.beat(asleep, 70)
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        phase = api.phase()
        assert (phase["state"], phase["builder_attempts_used"]) == ("QUEUED", 1)
        assert phase["tokens_used"] == api.run()["tokens_used"] == 70
        awake = agents.claim()
        assert awake["lease"]["fence"] > asleep["lease"]["fence"] + 1
        assert agents.beat(asleep)["directive"] == "stop"
        patch = api.new_file("src/late.txt")
        api.refused(agents.build(asleep, patch=patch), 409, "lease_lost", "claim again")
        assert agents.build(awake).status_code == 200
        assert api.run()["state"] == "DONE_SUCCESS"
        assert "src/late.txt" not in api.repo.git("ls-tree", "-r", "--name-only", api.head())

    def test_of_an_auditor_that_lapsed_uses_an_auditor_try(self, api: Api, agents: Agents) -> None:
        api.start(phase={"task_category": "schema_change"})
        agents.build(agents.claim())
        asleep = agents.claim("auditor")
        agents.wait(seconds=SECONDS)
        awake = agents.claim("auditor")
        phase = api.phase()
        assert (phase["builder_attempts_used"], phase["auditor_attempts_used"]) == (1, 1)
        api.refused(agents.review(token=asleep["lease"]["token"]), 409, "lease_lost")
        assert agents.review(token=awake["lease"]["token"]).status_code == 200


class TestHeartbeat:
    def test_extends_the_lease_by_its_own_length(self, api: Api, agents: Agents) -> None:
        api.start()
        item = agents.claim()
        for _ in range(3):
            agents.wait(seconds=SECONDS - 10)
            answer = agents.beat(item, 5)
            assert answer["directive"] == "continue"
            assert moment(answer["expires_at"]) > agents.now + timedelta(seconds=SECONDS - 1)
            assert moment(api.phase()["deadline_at"]) == moment(answer["expires_at"])
        agents.upkeep()
        assert agents.build(item).status_code == 200

    def test_comes_too_late_at_the_moment_when_the_lease_ends(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim()
        end = moment(item["lease"]["expires_at"])
        context = agents.app.state.context
        agents.app.state.context = replace(context, now=lambda: end)
        answer = agents.beat(item)
        assert (answer["directive"], answer["expires_at"]) == ("stop", None)
        assert api.phase()["state"] == "QUEUED"

    def test_never_shortens_the_lease_though_the_clock_was_set_back(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim()
        agents.wait(seconds=60)
        end = agents.beat(item)["expires_at"]
        agents.wait(seconds=-30)
        assert agents.beat(item)["expires_at"] == end
        assert api.phase()["deadline_at"] == end

    def test_never_extends_past_the_runs_end(self, api: Api, agents: Agents) -> None:
        run = api.start(max_duration_minutes=20)
        item = agents.claim(lease_seconds=86_400)
        assert item["lease"]["expires_at"] == run["deadline_at"]
        assert agents.beat(item)["expires_at"] == run["deadline_at"]
        agents.wait(minutes=20)
        answer = agents.beat(item)
        assert (answer["directive"], answer["expires_at"]) == ("stop", None)
        assert "DONE_FAILED_BUDGET_EXHAUSTED" in answer["reason"]
        assert api.run()["failure_code"] == "duration_cap"

    @pytest.mark.parametrize(
        ("token_cap", "spent", "names"),
        [(1_000, 1_001, "token_cap 1000"), (5_000_000, 500_001, "incident_token_cap 500000")],
    )
    def test_stops_where_the_budget_is_gone_and_gives_no_more_time(
        self, api: Api, agents: Agents, token_cap: int, spent: int, names: str
    ) -> None:
        api.start(token_cap=token_cap)
        item = agents.claim()
        agents.wait(seconds=100)
        assert agents.beat(item, spent - 1)["directive"] == "continue"
        until = api.phase()["deadline_at"]
        agents.wait(seconds=100)
        answer = agents.beat(item, spent)
        assert answer["directive"] == "stop"
        assert names in answer["reason"]
        assert answer["expires_at"] == until == api.phase()["deadline_at"]
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        assert api.run()["tokens_used"] == spent

    def test_stops_an_agent_without_its_lease(self, api: Api, agents: Agents) -> None:
        api.start(phases=2)
        used, before = agents.claim(), api.run()
        stranger = {**used, "lease": {"token": "somebody else's"}}
        assert agents.beat(stranger)["directive"] == "stop"
        assert agents.beat({**used, "phase_id": "P0.1"})["directive"] == "stop"
        assert api.run() == before
        agents.build(used)
        answer = agents.beat(used)
        assert (answer["directive"], answer["expires_at"]) == ("stop", None)
        lapsed = agents.claim()
        agents.wait(seconds=SECONDS)
        assert agents.beat(lapsed)["directive"] == "stop"
        assert api.phase(phase_id="P0.1")["builder_attempts_used"] == 1
        api.client.post("/runs/run-001/cancel", json={})
        answer = agents.beat(lapsed)
        assert answer["directive"] == "stop"
        assert "DONE_FAILED_REQUIRES_HUMAN_REVIEW" in answer["reason"]

    def test_writes_no_event_no_revision_and_no_file(self, api: Api, agents: Agents) -> None:
        api.start()
        item = agents.claim()
        before, events = api.run(), agents.events()
        files = {path: path.stat().st_mtime_ns for path in api.runs_dir.rglob("*")}
        agents.wait(seconds=10)
        agents.beat(item, 5)
        after = api.run()
        assert after["revision"] == before["revision"]
        assert after["tokens_used"] == 0
        assert agents.events() == events
        assert {path: path.stat().st_mtime_ns for path in api.runs_dir.rglob("*")} == files

    def test_of_an_unknown_phase_is_404(self, api: Api, agents: Agents) -> None:
        api.start()
        body = {"lease_token": "x"}
        for path in ("/runs/run-001/phases/none/heartbeat", "/runs/none/phases/P0.0/heartbeat"):
            api.refused(api.client.post(path, json=body), 404, "not_found", "none")

    def test_leaves_no_lock_behind_whatever_it_is_answered(
        self, api: Api, agents: Agents, engine: Engine
    ) -> None:
        """A lock that stays on an idle connection would stop the run for every other request."""
        api.start()
        item = agents.claim()
        agents.wait(seconds=2_000)
        assert agents.beat(item)["directive"] == "stop"
        for path in ("run-001/phases/none", "none/phases/P0.0", "run-001/phases/P0.0"):
            api.client.post(f"/runs/{path}/heartbeat", json={"lease_token": "x"})
        with engine.connect() as connection:
            left = connection.scalars(
                text(
                    "SELECT query FROM pg_stat_activity WHERE datname = current_database()"
                    " AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"
                )
            ).all()
        assert left == []
        agents.claim()


class TestReservation:
    def test_lasts_as_long_as_the_lease(self, api: Api, agents: Agents) -> None:
        api.start(phases=3, phase=NEEDS_APPROVAL, token_cap=900_000)
        item = agents.claim()
        assert item["lease"]["tokens_reserved"] == 400_000
        assert agents.reserved() == (400_000, 400_000)
        agents.build(item, tokens_used=300_000)
        assert agents.reserved() == (0, 0)
        review = agents.claim("auditor")
        assert agents.reserved() == (400_000, 400_000)
        agents.review(token=review["lease"]["token"])
        item = agents.claim()
        agents.build(item, tokens_used=350_000)
        review = agents.claim("auditor")
        assert review["lease"]["tokens_reserved"] == 250_000
        assert review["left"]["run_tokens"] == 250_000
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        assert agents.reserved() == (0, 0)

    @pytest.mark.parametrize("state", ["QUEUED", "GATE", "FAILED", "SKIPPED"])
    def test_ends_with_a_lease_that_the_operators_hand_ends(
        self, api: Api, agents: Agents, engine: Engine, state: str
    ) -> None:
        api.start(phases=2)
        item = agents.claim()
        assert api.status(state).status_code == 200
        assert agents.reserved() == (0, 0)
        with engine.connect() as connection:
            assert (
                connection.scalar(text("SELECT count(*) FROM leases WHERE ended_at IS NULL")) == 0
            )
        assert agents.beat(item)["directive"] == "stop"
        api.refused(agents.build(item), 409, "lease_lost")


class TestClaimOverAllRuns:
    def test_gives_the_oldest_run_s_work_first(self, api: Api, agents: Agents) -> None:
        agents.nothing_for("builder", None)
        for name in ("run-b", "run-a", "run-c"):
            api.start(name)
        given = [agents.claim(run_id=None)["run_id"] for _ in range(3)]
        assert given == ["run-b", "run-a", "run-c"]
        agents.nothing_for("builder", None)
        agents.nothing_for("auditor", None)

    def test_passes_busy_runs_by(self, api: Api, agents: Agents, engine: Engine) -> None:
        api.start("run-a")
        api.start("run-b")
        with locked(engine, "run-a"):
            assert agents.claim(run_id=None)["run_id"] == "run-b"
            agents.nothing_for("builder", None)
        assert agents.claim(run_id=None)["run_id"] == "run-a"

    def test_passes_runs_by_that_something_is_wrong_with(self, api: Api, agents: Agents) -> None:
        for name in ("run-a", "run-b"):
            api.start(name)
        theirs = api.repo.git("commit-tree", "-m", "theirs", "main^{tree}")
        api.repo.git("update-ref", "refs/heads/autonomous/run-a", theirs)
        assert agents.claim(run_id=None)["run_id"] == "run-b"
        assert api.run("run-a")["state"] == "DONE_FAILED_POLICY_VIOLATION"

    def test_passes_a_run_by_that_the_database_does_not_give(
        self, api: Api, agents: Agents, engine: Engine, settings: Settings
    ) -> None:
        for name in ("run-a", "run-b"):
            api.start(name)
        hasty = make_engine(settings.database_url or "", 1, is_autocommit=True)
        usual = agents.app.state.context
        agents.app.state.context = replace(usual, autocommit=hasty)
        with engine.begin() as connection:
            connection.execute(text("SELECT 1 FROM runs WHERE run_id = 'run-a' FOR UPDATE"))
            assert agents.claim(run_id=None)["run_id"] == "run-b"
        assert agents.claim(run_id=None)["run_id"] == "run-a"
        agents.app.state.context = usual
        hasty.dispose()

    def test_ends_what_has_nothing_left_and_goes_on(self, api: Api, agents: Agents) -> None:
        api.start("run-a", phases=2, token_cap=100)
        agents.build(agents.claim(run_id="run-a"), tokens_used=100)
        api.start("run-b")
        assert agents.claim(run_id=None)["run_id"] == "run-b"
        assert api.run("run-a")["state"] == "DONE_FAILED_BUDGET_EXHAUSTED"

    def test_finds_what_waits_for_an_auditor(self, api: Api, agents: Agents) -> None:
        api.start("run-a")
        api.start("run-b", phase=NEEDS_APPROVAL)
        agents.build(agents.claim(run_id="run-b"))
        item = agents.claim("auditor", None)
        assert (item["role"], item["run_id"]) == ("auditor", "run-b")
        agents.nothing_for("auditor", None)


class TestWorkItem:
    def test_of_a_builder_holds_all_that_it_needs(self, api: Api, agents: Agents) -> None:
        for name in ("old-1", "old-2", "old-3"):
            api.start(name)
            api.issue("worn", name, category="docs")
            api.issue("other", name, category="tests")
        api.start(
            phases=2,
            token_cap=300_000,
            phase={
                "description": "Write it down",
                "task_category": "docs",
                "complexity": "high",
                "builder_mode": "tweak_light",
                "allowed_paths": ["src/**"],
                "expected_issues": ["known"],
            },
        )
        api.result(tokens_used=40_000)
        api.issue("odd", phase_id="P0.1", description="It is odd", evidence_refs=["a.py:1"])
        refused = api.result(
            phase_id="P0.1", patch=STALE, notes="I tried", tokens_used=1_000, agent="codex"
        )
        api.refused(refused, 409)
        item = agents.claim()
        lease = item.pop("lease")
        assert len(lease["token"]) >= 43
        assert moment(lease["expires_at"]) <= agents.now + timedelta(seconds=SECONDS)
        (attempt,) = item.pop("history")
        gate, left = item.pop("gate"), item.pop("left")
        (issue,) = item.pop("open_issues")
        assert item == {
            "role": "builder",
            "run_id": "run-001",
            "tier_id": "T0",
            "phase_id": "P0.1",
            "task": {
                "name": "Phase 1 of tier 0",
                "description": "Write it down",
                "task_category": "docs",
                "complexity": "high",
                "builder_mode": "tweak_light",
                "allow_empty": False,
                "allowed_paths": ["src/**"],
                "expected_issues": ["known"],
                "issue_key": None,
            },
            "repository": {
                "path": str(api.repo.path),
                "remote": None,
                "branch": "autonomous/run-001",
                "base_commit": api.head(),
            },
            "aged_issues": ["worn"],
            "debt": None,
            "review": None,
            "unavailable_messages": {
                agent: list(messages) for agent, messages in DEFAULT_UNAVAILABLE_MESSAGES.items()
            },
            "prices": {},
        }
        assert left.pop("minutes") in (119, 120)
        assert left == {
            "builder_attempts": 1,
            "auditor_attempts": 1,
            "phase_tokens": 199_000,
            "tier_tokens": 1_200_000 - 41_000,
            "run_tokens": 259_000,
            "run_cost_usd": None,
        }
        assert set(DEFAULT_PROTECTED) <= set(gate["protected_paths"])
        assert (gate["auto_apply"], gate["max_patch_files"]) == (True, 2)
        assert (gate["ci_profile"], gate["ci_command"]) == ("strict", None)
        assert (attempt["role"], attempt["attempt"], attempt["agent"]) == ("builder", 1, "codex")
        assert (attempt["notes"], attempt["commits"]) == ("I tried", [])
        reason, tries = attempt["reason"], " Builder tries used: 1 of 2; left: 1."
        assert refused.json()["detail"] == reason + tries
        (conflict,) = attempt["ticket"]["files"]
        assert conflict["path"] == "src/app.py"
        assert attempt["ticket"].items() <= (refused.json() | {"detail": reason}).items()
        assert (issue["issue_key"], issue["description"]) == ("odd", "It is odd")
        assert issue["evidence_refs"] == ["a.py:1"]

    def test_of_an_auditor_has_the_pending_patch(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        ask = {"review_focus": "security", "auditor_profile": "paranoid"}
        api.client.post("/runs/run-001/phases/P0.0/auditor_request", json=ask)
        patch = api.new_file("src/pending.txt")
        probe = {"probe_type": "pytest", "exit_code": 0, "stdout": "3 passed"}
        agents.build(agents.claim(), patch=patch, notes="tried hard", probe_results=[probe])
        item = agents.claim("auditor")
        assert item["repository"]["base_commit"] == api.head() == api.run()["base_commit"]
        review = item["review"]
        assert review.pop("audit_id") is not None
        (result,) = review.pop("probe_results")
        assert result.items() >= probe.items()
        assert review == {
            "review_focus": "security",
            "auditor_profile": "paranoid",
            "is_pending": True,
            "approvals_needed": 1,
            "approved_by": [],
            "dependencies": [],
            "patch_content": patch,
            "patch_content_base64": None,
            "notes": "tried hard",
        }
        assert [attempt["outcome"] for attempt in item["history"]] == ["held"]

    def test_of_an_auditor_has_the_phases_commits_on_the_branch(
        self, api: Api, agents: Agents
    ) -> None:
        api.start(phases=2)
        api.result()
        before = api.head()
        agents.build(agents.claim(), status="needs_review")
        item = agents.claim("auditor")
        assert item["repository"]["base_commit"] == api.head() != before
        assert item["review"]["is_pending"] is False
        diff = item["review"]["patch_content"]
        assert "src/P0.1.txt" in diff
        assert "src/P0.0.txt" not in diff
        api.repo.git("checkout", "--quiet", "--detach", before)
        api.repo.git("apply", "--index", stdin=diff)
        assert api.repo.git("write-tree") == api.repo.git("rev-parse", f"{api.head()}^{{tree}}")

    def test_gives_a_patch_that_is_no_text_in_base64(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        patch = api.new_file("src/latin.txt", "caf\0").encode().replace(b"\0", b"\xe9")
        encoded = base64.b64encode(patch).decode()
        built = agents.build(agents.claim(), patch="", patch_content_base64=encoded)
        assert built.status_code == 200, built.text
        review = agents.claim("auditor")["review"]
        assert review["patch_content"] is None
        assert base64.b64decode(review["patch_content_base64"]) == patch

    def test_gives_a_builder_the_auditors_notes(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        agents.build(agents.claim())
        review = agents.claim("auditor")
        agents.review("revise", review["lease"]["token"])
        history = agents.claim()["history"]
        assert [(each["role"], each["outcome"], each["notes"]) for each in history] == [
            ("builder", "held", None),
            ("auditor", "revised", "seen"),
        ]

    def test_can_be_seen_beforehand_and_nothing_changes(
        self, api: Api, agents: Agents, engine: Engine
    ) -> None:
        api.start(phases=2, phase=NEEDS_APPROVAL)
        for role in ("builder", "auditor"):
            before, rows = api.run(), dump(engine)
            seen = agents.peek(role).json()
            assert agents.peek("auditor" if role == "builder" else "builder").status_code == 204
            assert (api.run(), dump(engine)) == (before, rows)
            assert seen.pop("lease") is None
            item = agents.claim(role)
            del item["lease"]
            assert seen == item
            assert agents.peek(role).status_code == 204
            if role == "builder":
                api.status("GATE")

    def test_is_not_shown_while_a_lapse_is_not_settled(self, api: Api, agents: Agents) -> None:
        api.start()
        agents.claim()
        agents.wait(seconds=SECONDS)
        before = api.run()
        assert agents.peek().status_code == 204
        assert api.run() == before
        agents.upkeep()
        assert agents.peek().json()["left"]["builder_attempts"] == 2


class TestSecrecy:
    def test_a_lease_token_is_nowhere_but_in_the_claims_answer(
        self,
        api: Api,
        agents: Agents,
        engine: Engine,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        api.start(phases=3, phase=NEEDS_APPROVAL)
        said = []
        item = agents.claim()
        said.append(api.client.get("/runs/run-001/next_phase").text)
        said.append(str(agents.beat(item, 5)))
        said.append(agents.build(item, patch=STALE).text)
        said.append(agents.build(item).text)
        item = agents.claim()
        token = item["lease"]["token"]
        path = "/runs/run-001/phases/P0.0/"
        bad = {"lease_token": token, "tokens_used": -1}
        said.append(api.client.post(path + "heartbeat", json=bad).text)
        bad = {"lease_token": token, "status": token}
        said.append(api.client.post(path + "builder_result", json=bad).text.replace(token, "", 1))
        said.append(agents.build(item).text)
        said.append(agents.build(item).text)
        review = agents.claim("auditor")
        said.append(agents.review(token=review["lease"]["token"]).text)
        agents.claim()
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        api.client.post("/runs/run-001/cancel", json={})
        for path in ("", "/events", "/phases/P0.0/attempts", "/issues/index"):
            said.append(api.client.get(f"/runs/run-001{path}").text)
        said += [path.read_text() for path in api.runs_dir.rglob("*") if path.is_file()]
        said += dump(engine)
        said += capfd.readouterr()
        said.append(api.repo.git("log", "--all", "--format=%B"))
        assert len(set(agents.tokens)) == len(agents.tokens) == 4
        for token in agents.tokens:
            assert not [text for text in said if token in text]


class TestBacktest:
    def test_under_the_same_rules_nothing_differs(self, api: Api, agents: Agents) -> None:
        api.start("done", phases=2, phase=NEEDS_APPROVAL)
        for _ in range(2):
            item = agents.claim(run_id="done")
            agents.wait(seconds=600)
            agents.beat(item, 10)
            agents.wait(seconds=600)
            agents.build(item, tokens_used=20)
            review = agents.claim("auditor", "done")
            place = {"run_id": "done", "phase_id": review["phase_id"]}
            assert agents.review(token=review["lease"]["token"], **place).status_code == 200
        api.start("lapsed", phase=NEEDS_APPROVAL, max_duration_minutes=600)
        agents.beat(agents.claim(run_id="lapsed"), 30)
        agents.wait(seconds=SECONDS)
        agents.build(agents.claim(run_id="lapsed"))
        agents.beat(agents.claim("auditor", "lapsed"), 40)
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        api.start("spent", phases=2, token_cap=100)
        agents.build(agents.claim(run_id="spent"), tokens_used=100)
        agents.ask(run_id="spent")
        api.start("late")
        agents.beat(agents.claim(run_id="late", lease_seconds=86_400), 5)
        agents.wait(minutes=121)
        agents.upkeep()
        api.start("over", token_cap=100)
        agents.beat(agents.claim(run_id="over"), 101)
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        api.start("moved", phases=2)
        agents.claim(run_id="moved")
        api.status("QUEUED", "moved")
        agents.build(agents.claim(run_id="moved"))
        api.client.post("/runs/moved/cancel", json={"reason": "enough"})
        ends = {run["run_id"]: run["state"] for run in api.client.get("/runs").json()["runs"]}
        assert ends == {
            "done": "DONE_SUCCESS",
            "lapsed": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
            "spent": "DONE_FAILED_BUDGET_EXHAUSTED",
            "late": "DONE_FAILED_BUDGET_EXHAUSTED",
            "over": "DONE_FAILED_BUDGET_EXHAUSTED",
            "moved": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
        }
        ruleset = api.document("project_ruleset_Autopack.json")
        answer = api.client.post("/strategy/backtest", json={"ruleset": ruleset}).json()
        assert answer["compared_count"] == len(ends)
        for run in answer["runs"]:
            assert run["changes"] == [], run
            assert run["parted_at"] is None, run
            assert (run["skipped_inputs"], run["assumed_patches"]) == (0, 0), run
            assert run["recorded"] == run["replayed"], run

    def test_under_other_rules_a_lapse_of_a_lease_that_is_not_there_changes_nothing(
        self, api: Api, agents: Agents
    ) -> None:
        api.start("lapsed", phase={"task_category": "tests"}, max_duration_minutes=600)
        agents.beat(agents.claim(run_id="lapsed"), 30)
        agents.wait(seconds=SECONDS)
        agents.claim(run_id="lapsed")
        agents.wait(seconds=SECONDS)
        agents.upkeep()
        api.client.post("/runs/lapsed/cancel", json={})
        ruleset = api.document("project_ruleset_Autopack.json")
        ruleset["categories"]["tests"] |= {"max_builder_attempts": 1, "max_auditor_attempts": 0}
        answer = api.client.post("/strategy/backtest", json={"ruleset": ruleset}).json()
        (run,) = answer["runs"]
        assert run["replayed"]["failure_code"] == "phase_failed"
        assert run["replayed"]["tokens_used"] == 30
        assert run["skipped_inputs"] == 3

    def test_a_plan_that_other_rules_would_refuse_parts_at_its_start_and_is_not_decided_again(
        self, api: Api
    ) -> None:
        api.start(phases=2)
        api.result()
        api.client.post("/runs/run-001/cancel", json={})
        ruleset = api.document("project_ruleset_Autopack.json")
        ruleset["run"]["max_phases"] = 1
        answer = api.client.post("/strategy/backtest", json={"ruleset": ruleset}).json()
        (run,) = answer["runs"]
        assert "the plan would be refused" in run["changes"][0]
        assert run["parted_at"]["sequence"] == 1
        assert (run["skipped_inputs"], run["assumed_patches"]) == (0, 0)
        assert run["replayed"] is None


def attempts(api: Api, phase_id: str = "P0.0") -> list[Json]:
    response = api.client.get(f"/runs/run-001/phases/{phase_id}/attempts")
    assert response.status_code == 200, response.text
    found: list[Json] = response.json()["attempts"]
    return found


def dump(engine: Engine) -> list[str]:
    """Return every row of every table as text."""
    with engine.connect() as connection:
        tables = connection.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        ).all()
        return [
            str(row)
            for table in tables
            for row in connection.scalars(text(f"SELECT t::text FROM {table} t ORDER BY 1"))
        ]


@contextmanager
def locked(engine: Engine, run_id: str) -> Iterator[None]:
    """Hold a run's lock as another request would."""
    with engine.connect() as connection:
        key = {"key": run_id}
        connection.execute(text("SELECT pg_advisory_lock(hashtextextended(:key, 0))"), key)
        yield
        connection.execute(text("SELECT pg_advisory_unlock(hashtextextended(:key, 0))"), key)

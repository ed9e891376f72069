"""What a worker does when things do not go as they should. (docs/worker.md)"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from autopack.client import ApiError
from autopack.domain.next_step import NextAction
from autopack.gitrepo.workspace import ObjectCache, WorkspaceError
from autopack.views.results import NextStep
from autopack.worker.cooling import WorkerError
from autopack.worker.mailbox import Mailbox
from autopack.worker.worker import Ending, Role, wait_line

if TYPE_CHECKING:
    from .conftest import Workshop

pytestmark = pytest.mark.integration


def test_a_result_whose_answer_is_lost_counts_once(workshop: Workshop) -> None:
    workshop.start()
    lost: list[str] = []

    def lose(request: httpx.Request) -> None:
        if request.url.path.endswith("builder_result") and not lost:
            lost.append(request.headers["Idempotency-Key"])
            raise httpx.ReadError("the cable", request=request)

    workshop.transport.interfere = lose
    assert workshop.work("echo more >> README.md") is Ending.SUCCESS
    assert workshop.kinds == ["claimed", "waiting", "handed_in"]
    assert [attempt.outcome for attempt in workshop.attempts()] == ["applied"]


def test_a_claim_whose_answer_is_lost_gets_its_item_again(workshop: Workshop) -> None:
    workshop.start()
    keys: list[str] = []

    def lose(request: httpx.Request) -> None:
        if request.url.path.endswith("claim"):
            keys.append(request.headers["Idempotency-Key"])
            if len(keys) == 1:
                raise httpx.ReadError("the cable", request=request)

    workshop.transport.interfere = lose
    assert workshop.work("echo more >> README.md") is Ending.SUCCESS
    assert workshop.kinds == ["waiting", "claimed", "handed_in"]
    assert keys == [keys[0]] * 2
    assert workshop.service.get_run("run-001").tiers[0].phases[0].builder_attempts_used == 1


def test_claims_have_one_key_until_one_of_them_gets_work_and_then_another(
    workshop: Workshop,
) -> None:
    workshop.start(task_category="schema_change")
    keys: dict[str, list[str]] = {"builder": [], "auditor": []}

    def note(request: httpx.Request) -> None:
        if request.url.path.endswith("claim"):
            role = json.loads(request.content)["role"]
            keys[role].append(request.headers["Idempotency-Key"])

    workshop.transport.interfere = note
    approve = f"echo '{json.dumps({'recommendation': 'approve'})}'"
    assert workshop.work("echo more >> README.md", approve, is_once=False) is Ending.SUCCESS
    first, second, last = keys["auditor"]
    assert first == second, "nothing was found at first"
    assert len({second, last, *keys["builder"]}) == 3


def test_an_item_whose_lease_lapsed_before_its_answer_came_is_claimed_anew(
    workshop: Workshop,
) -> None:
    workshop.start()
    lost: list[str] = []

    def lose(request: httpx.Request) -> None:
        if request.url.path.endswith("claim") and not lost:
            item = workshop.service.get_run("run-001").tiers[0].phases[0]
            assert item.state == "EXECUTING"
            lost.append(request.headers["Idempotency-Key"])
            workshop.service.update_status("run-001", "P1", {"state": "QUEUED"})
            raise httpx.ReadError("the cable", request=request)

    workshop.transport.interfere = lose
    assert workshop.work("echo more >> README.md") is Ending.SUCCESS
    assert workshop.kinds[-2:] == ["claimed", "handed_in"]


def test_a_run_that_is_cancelled_stops_its_command(workshop: Workshop, tmp_path: Path) -> None:
    workshop.start()
    begun = tmp_path / "begun"

    def cancel(request: httpx.Request) -> None:
        if request.url.path.endswith("heartbeat") and begun.exists():
            workshop.transport.interfere = lambda request: None
            workshop.service.cancel("run-001", "changed our mind")

    workshop.transport.interfere = cancel
    ending = workshop.work(f"touch {begun}; sleep 1000", lease_seconds=1, is_once=False)
    assert ending is Ending.FAILURE
    assert workshop.kinds == ["claimed", "dropped", "run_over"]
    assert list((workshop.home / "work").iterdir()) == []


def test_changes_that_no_patch_can_contain_are_a_failed_try_with_a_reason(
    workshop: Workshop,
) -> None:
    workshop.start(builder_mode="tweak_light")  # two files at most
    assert workshop.work("touch a b c") is Ending.FAILURE
    (attempt,) = workshop.attempts()
    assert (attempt.status, attempt.outcome) == ("failed", "failed")
    assert "3 files were changed" in attempt.notes
    assert ".gitignore" in attempt.notes


@pytest.mark.parametrize(
    ("command", "notes"),
    [
        ("echo half > README.md; echo 'not today' >&2; exit 3", "exit code 3"),
        ("true", "changed nothing"),
        ("echo half > README.md; echo '{' > $AUTOPACK_RESULT; kill -9 $$", "exit code 137"),
        ('echo \'{"notes": "It cannot be done."}\'; exit 1', "It cannot be done."),
        ("git init -q sub; touch sub/x", "Left out, since they are other repositories: sub"),
    ],
)
def test_a_command_that_fails_is_a_failed_try(workshop: Workshop, command: str, notes: str) -> None:
    workshop.start()
    assert workshop.work(command) is Ending.FAILURE
    (attempt,) = workshop.attempts()
    assert attempt.outcome == "failed"
    assert notes in attempt.notes


@pytest.mark.parametrize(("status", "code"), [(401, "key_required"), (403, "missing_role")])
def test_a_worker_whose_key_does_not_do_ends_instead_of_spending_on_more_work(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    workshop.start()

    def refuse(*_: object, **__: object) -> None:
        raise ApiError(status, code, "not with this key", {})

    monkeypatch.setattr(workshop.service, "submit_builder_result", refuse)
    with pytest.raises(ApiError, match=code):
        workshop.work("echo more >> README.md", is_once=False)
    assert workshop.kinds == ["claimed", "refused"]


def test_a_command_over_its_time_is_stopped(workshop: Workshop) -> None:
    workshop.start()
    assert workshop.work("sleep 1000", timeout_seconds=0.2) is Ending.FAILURE
    assert "did not end within" in workshop.attempts()[0].notes


def test_a_worker_that_is_stopped_returns_its_work(workshop: Workshop) -> None:
    workshop.start()
    workshop.transport.interfere = lambda request: (
        workshop.interrupt() if request.url.path.endswith("/claim") else None
    )
    assert workshop.work("sleep 1000", is_once=False) is Ending.INTERRUPTED
    assert workshop.attempts() == []  # its work was given back: no try
    phase = workshop.service.get_run("run-001").tiers[0].phases[0]
    assert (phase.builder_attempts_used, phase.unavailable_reason) == (0, "The worker was stopped.")
    assert workshop.service.get_run("run-001").tiers[0].phases[0].state == "QUEUED"


def test_a_worker_that_cannot_reach_the_repository_ends_and_says_so(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.start()

    def refuse(*_: object, **__: object) -> None:
        raise WorkspaceError("there is no folder /srv/project on this machine")

    monkeypatch.setattr(ObjectCache, "lay_out", refuse)
    with pytest.raises(WorkerError, match=r"/srv/project.*--remote"):
        workshop.work(is_once=False)
    phase = workshop.service.get_run("run-001").tiers[0].phases[0]
    assert phase.builder_attempts_used == 0
    assert "there is no folder /srv/project" in (phase.unavailable_reason or "")


def test_an_auditor_without_a_verdict_hands_in_nothing(workshop: Workshop) -> None:
    workshop.start(task_category="debt_cleanup")
    assert workshop.work("echo more >> README.md") is Ending.SUCCESS
    assert workshop.work(auditor="echo 'I approve of this.'") is Ending.FAILURE
    assert workshop.kinds[-1] == "no_verdict"
    assert [attempt.role for attempt in workshop.attempts()] == ["builder"]


def test_a_worker_says_what_it_waits_for_once_a_minute(workshop: Workshop) -> None:
    workshop.start(task_category="debt_cleanup")
    workshop.work("echo more >> README.md")
    claims: list[str] = []

    def claimed(request: httpx.Request) -> None:
        if request.url.path.endswith("/claim"):
            claims.append(request.url.path)
        if workshop.kinds.count("waiting") == 2:
            workshop.interrupt()

    workshop.clock = lambda: 15.0 * len(claims)  # each claim takes 15 seconds
    workshop.transport.interfere = claimed
    assert workshop.work(is_once=False) is Ending.INTERRUPTED
    told = [step.text for step in workshop.steps if step.kind == "waiting"]
    assert len(claims) == 6  # told after the first and the fifth; the sixth is interrupted
    assert len(told) == 2
    assert told[0].startswith("phase 'P1' waits for an Auditor, until 2")
    assert told[0].endswith("; start one with --auditor")


def test_a_worker_of_one_program_says_that_it_may_not_review_and_another_one_does(
    workshop: Workshop,
) -> None:
    workshop.start(task_category="security_auth_change")
    claims: list[str] = []

    def claimed(request: httpx.Request) -> None:
        if request.url.path.endswith("/claim"):
            claims.append(request.url.path)
        if len(claims) == 7:
            workshop.interrupt()

    workshop.transport.interfere = claimed
    build, review = "echo more >> README.md", "echo 'RECOMMENDATION: approve'"
    ending = workshop.work(build, review, name="codex@test", is_once=False)
    assert ending is Ending.INTERRUPTED
    told = [step.text for step in workshop.steps if " another Auditor" in step.text]
    assert told == [
        "run run-001: P1 waits for another Auditor: local:codex@test built it "
        "(docs/worker.md, Two roles)"
    ], "it is said once, not at each claim"
    assert [attempt.role for attempt in workshop.attempts()] == ["builder"]
    workshop.transport.interfere = lambda request: None
    workshop.mailbox = Mailbox()  # that of another worker
    assert workshop.work(auditor=review, name="claude@test") is Ending.SUCCESS
    assert [attempt.role for attempt in workshop.attempts()] == ["builder", "auditor"]


def test_a_review_that_its_model_may_not_do_is_returned_without_a_try(workshop: Workshop) -> None:
    """An agent's model is only known by its answer, so the first claim cannot keep it back."""
    ruleset = workshop.service.get_ruleset()
    ruleset["categories"]["security_auth_change"]["independence"] = "model"
    workshop.service.put_ruleset(ruleset)
    workshop.start(task_category="security_auth_change")
    model = {"model": "gpt-5", "notes": "Did it."}
    build = f"echo more >> README.md; echo '{json.dumps(model)}' > \"$AUTOPACK_RESULT\""
    assert workshop.work(build, kind="codex") is Ending.SUCCESS
    review = f"echo '{json.dumps({'recommendation': 'approve', 'model': 'gpt-5'})}'"
    assert workshop.work(auditor=review, kind="codex") is Ending.FAILURE
    assert workshop.kinds[-2:] == ["refused", "given_up"]
    (phase,) = workshop.service.get_run("run-001").tiers[0].phases
    assert (phase.state, phase.auditor_attempts_used) == ("GATE", 0)
    item = workshop.service.claim("auditor", "other@test", run_id="run-001")
    assert item is not None, "the lease was given back"


@pytest.mark.parametrize(
    ("action", "agent", "roles", "advice"),
    [
        (NextAction.AUDIT, None, ["builder"], "; start one with --auditor"),
        (NextAction.AUDIT, None, ["builder", "auditor"], ""),
        (NextAction.AUDIT, "claude@host", ["builder"], ""),
        (NextAction.BUILD, None, ["auditor"], "; start one with --builder"),
        (NextAction.CI, None, ["builder"], ""),
    ],
)
def test_an_option_is_named_where_nobody_has_the_role(
    action: NextAction, agent: str | None, roles: list[Role], advice: str
) -> None:
    until = datetime(2026, 11, 22, 12, 0).astimezone()
    step = NextStep(action=action, phase_id="P1", detail="It waits", agent=agent, until=until)
    assert wait_line(step, roles) == f"It waits, until 2026-11-22 12:00{advice}"


def test_a_run_without_tokens_ends_with_a_warning(workshop: Workshop) -> None:
    workshop.start()
    assert workshop.work("echo more >> README.md", is_once=False) is Ending.SUCCESS
    assert workshop.kinds[-2:] == ["run_over", "warning"]
    assert "no tokens were counted" in workshop.steps[-1].text


def test_an_agents_last_words_are_wherever_its_failure_is_shown(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.start()
    words = "the build needs a licence file"
    workshop.work(f"echo more > README.md; echo '{words}' >&2; exit 3")
    workshop.service.cancel("run-001", "Enough.")
    lines = [step.text for step in workshop.steps if step.kind == "handed_in"]
    assert lines[0].endswith(f"the agent said: {words}")
    assert words in workshop.attempts()[0].log_tail
    shown = {
        path.relative_to(tmp_path / "runs" / "run-001").parts[0]
        for path in (tmp_path / "runs" / "run-001").rglob("*.md")
        if words in path.read_text()
    }
    assert shown == {"incident.md", "phases"}

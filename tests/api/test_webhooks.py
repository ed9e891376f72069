"""Webhooks: what they are told, signed and at least once, whatever the receiver does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from standardwebhooks import Webhook as Verifier
from tests.outbound.receiver import Message, Receiver

from autopack.domain.webhooks import make_secret, retry_wait, signed_headers
from autopack.outbound import send
from autopack.services.deliveries import deliver_webhook
from autopack.services.notifications import tell_webhooks

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from fastapi import FastAPI
    from tests.api.conftest import Agents, Api

    from autopack.config import Settings

pytestmark = pytest.mark.integration

Json = dict[str, Any]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_private": True})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@dataclass
class Hooks:
    """The service, a receiver, and the background work by hand, with the agents' clock."""

    api: Api
    agents: Agents
    app: FastAPI
    receiver: Receiver

    def make(self, *kinds: str, **fields: Any) -> str:
        """Make the webhook `hook` and return its secret."""
        body = {"name": "hook", "url": self.receiver.url, "kinds": kinds or ["*"], **fields}
        response = self.api.client.post("/webhooks", json=body)
        assert response.status_code == 201, response.text
        return str(response.json()["secret"])

    def work(self) -> list[Message]:
        """Find out what is to be told, deliver what is due; return what came."""
        before = len(self.receiver.messages)
        tell_webhooks(self.app.state.context)
        with self.app.state.context.reading() as session:
            keys = list(session.scalars(text("SELECT id FROM webhooks ORDER BY id")))
        for key in keys:
            deliver_webhook(self.app.state.context, key)
        return self.receiver.messages[before:]

    def deliveries(self, name: str = "hook") -> list[Json]:
        response = self.api.client.get(f"/webhooks/{name}/deliveries")
        assert response.status_code == 200, response.text
        found: list[Json] = response.json()["deliveries"]
        return found

    def one(self) -> Json:
        (found,) = self.api.client.get("/webhooks").json()["webhooks"]
        return dict(found)


@pytest.fixture
def hooks(
    api: Api, agents: Agents, app: FastAPI, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Hooks:
    # A machine that stalls for seconds is no receiver that is silent.
    monkeypatch.setattr("autopack.services.deliveries.send", partial(send, seconds=60))
    return Hooks(api, agents, app, receiver)


def opened(message: Message, secret: str) -> Json:
    """Check a message's signature, as a receiver does, and return its content."""
    # The library compares the time with its own clock.
    content = Verifier(secret).verify(message.body, message.headers)
    assert content == json.loads(message.body)
    return dict(content)


def test_an_event_is_told_once_signed_and_as_a_cloud_event(hooks: Hooks) -> None:
    hooks.api.start("before")
    secret = hooks.make("RunStarted", "RunEnded")
    assert hooks.work() == []
    hooks.api.start()
    hooks.api.result()
    started, ended = hooks.work()
    assert hooks.work() == []
    content = opened(started, secret)
    event = hooks.agents.events()[0]
    assert content.pop("data") == {**event, "run_id": "run-001"}
    assert content == {
        "specversion": "1.0",
        "id": started.headers["webhook-id"],
        "source": "/autopack/Autopack",
        "type": "autopack.event.RunStarted",
        "subject": "run-001",
        "time": event["at"],
        "datacontenttype": "application/json",
    }
    assert started.headers["content-type"] == "application/cloudevents+json"
    assert opened(ended, secret)["data"]["to_state"] == "DONE_SUCCESS"
    assert started.headers["webhook-id"] != ended.headers["webhook-id"]
    with pytest.raises(Exception, match=r"[Nn]o matching signature"):
        Verifier(make_secret()).verify(started.body, started.headers)
    assert [each["state"] for each in hooks.deliveries()] == ["delivered", "delivered"]


def test_the_signature_is_that_of_the_standard() -> None:
    secret, now = make_secret(), datetime.now(UTC)
    headers = signed_headers(secret, "msg_1", now, b'{"a": 1}')
    theirs = Verifier(secret).sign("msg_1", now, '{"a": 1}')
    assert headers["webhook-signature"] == theirs
    assert Verifier(secret).verify(b'{"a": 1}', headers) == {"a": 1}


def test_attention_is_told_when_it_appears_and_again_after_it_went(hooks: Hooks) -> None:
    secret = hooks.make("run_eligible", "phase_unclaimed")
    hooks.api.start()
    hooks.agents.wait(minutes=10)
    (message,) = hooks.work()
    content = opened_later(message, secret)
    assert content["type"] == "autopack.attention.phase_unclaimed"
    assert content["data"]["action"]["command"].startswith("autopack work --run run-001")
    assert hooks.work() == []
    claimed = hooks.agents.claim()
    assert hooks.work() == []
    hooks.agents.build(claimed, status="failed", patch="")
    hooks.agents.wait(minutes=10)
    assert len(hooks.work()) == 1


def test_what_an_incomplete_list_leaves_out_is_not_told_again(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still needs a person: it only was not among the first of its kind."""
    hooks.make("run_eligible")
    hooks.api.start("run-1")
    hooks.api.result("run-1")
    assert len(hooks.work()) == 1
    hooks.api.start("run-2")
    hooks.api.result("run-2", patch=hooks.api.new_file("two.txt"))
    with monkeypatch.context() as few:
        few.setattr("autopack.services.attention.MOST_OF_A_KIND", 1)
        (message,) = hooks.work()
    assert json.loads(message.body)["subject"] == "run-2"
    assert hooks.work() == []


def opened_later(message: Message, secret: str) -> Json:
    """Check a message that a clock ahead of the library's has signed."""
    at = datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), UTC)
    theirs = Verifier(secret).sign(message.headers["webhook-id"], at, message.body.decode())
    assert message.headers["webhook-signature"] == theirs
    content: Json = json.loads(message.body)
    return content


def test_a_slack_line_has_a_link_and_no_markup_of_others(hooks: Hooks) -> None:
    hooks.make("RunEnded", format="slack")
    hooks.api.start()
    reason = "<https://evil.example|click> <!channel> & more\nlines"
    hooks.api.client.post("/runs/run-001/cancel", json={"reason": reason})
    (message,) = hooks.work()
    document = json.loads(message.body)
    assert document.keys() == {"text"}
    line = document["text"]
    assert line.startswith("<http://127.0.0.1:8000/dashboard/runs/run-001|run-001> ")
    assert line.count("<") == line.count(">") == line.count("|") == 1
    assert "&lt;!channel&gt; &amp; more" in line
    assert "\n" not in line
    assert message.headers["content-type"] == "application/json"


def test_a_failed_try_waits_longer_each_time_and_keeps_its_id(hooks: Hooks) -> None:
    hooks.make("RunStarted")
    hooks.receiver.answers(
        500, "out of ghp_" + "aB3dE5gH7jK9mN2pQ4rS6tU8vW0xY1zA3bC5" + " \x1b[31m order"
    )
    hooks.api.start()
    (first,) = hooks.work()
    (delivery,) = hooks.deliveries()
    assert (delivery["state"], delivery["status"], delivery["attempts"]) == ("waiting", 500, 1)
    assert delivery["error"] == "the answer was 500"
    assert "ghp_" not in delivery["answer"]
    assert "\x1b" not in delivery["answer"]
    assert "order" in delivery["answer"]
    assert hooks.work() == []
    hooks.agents.wait(seconds=6)
    (second,) = hooks.work()
    hooks.agents.wait(seconds=6)
    assert hooks.work() == []
    hooks.agents.wait(seconds=5)
    hooks.receiver.answer = None
    (third,) = hooks.work()
    assert {each.headers["webhook-id"] for each in (first, second, third)} == {
        delivery["message_id"]
    }
    assert first.body == third.body
    assert hooks.deliveries()[0]["state"] == "delivered"
    assert [retry_wait(number).total_seconds() for number in (1, 2, 3, 11, 99)] == [
        5,
        10,
        20,
        3_600,
        3_600,
    ]


def test_the_time_of_the_next_try_is_in_the_queue(hooks: Hooks) -> None:
    hooks.make("RunStarted")
    hooks.receiver.answers(500)
    hooks.api.start()
    hooks.work()
    with hooks.app.state.context.reading() as session:
        rows = session.execute(
            text("SELECT queue_name, lock, scheduled_at FROM procrastinate_jobs")
        ).all()
    assert [(row.queue_name, row.lock) for row in rows] == [("webhooks", "webhook:1")]


def test_what_fails_for_a_day_switches_the_webhook_off_until_it_is_enabled(hooks: Hooks) -> None:
    hooks.make("RunStarted")
    hooks.receiver.answers(302, Location="https://evil.example/")
    hooks.api.start("run-1")
    for _ in range(40):
        hooks.work()
        hooks.agents.wait(hours=1)
    assert len({message.headers["webhook-id"] for message in hooks.receiver.messages}) == 1
    assert 24 <= len(hooks.receiver.messages) <= 26
    off = hooks.one()
    assert off["state"] == "off"
    assert off["off_reason"] == (
        "a delivery failed for a day: the answer was 302, and redirects are not followed"
    )
    assert hooks.deliveries()[0]["state"] == "given_up"
    items = hooks.api.client.get("/attention").json()["items"]
    item = next(item for item in items if item["kind"] == "webhook_off")
    assert item["action"]["command"] == "autopack webhooks enable hook"

    message_id = hooks.deliveries()[0]["message_id"]
    path = f"/webhooks/hook/deliveries/{message_id}/redeliver"
    hooks.api.refused(hooks.api.client.post(path), 409, "webhook_off")
    hooks.api.refused(hooks.api.client.post("/webhooks/hook/test"), 409, "webhook_off")
    hooks.receiver.answer = None
    hooks.receiver.messages.clear()
    hooks.api.start("run-2")  # which it is not told
    on = hooks.api.client.post(item["action"]["path"]).json()
    assert (on["state"], on["off_at"], on["off_reason"]) == ("on", None, None)
    assert "webhook_off" not in hooks.api.client.get("/attention").text
    assert hooks.work() == []
    assert hooks.api.client.post(path).status_code == 202
    (again,) = hooks.work()
    assert again.headers["webhook-id"] == message_id


def test_monitoring_sees_tries_by_result_and_messages_that_wait_or_were_given_up(
    hooks: Hooks,
) -> None:
    def shown(name: str, **labels: str) -> str:
        told = {"project": "Autopack", "webhook": "hook", **labels}
        series = ",".join(f'{key}="{value}"' for key, value in sorted(told.items()))
        lines = hooks.api.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(f"autopack_webhook_{name}{{{series}}}")]
        return found[0].rpartition(" ")[2] if found else "none"

    hooks.make("RunStarted")
    assert (shown("wait_seconds"), shown("off")) == ("0.0", "0.0")
    hooks.api.start("run-1")
    hooks.work()
    assert shown("deliveries", state="waiting") == "none"
    hooks.receiver.answers(500)
    hooks.api.start("run-2")
    hooks.work()
    hooks.api.start("run-3")
    hooks.work()
    assert shown("tries_total", result="delivered") == "1.0"
    assert shown("deliveries", state="waiting") == "2.0"
    with hooks.app.state.context.engine.begin() as connection:
        connection.execute(text("UPDATE deliveries SET wanted_at = now() - interval '2 hours'"))
    assert 7200 <= float(shown("wait_seconds")) < 9000
    tries = float(shown("tries_total", result="failed"))
    assert tries == len(hooks.receiver.messages) - 1
    hooks.receiver.answers(410)
    hooks.agents.wait(hours=1)
    hooks.work()
    assert shown("tries_total", result="failed") == str(tries + 1)
    assert (shown("off"), shown("wait_seconds")) == ("1.0", "0.0")
    assert shown("deliveries", state="given_up") == "2.0"


def test_a_receiver_that_is_gone_is_not_asked_again(hooks: Hooks) -> None:
    hooks.make("RunStarted")
    hooks.receiver.answers(410)
    hooks.api.start()
    hooks.work()
    assert hooks.one()["off_reason"] == "its receiver is gone: the answer was 410"


def test_one_message_that_fails_keeps_no_other_one_for_good(hooks: Hooks) -> None:
    def pick(handler: BaseHTTPRequestHandler) -> None:
        body = hooks.receiver.messages[-1].body
        handler.send_response(500 if b'"subject":"bad"' in body else 204)
        handler.end_headers()

    hooks.receiver.answer = pick
    hooks.make("RunStarted")
    hooks.api.start("bad")
    hooks.api.start("good")
    hooks.work()
    hooks.agents.wait(seconds=4)  # the first one is not due again yet
    hooks.work()
    assert [each["state"] for each in hooks.deliveries()] == ["delivered", "waiting"]


def test_a_test_message_and_a_delivery_are_sent_again(hooks: Hooks) -> None:
    secret = hooks.make("RunStarted")
    queued = hooks.api.client.post("/webhooks/hook/test")
    assert queued.status_code == 202
    (message,) = hooks.work()
    assert opened(message, secret)["type"] == "autopack.test"
    message_id = queued.json()["message_id"]
    assert message.headers["webhook-id"] == message_id
    again = hooks.api.client.post(f"/webhooks/hook/deliveries/{message_id}/redeliver")
    assert (again.json()["state"], again.json()["attempts"]) == ("waiting", 0)
    assert len(hooks.work()) == 1
    assert hooks.deliveries()[0]["state"] == "delivered"
    unknown = "/webhooks/hook/deliveries/msg_0/redeliver"
    hooks.api.refused(hooks.api.client.post(unknown), 404)
    hooks.receiver.answers(410)
    hooks.api.client.post(f"/webhooks/hook/deliveries/{message_id}/redeliver")
    hooks.work()
    (last,) = hooks.deliveries()
    assert (last["state"], last["delivered_at"]) == ("given_up", None), "of the last time alone"


def test_a_removed_webhook_is_told_nothing(hooks: Hooks) -> None:
    hooks.make()
    hooks.api.start()
    tell_webhooks(hooks.app.state.context)
    assert hooks.one()["waiting"] > 0
    assert hooks.api.client.post("/webhooks/hook/remove").status_code == 200
    deliver_webhook(hooks.app.state.context, 1)  # its job may be queued still
    assert hooks.work() == []
    assert hooks.api.client.get("/webhooks").json() == {"webhooks": []}
    entries = hooks.api.client.get("/audit").json()["entries"]
    assert [each["action"] for each in entries] == ["webhook_created", "webhook_removed"]


def test_no_secret_is_told_a_second_time(hooks: Hooks, capsys: pytest.CaptureFixture[str]) -> None:
    secret = hooks.make("RunStarted")
    hooks.receiver.answers(500, f"you sent {secret}")
    hooks.api.start()
    hooks.work()
    texts = [
        hooks.api.client.get(path).text
        for path in ("/webhooks", "/webhooks/hook/deliveries", "/audit", "/attention")
    ]
    out, err = capsys.readouterr()
    for shown in (*texts, out, err):
        assert secret not in shown
        assert "s3cr3t" not in shown  # of the address's query
    assert hooks.one()["address"] == f"http://127.0.0.1:{hooks.receiver.port}"


def test_the_last_deliveries_are_kept(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopack.store.webhooks.KEPT_DELIVERIES", 3)
    hooks.make("RunStarted")
    for number in range(6):
        hooks.api.start(f"run-{number}")
        hooks.work()
    hooks.work()
    assert len(hooks.deliveries()) <= 4
    page = hooks.api.client.get("/webhooks/hook/deliveries?limit=1").json()
    rest = hooks.api.client.get(
        f"/webhooks/hook/deliveries?limit=9&cursor={page['next_cursor']}"
    ).json()["deliveries"]
    assert [*page["deliveries"], *rest] == hooks.deliveries()


def test_a_message_that_waits_is_kept_however_many_come_after_it(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopack.store.webhooks.KEPT_DELIVERIES", 1)
    hooks.make("RunStarted")
    hooks.receiver.answers(500)
    hooks.api.start("run-0")
    hooks.work()
    hooks.receiver.answer = None
    for number in range(1, 5):
        hooks.api.start(f"run-{number}")
        hooks.work()
    assert hooks.deliveries()[-1]["state"] == "waiting"
    hooks.agents.wait(seconds=6)
    (message,) = hooks.work()
    assert json.loads(message.body)["subject"] == "run-0"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"kinds": ["RunEndet"]}, "invalid_request", ("kinds", "RunEnded")),
        ({"kinds": []}, "invalid_request", ("kinds",)),
        ({"name": "../x"}, "invalid_request", ("name",)),
        ({"format": "xml"}, "invalid_request", ("format",)),
        ({"project_id": "Other"}, "wrong_project", ("Other",)),
        ({"url": "http://ada:pw@127.0.0.1/"}, "invalid_webhook", ("url: ", "password")),
        ({"url": "gopher://127.0.0.1/"}, "invalid_webhook", ("url: ", "https://")),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_by_name(
    hooks: Hooks, change: Json, code: str, words: tuple[str, ...]
) -> None:
    body = {"name": "hook", "url": hooks.receiver.url, "kinds": ["*"], **change}
    status = 403 if code == "wrong_project" else 422
    hooks.api.refused(hooks.api.client.post("/webhooks", json=body), status, code, *words)
    assert hooks.api.client.get("/webhooks").json() == {"webhooks": []}


def test_a_name_is_taken_once_in_any_case(hooks: Hooks) -> None:
    hooks.make()
    body = {"name": "HOOK", "url": hooks.receiver.url, "kinds": ["*"]}
    hooks.api.refused(
        hooks.api.client.post("/webhooks", json=body), 409, "webhook_name_taken", "HOOK"
    )
    for path in ("enable", "test", "remove"):
        hooks.api.refused(hooks.api.client.post(f"/webhooks/nobody/{path}"), 404)


class TestWithoutPrivateAddresses:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"webhook_private": False})

    @pytest.mark.parametrize(
        ("url", "word"),
        [
            ("http://example.org/", "https://"),
            ("https://127.0.0.1/", "127.0.0.1"),
            ("https://[::ffff:10.0.0.1]/", "10.0.0.1"),
            ("https://localhost/", "AUTOPACK_WEBHOOK_PRIVATE"),
            ("https://169.254.169.254/latest", "not a public one"),
        ],
    )
    def test_an_address_that_is_private_or_no_https_is_refused_by_name(
        self, hooks: Hooks, url: str, word: str
    ) -> None:
        body = {"name": "hook", "url": url, "kinds": ["*"]}
        answer = hooks.api.client.post("/webhooks", json=body)
        hooks.api.refused(answer, 422, "invalid_webhook", "url: ", word.replace("::ffff:", ""))

    def test_a_host_that_became_private_is_not_called(self, hooks: Hooks) -> None:
        with hooks.app.state.context.writing() as session:
            session.execute(
                text(
                    "INSERT INTO webhooks (name, url, kinds, format, secret, position, created_at,"
                    " created_by) VALUES ('hook', :url, '{RunStarted}', 'cloudevents', :secret, 0,"
                    " now(), 'ada')"
                ),
                {"url": f"https://localhost:{hooks.receiver.port}/", "secret": make_secret()},
            )
            session.commit()
        hooks.api.start()
        assert hooks.work() == []
        assert "not a public one" in hooks.deliveries()[0]["error"]


def test_a_process_that_dies_after_it_has_sent_leaves_the_message_to_another(
    hooks: Hooks, settings: Settings
) -> None:
    hooks.make("RunStarted")
    hooks.api.start()
    processes: list[subprocess.Popen[bytes]] = []

    def kill(handler: BaseHTTPRequestHandler) -> None:
        os.kill(processes[0].pid, signal.SIGKILL)

    hooks.receiver.answer = kill
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DATABASE_URL": str(settings.database_url).replace("+psycopg2", ""),
        "AUTOPACK_REPO_PATH": str(settings.repo_path),
        "AUTOPACK_HOME": str(settings.home),
        "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
        "AUTOPACK_WEBHOOK_PRIVATE": "true",
    }
    code = (
        "import sys; from autopack.config import load_settings; from autopack.contexts import"
        " open_context; from autopack.services.deliveries import deliver_webhook\n"
        "from autopack.services.notifications import tell_webhooks\n"
        "with open_context(load_settings()) as context:\n"
        "    tell_webhooks(context); deliver_webhook(context, 1)"
    )
    processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
    assert processes[0].wait(timeout=60) == -signal.SIGKILL
    (first,) = hooks.receiver.messages
    (delivery,) = hooks.deliveries()
    assert (delivery["state"], delivery["attempts"], delivery["status"]) == ("waiting", 1, None)
    hooks.receiver.answer = None
    assert hooks.work() == []  # until the time of the next try
    hooks.agents.wait(minutes=5)  # the process has gone by the real clock
    (second,) = hooks.work()
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert second.body == first.body
    assert hooks.deliveries()[0]["state"] == "delivered"


class TestWithWorkers:
    @pytest.fixture
    def settings(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
        monkeypatch.setattr("autopack.background.UPKEEP_SECONDS", 1)
        return settings.model_copy(update={"jobs": "inside"})

    def test_the_job_engine_tells_and_delivers(self, api: Api, receiver: Receiver) -> None:
        body = {"name": "hook", "url": receiver.url, "kinds": ["RunStarted"]}
        api.client.post("/webhooks", json=body)
        api.start()
        assert receiver.came.wait(60)
        assert json.loads(receiver.messages[0].body)["subject"] == "run-001"


def test_the_clock_of_the_day_is_the_first_wish(hooks: Hooks) -> None:
    """A delivery that is sent again by hand has a whole day again."""
    hooks.make("RunStarted")
    hooks.api.start()
    hooks.work()
    hooks.agents.wait(days=3)
    (delivery,) = hooks.deliveries()
    path = f"/webhooks/hook/deliveries/{delivery['message_id']}/redeliver"
    assert hooks.api.client.post(path).status_code == 202
    hooks.receiver.answers(500)
    hooks.work()
    assert hooks.one()["state"] == "on"
    hooks.agents.now += timedelta(seconds=10)
    hooks.receiver.answer = None
    assert len(hooks.work()) == 1


class TestOnGitHub:
    TOKEN = "ghs_" + "a1B2" * 9

    @pytest.fixture
    def settings(self, settings: Settings, receiver: Receiver) -> Settings:
        api = f"http://127.0.0.1:{receiver.port}"
        update = {"github_token": SecretStr(self.TOKEN), "github_api": api}
        return settings.model_copy(update=update)

    def test_an_eligible_run_starts_the_workflow_once_its_branch_is_pushed(
        self, hooks: Hooks, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = f"http://127.0.0.1:{hooks.receiver.port}/repos/acme/sample/dispatches"
        secret = hooks.make("run_eligible", format="github", url=url)
        hooks.api.start()
        hooks.api.result()
        assert hooks.work() == []
        with hooks.app.state.context.writing() as session:
            session.execute(
                text(
                    "INSERT INTO pushes (run_pk, wanted_revision, attempts, pushed_commit)"
                    " SELECT id, 1, 0, head_commit FROM runs"
                )
            )
            session.commit()
        hooks.receiver.answers(422, f"bad {self.TOKEN}")
        (message,) = hooks.work()
        assert message.path == "/repos/acme/sample/dispatches"
        assert message.headers["authorization"] == f"Bearer {self.TOKEN}"
        assert json.loads(message.body) == {
            "event_type": "autopack-promotion",
            "client_payload": {"run_id": "run-001", "integration_branch": "autonomous/run-001"},
        }
        shown = hooks.api.client.get("/webhooks/hook/deliveries").text + capsys.readouterr().out
        assert self.TOKEN not in shown
        assert secret not in shown
        hooks.api.client.post("/webhooks/hook/test")
        hooks.agents.wait(seconds=1)
        (message,) = hooks.work()
        assert json.loads(message.body)["event_type"] == "autopack-test"

    def test_the_token_goes_to_github_alone(self, hooks: Hooks) -> None:
        base = f"http://127.0.0.1:{hooks.receiver.port}"
        for url in (
            "https://evil.example/repos/acme/sample/dispatches",
            f"{base}.evil.example/repos/acme/sample/dispatches",
            f"{base}/repos/acme/sample/dispatches?x=1",
            f"{base}/repos/../../dispatches",
            f"{base}/user/repos",
        ):
            body = {"name": "hook", "url": url, "kinds": ["run_eligible"], "format": "github"}
            answer = hooks.api.client.post("/webhooks", json=body)
            hooks.api.refused(answer, 422, "invalid_webhook", "url: ", "/repos/OWNER/NAME")
        body = {"name": "hook", "url": url, "kinds": ["*"], "format": "github"}
        answer = hooks.api.client.post("/webhooks", json=body)
        hooks.api.refused(answer, 422, "invalid_webhook", "kinds: ")


def test_without_a_token_there_is_no_webhook_for_github(hooks: Hooks) -> None:
    url = "https://api.github.com/repos/acme/sample/dispatches"
    body = {"name": "hook", "url": url, "kinds": ["run_eligible"], "format": "github"}
    answer = hooks.api.client.post("/webhooks", json=body)
    hooks.api.refused(answer, 422, "invalid_webhook", "AUTOPACK_GITHUB_TOKEN")

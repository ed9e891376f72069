"""What a worker tells the service while it works, and for how long an account rests after it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autopack.client import Autopack
from autopack.domain.claiming import Directive
from autopack.gitrepo.workspace import ObjectCache
from autopack.views.work import WorkItemAnswer
from autopack.worker.agents import Agent
from autopack.worker.cooling import PAUSES
from autopack.worker.heartbeat import Heartbeat
from autopack.worker.mailbox import Mail, Mailbox
from autopack.worker.worker import Orders, Worker
from autopack.worker.workspace import WorkerFolder

pytestmark = pytest.mark.unit

ITEM = cast(
    "WorkItemAnswer",
    SimpleNamespace(
        run_id="run-1",
        phase_id="P1",
        lease=SimpleNamespace(token="t", expires_at=datetime.now(UTC) + timedelta(hours=1)),
    ),
)


def test_the_tokens_of_a_heartbeat_never_go_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that they are read from may be half written."""
    told: list[int] = []
    read = [5, 0, 7]

    def beat(_run: str, _phase: str, _token: str, tokens: int, _cost: None) -> object:
        told.append(tokens)
        is_last = len(told) == len(read)
        directive = Directive.STOP if is_last else Directive.CONTINUE
        return SimpleNamespace(directive=directive, expires_at=None, reason="that is all")

    service = cast("Autopack", SimpleNamespace(heartbeat=beat))
    monkeypatch.setattr("autopack.worker.heartbeat.BEATS_A_LEASE", 1_000)
    mailbox = Mailbox()
    with Heartbeat(service, ITEM, 1, mailbox, lambda: (read[len(told)], None)) as heartbeat:
        assert mailbox.wait(10, heartbeat.about) is Mail.LOST
    assert told == [5, 5, 7]
    assert heartbeat.tokens_used == 7


@pytest.mark.parametrize(
    ("expires_at", "mail"), [(datetime.now(UTC), Mail.OUT_OF_BUDGET), (None, Mail.LOST)]
)
def test_work_that_must_stop_is_submitted_as_long_as_it_has_its_lease(
    monkeypatch: pytest.MonkeyPatch, expires_at: datetime | None, mail: Mail
) -> None:
    answer = SimpleNamespace(directive=Directive.STOP, expires_at=expires_at, reason="the cap")
    service = cast("Autopack", SimpleNamespace(heartbeat=lambda *_: answer))
    monkeypatch.setattr("autopack.worker.heartbeat.BEATS_A_LEASE", 1_000)
    mailbox = Mailbox()
    with Heartbeat(service, ITEM, 1, mailbox, lambda: (0, None)) as heartbeat:
        assert mailbox.wait(10, heartbeat.about) is mail
    assert heartbeat.reason == "the cap"


@pytest.mark.parametrize("left", [timedelta(seconds=0.3), timedelta(hours=-1)])
def test_a_lease_that_has_little_time_left_is_kept_before_it_ends(left: timedelta) -> None:
    """A claim that is sent again after an outage gets its lease as it is then. (rules §5.1)"""
    answer = SimpleNamespace(directive=Directive.STOP, expires_at=None, reason="that is all")
    service = cast("Autopack", SimpleNamespace(heartbeat=lambda *_: answer))
    lease = SimpleNamespace(token="t", expires_at=datetime.now(UTC) + left)
    item = SimpleNamespace(run_id="run-1", phase_id="P1", lease=lease)
    mailbox = Mailbox()
    with Heartbeat(
        service, cast("WorkItemAnswer", item), 900, mailbox, lambda: (0, None)
    ) as heartbeat:
        assert mailbox.wait(10, heartbeat.about) is Mail.LOST


@pytest.mark.parametrize(
    ("given", "expected"),
    [(timedelta(hours=1), timedelta(hours=1)), (timedelta(0), timedelta(seconds=PAUSES[0]))],
    ids=["later than the pause", "sooner than the pause"],
)
def test_an_account_rests_until_its_pause_is_over_and_the_time_that_it_named(
    given: timedelta, expected: timedelta, after_rest: Callable[[Agent, Any], Any]
) -> None:
    now = datetime.now(UTC)
    report = {"status": "unavailable", "reason": "limit", "retry_at": (now + given).isoformat()}
    told = after_rest(Agent("claude", ("claude",), account="mine"), report)
    until = datetime.fromisoformat(told["retry_at"])
    assert abs(until - now - expected) < timedelta(seconds=5)
    assert told["account"] == "mine"


@pytest.fixture
def after_rest() -> Callable[[Agent, Any], Any]:
    """A worker's last step before it hands in a report."""
    nothing = SimpleNamespace()
    worker = Worker(
        cast("Autopack", nothing),
        Orders(agents={}),
        cast("WorkerFolder", nothing),
        cast("ObjectCache", nothing),
        Mailbox(),
        {},
        lambda _step: None,
    )
    return worker._after_rest

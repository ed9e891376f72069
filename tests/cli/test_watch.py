"""The live view of a run in a terminal: when it is drawn anew, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from threading import Event
from types import SimpleNamespace, TracebackType
from typing import Any, Self, cast

import pytest
from rich.console import Console

from autopack.cli import board
from autopack.cli.view import _ends, runs_view
from autopack.client import Autopack, ClientError
from autopack.domain.run import FailureCode
from autopack.domain.states import PhaseStatus, RunStatus
from autopack.views.events import EventAnswer
from autopack.views.runs import ListedRun, PhaseAnswer

pytestmark = pytest.mark.unit

WAIT_SECONDS = 60
HAPPENED = EventAnswer.model_validate(
    {
        **{"sequence": 1, "at": "2026-11-26T08:00:00Z", "actor": "a", "kind": "PhaseStarted"},
        **dict.fromkeys(("phase_id", "tier_id", "from_state", "to_state", "reason"), None),
        **{"data": {}, "previous_hash": "", "hash": "", "sentence": "Began.", "outcome": "working"},
    }
)


class Service:
    """A service with one run: how often it was asked for, and events that come when they may."""

    def __init__(self, *events: Event | ClientError) -> None:
        self.asked = 0
        self._events = events

    def get_run(self, _run_id: str) -> Any:
        self.asked += 1
        return SimpleNamespace(asked=self.asked)

    def follow(self, _run_id: str, *, after: int) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, ClientError):
                raise event
            if not event.wait(WAIT_SECONDS):
                raise ClientError("the view was not drawn in time")
            yield HAPPENED


class Screen:
    """What the live view shows, from first to last; calls `draw` each time that it does."""

    def __init__(self, draw: Any) -> None:
        self.shown: list[int] = []
        self._draw = draw

    def __call__(self, view: int, **_: object) -> Self:
        self.shown.append(view)
        return self

    def update(self, view: int, **_: object) -> None:
        self.shown.append(view)
        self._draw(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def watch(monkeypatch: pytest.MonkeyPatch, service: Service, screen: Screen) -> Any:
    """Watch a run whose view is the number of the answer that it is made of."""
    monkeypatch.setattr(board, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr("rich.live.Live", screen)
    monkeypatch.setattr("autopack.cli.view.run_view", lambda answer, *_: answer.asked)
    return board.Board(cast("Autopack", service), "run-001").show_live()


def test_the_view_is_drawn_anew_without_events_since_the_minutes_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = Event()
    service = Service(event)
    screen = Screen(lambda screen: event.set() if len(screen.shown) > 3 else None)
    watch(monkeypatch, service, screen)
    assert screen.shown[:4] == [1, 1, 1, 1]  # of one answer: without an event none is asked for


def test_the_view_shows_the_run_after_each_event_and_ends_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = [Event(), Event(), Event()]
    service = Service(*events)

    def draw(screen: Screen) -> None:
        """Let an event come once the view shows what came of the one before."""
        if screen.shown[-1] <= len(events):
            events[screen.shown[-1] - 1].set()

    screen = Screen(draw)
    found = watch(monkeypatch, service, screen)
    assert all(event.is_set() for event in events)
    assert screen.shown == sorted(screen.shown)
    assert {1, 2, 3, 4} <= {*screen.shown}
    assert found.asked == service.asked == screen.shown[-1]


def test_a_service_that_is_gone_ends_the_view_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ClientError, match="gone"):
        watch(monkeypatch, Service(ClientError("gone")), Screen(lambda _: None))


@pytest.mark.parametrize(
    ("state", "code", "eligible", "shown"),
    [
        ("PHASE_EXECUTION", None, False, "phase execution"),
        ("DONE_SUCCESS", None, True, "done, eligible"),
        ("DONE_SUCCESS", None, False, "done, blocked"),
        ("DONE_FAILED_REQUIRES_HUMAN_REVIEW", "phase_failed", False, "failed: review"),
        ("DONE_FAILED_REQUIRES_HUMAN_REVIEW", "cancelled", False, "cancelled"),
        ("DONE_FAILED_BUDGET_EXHAUSTED", "token_cap", False, "failed: budget"),
        ("DONE_FAILED_POLICY_VIOLATION", "branch_moved", False, "failed: policy"),
        ("DONE_FAILED_ENVIRONMENT", "ci_did_not_run", False, "failed: environment"),
    ],
)
def test_a_list_of_runs_has_a_line_of_80_columns_for_each(
    state: str, code: str | None, eligible: bool, shown: str
) -> None:
    run = SimpleNamespace(
        run_id="r" * 64,
        state=RunStatus(state),
        failure_code=None if code is None else FailureCode(code),
        promotion_eligible_to_main=eligible,
        phases_complete=39,
        phases_total=40,
        tokens_used=4_999_999,
        token_cap=5_000_000,
        created_at=datetime(2026, 11, 26, 8, 5, tzinfo=UTC),
    )
    out = StringIO()
    Console(file=out, width=80).print(runs_view([cast("ListedRun", run)] * 2))
    heading, *lines = out.getvalue().splitlines()
    assert heading.split() == ["run", "state", "phases", "tokens", "started"]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("rrrr")
        assert f"…  {shown}  " in line
        assert line.rstrip().endswith("39/40   5M/5M   11-26 08:05")


def test_phases_that_failed_are_not_told_as_done() -> None:
    phases = [
        cast("PhaseAnswer", SimpleNamespace(state=PhaseStatus(state)))
        for state in ("COMPLETE", "FAILED", "SKIPPED", "SKIPPED", "QUEUED")
    ]
    assert _ends(phases) == "1 of 5, 1 failed, 2 skipped"
    assert _ends(phases[:1]) == "1 of 1"

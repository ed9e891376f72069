"""Background work that stops is noticed."""

from __future__ import annotations

import threading

import pytest

from autopack.jobs.periodic import Periodic, Pulse

pytestmark = pytest.mark.unit


def test_work_that_does_not_come_to_an_end_is_told_with_its_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("autopack.jobs.periodic.time.monotonic", lambda: clock[0])
    pulse = Pulse()
    pulse.expect_every(5)
    clock[0] += 70
    assert pulse.problem() is None
    clock[0] += 1
    assert pulse.problem() == ("background work has not come to an end for 71 seconds; see the log")
    pulse.beat()
    assert pulse.problem() is None


def test_a_failure_is_no_beat_and_the_work_is_tried_again() -> None:
    done = threading.Event()
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")
        done.set()

    upkeep = Periodic(work, 0.001, Pulse())
    upkeep.start()
    assert done.wait(10)
    upkeep.stop()
    assert len(calls) >= 3

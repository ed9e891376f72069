"""What a worker does for one work item is one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.worker.conftest import Workshop

pytestmark = pytest.mark.integration


def test_each_work_item_has_a_trace_of_its_own_in_the_events(workshop: Workshop) -> None:
    workshop.start()
    for _ in range(2):
        workshop.work("echo begun >notes.txt; exit 1")  # without a change it would pause first
    events = workshop.service.event_page("run-001").events
    traces = [event.data["traceparent"] for event in events if "traceparent" in event.data]
    assert len(traces) >= 2
    assert len({trace.split("-")[1] for trace in traces}) == 2
    assert "traceparent" not in events[0].data  # the run's start was no worker's

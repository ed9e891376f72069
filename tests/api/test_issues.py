"""Reports of issues over the API: what each level keeps of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration


def test_an_issue_was_last_seen_at_its_latest_sighting_whichever_is_told_last(
    api: Api, agents: Agents
) -> None:
    def last_seen(run_id: str) -> tuple[str, str]:
        phase = api.document(run_id, "issues", "phase_0_P0.0_issues.json")["issues"][0]
        backlog = api.document("project_issue_backlog.json")["issues_by_key"]["a_failing_test"]
        return phase["last_seen_at"], backlog["last_seen_at"]

    api.start("early")
    api.start("late")
    api.issue(run_id="early")
    first = last_seen("early")
    agents.wait(minutes=5)
    api.issue(run_id="early")
    second = last_seen("early")
    assert second > first
    agents.wait(hours=1)
    api.issue(run_id="late")
    latest = last_seen("late")[1]
    agents.wait(minutes=-30)
    api.issue(run_id="early")
    of_phase, of_project = last_seen("early")
    assert second[0] < of_phase < latest
    assert of_project == latest

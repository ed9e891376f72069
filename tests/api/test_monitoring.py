"""The metrics for Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from autopack.store.gauges import GAUGES

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

GRAFANA = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(api: Api) -> Samples:
    answer = api.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def figure(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_figures_count_requests_and_states_and_no_label_comes_from_outside(api: Api) -> None:
    api.start(phases=2)
    api.start("run-002")
    api.client.post("/claim", json={"role": "builder", "agent": "codex"})
    api.client.get("/runs/run-001")
    api.client.get("/runs/nobody")
    api.client.get("/nowhere/of-a-strangers-making")
    api.client.request("BREW", "/runs")
    api.client.get("/runs", headers={"Host": "evil.example"})
    samples = scrape(api)
    requests = "autopack_http_requests_total"
    for status, count in (("200", 1), ("404", 1)):
        label = {"route": "/runs/{run_id}", "method": "GET", "status": status}
        assert figure(samples, requests, **label) == count
    assert figure(samples, requests, route="none", method="GET", status="404") == 1
    assert figure(samples, requests, route="none", method="GET", status="421") == 1
    assert {"BREW", "evil.example"}.isdisjoint(
        value for _, labels in samples for _, value in labels
    )
    seconds = "autopack_http_request_seconds_count"
    assert figure(samples, seconds, route="/runs/{run_id}", method="GET") == 2
    assert figure(samples, "autopack_http_requests_in_flight") == 1
    assert figure(samples, "autopack_runs", state="PHASE_EXECUTION") == 1
    assert figure(samples, "autopack_runs", state="RUN_CREATED") == 1
    assert figure(samples, "autopack_runs", state="GATE") == 0
    assert figure(samples, "autopack_failed_runs", failure_code="cancelled") == 0
    assert figure(samples, "autopack_live_phases", state="QUEUED") == 2
    assert figure(samples, "autopack_leases", role="builder") == 1
    assert figure(samples, "autopack_leases", role="auditor") == 0
    assert figure(samples, "autopack_pushes", state="failing") == 0
    assert figure(samples, "autopack_lagging_runs") == 0
    assert figure(samples, "autopack_lag_seconds") == 0
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = api.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_the_dashboard_for_grafana_shows_every_metric_of_ours_and_no_other(api: Api) -> None:
    api.client.get("/runs")
    dashboard = json.loads(GRAFANA.read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:autopack|process)_\w+", target["expr"])
    }
    names = {name for name, _ in scrape(api)}
    # These have no series while nothing has that state.
    names |= {gauge.name for gauge in GAUGES}
    assert shown <= names
    ours = {name for name in names if name.startswith("autopack_")}
    assert {name for name in ours - shown if not name.endswith(("_created", "_sum", "_count"))} == (
        set()
    )

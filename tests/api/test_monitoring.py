"""The metrics for Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from autopack.api.monitoring import METHODS
from autopack.domain.states import PhaseStatus, RunStatus
from autopack.services.settling import CI_QUEUE
from autopack.store.gauges import GAUGES, RETENTION_GAUGES, PushState

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

DOCS = Path(__file__).resolve().parents[2] / "docs"
GRAFANA = DOCS / "grafana.json"
EVERY_GAUGE = (*GAUGES, *RETENTION_GAUGES)
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
    of = {} if name.startswith("process_") else {"project": "Autopack"}
    return samples[name, frozenset((of | labels).items())]


def test_figures_count_requests_and_states_and_no_label_comes_from_outside(api: Api) -> None:
    api.start(phases=2)
    api.start("run-002")
    api.client.post("/claim", json={"role": "builder", "agent": "codex"})
    api.client.get("/runs/run-001")
    api.client.get("/runs/nobody")
    api.client.get("/nowhere/of-a-strangers-making")
    api.client.post("/mcp", content="x", headers={"Content-Type": "text/plain"})
    api.client.request("BREW", "/runs")
    api.client.get("/runs", headers={"Host": "evil.example"})
    samples = scrape(api)
    requests = "autopack_http_requests_total"
    for status, count in (("200", 1), ("404", 1)):
        label = {"route": "/runs/{run_id}", "method": "GET", "status": status}
        assert figure(samples, requests, **label) == count
    assert figure(samples, requests, route="none", method="GET", status="404") == 1
    assert figure(samples, requests, route="/mcp", method="POST", status="415") == 1
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
    names |= {gauge.name for gauge in EVERY_GAUGE}
    assert shown <= names
    ours = {name for name in names if name.startswith("autopack_")}
    assert {name for name in ours - shown if not name.endswith(("_created", "_sum", "_count"))} == (
        set()
    )


# Labels that Prometheus itself adds to each series.
OF_PROMETHEUS = {"job", "instance"}
WORDS_OF_PROMQL = {
    *("sum", "rate", "histogram_quantile", "by", "on", "unless", "and", "or", "without", "max"),
}


def _asked(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and the labels that a PromQL expression names."""
    labels: set[str] = set()
    for inside in re.findall(r"\{([^}]*)\}", expression):
        labels.update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside))
    for inside in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression):
        labels.update(re.findall(r"\w+", inside))
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"\b[a-z_]{2,}\b", bare)) - WORDS_OF_PROMQL, labels


def _rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_every_expression_of_the_dashboard_and_the_alerts_names_what_is_answered(api: Api) -> None:
    """A renamed metric or label would leave an alert silent for ever."""
    api.start()
    api.client.post("/claim", json={"role": "builder", "agent": "codex"})
    labels_of = {gauge.name: {"project", *gauge.labels} for gauge in EVERY_GAUGE}
    for name, labels in scrape(api):
        labels_of.setdefault(name, set()).update(key for key, _ in labels)
    labels_of["up"] = set()  # Prometheus makes it
    expressions = [rule["expr"] for rule in _rules()]
    for panel in json.loads(GRAFANA.read_text())["panels"]:
        expressions += [target["expr"] for target in panel["targets"]]
    for expression in expressions:
        metrics, asked = _asked(expression)
        assert metrics, expression
        assert metrics <= labels_of.keys(), expression
        known = OF_PROMETHEUS.union(*(labels_of[metric] for metric in metrics))
        assert asked <= known, expression


def test_the_words_that_alerts_compare_labels_with_exist(api: Api) -> None:
    values = {
        "state": {*PhaseStatus, *PushState, *RunStatus},
        "status": {"todo", "doing", "5.."},
        "queue": {CI_QUEUE},
        "method": METHODS,
        "job": {"autopack"},
    }
    for rule in _rules():
        for label, word in re.findall(r'(\w+)=~?"([^"]*)"', rule["expr"]):
            assert word in values[label], rule["alert"]


def test_each_alert_has_a_section_that_says_what_to_do() -> None:
    page = (DOCS / "operations.md").read_text()
    explained = re.findall(r"^\| `(Autopack\w+)` \|", page, re.MULTILINE)
    assert explained == [rule["alert"] for rule in _rules()]
    for rule in _rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"].endswith(".")

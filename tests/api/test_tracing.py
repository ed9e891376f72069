"""One trace from an agent's request to commit, files, CI and push, as a collector gets it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient
from tests.api.conftest import Api
from tests.api.test_local_ci import rule, work

from autopack import tracing
from autopack.config import Settings
from autopack.main import create_app
from autopack.services.pushes import push_branch

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

AGENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, CALLER = AGENT.split("-")[1:3]
SECRET_WORDS = "do-not-tell-this"
PATCH = Api.new_file("src/new.py", SECRET_WORDS)


@dataclass
class Collector:
    """Takes spans by OTLP over HTTP."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[Any]:
        message = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        found = []
        for body in self.bodies:
            request = message.ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    found += scope.spans
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            collector.bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    yield collector
    server.shutdown()
    thread.join()
    server.server_close()


BODY = {"status": "success", "patch_content": PATCH, "notes": SECRET_WORDS}
RESULT = "/runs/run-001/phases/P0.0/builder_result"


def submit(client: TestClient, door: str, **headers: str) -> None:
    """Submit a Builder's result with the agent's trace, by HTTP or by a tool of MCP."""
    headers = {"traceparent": AGENT, **headers}
    if door == "http":
        assert client.post(RESULT, json=BODY, headers=headers).status_code == 200
        return
    arguments = {"run_id": "run-001", "phase_id": "P0.0", **BODY}
    call = {"name": "submit_builder_result", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers["Accept"] = "application/json, text/event-stream"
    answer = client.post("/mcp", json=message, headers=headers)
    assert answer.json()["result"]["isError"] is False, answer.text


@pytest.mark.parametrize("door", ["http", "mcp"])
def test_one_trace_leads_from_the_agents_request_to_commit_files_ci_and_push(
    collector: Collector, settings: Settings, git_repo: GitRepo, tmp_path: Path, door: str
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True)
    settings = settings.model_copy(
        update={"otlp_endpoint": collector.url, "git_remote": SecretStr(str(bare))}
    )
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        api = Api(client, git_repo, settings.autonomous_runs_dir)
        context = app.state.context
        rule(api, "true")
        api.start(phases=1)
        submit(client, door, tracestate="vendor=1")
        work(context)
        later = replace(context, now=lambda: datetime.now(UTC) + timedelta(hours=1))
        assert context.repository.remote is not None
        with context.reading() as session:
            run_pk = session.scalar(text("SELECT id FROM runs"))
        push_branch(later, context.repository.remote, run_pk)
        events = client.get("/runs/run-001/events").json()["events"]
    assert not tracing.is_on()
    spans = [span for span in collector.spans() if span.trace_id.hex() == TRACE]
    by_name = {span.name: span for span in spans}
    served = by_name[
        "POST /mcp" if door == "mcp" else "POST /runs/{run_id}/phases/{phase_id}/builder_result"
    ]
    assert served.parent_span_id.hex() == CALLER
    parents = {span.name: span.parent_span_id for span in spans if span is not served}
    if door == "mcp":
        call = by_name["tools/call submit_builder_result"]
        assert call.parent_span_id == served.span_id
        served = call
    place = served.span_id
    assert {"autopack.run_id", "autopack.phase_id"} <= {each.key for each in served.attributes}
    verdict = by_name["verdict"].span_id
    assert parents["ci"] == parents["verdict"] == place
    assert parents["push"] == verdict
    steps = {span.parent_span_id for span in spans if span.name in {"decide", "commit", "files"}}
    assert steps == {place, verdict}
    assert {value.key for span in spans for value in span.attributes} <= {
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "autopack.run_id",
        "autopack.phase_id",
    }
    assert not any(SECRET_WORDS.encode() in body for body in collector.bodies)
    kept = [event["data"]["traceparent"] for event in events if "traceparent" in event["data"]]
    assert f"00-{TRACE}-{place.hex()}-01" in kept
    assert f"00-{TRACE}-{verdict.hex()}-01" in kept
    assert len(spans) <= 12  # a hot request has four


def test_a_call_of_a_tool_that_is_refused_has_the_reason_in_its_span(
    collector: Collector, settings: Settings
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    app = create_app(settings.model_copy(update={"otlp_endpoint": collector.url}))
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        call = {"name": "get_run", "arguments": {"run_id": "nobody"}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        accept = {"Accept": "application/json, text/event-stream"}
        client.post("/mcp", json=message, headers=accept)
        call["arguments"] = {"run_id": f"/{SECRET_WORDS}"}
        client.post("/mcp", json=message, headers=accept)
    told = [
        {each.key: each.value.string_value for each in span.attributes}
        for span in collector.spans()
        if span.name == "tools/call get_run"
    ]
    assert told == [
        {"autopack.run_id": "nobody", "error.type": "not_found"},
        {"error.type": "invalid_request"},
    ]
    assert not any(SECRET_WORDS.encode() in body for body in collector.bodies)


@pytest.mark.parametrize(("flags", "is_sent"), [("01", True), ("00", False)])
def test_a_trace_that_the_agent_does_not_record_is_kept_but_not_sent(
    collector: Collector, settings: Settings, git_repo: GitRepo, flags: str, is_sent: bool
) -> None:
    """The agent has decided for the whole trace, which would have a part alone."""
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    app = create_app(settings.model_copy(update={"otlp_endpoint": collector.url}))
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        Api(client, git_repo, settings.autonomous_runs_dir).start(phases=1)
        submit(client, "http", traceparent=f"{AGENT[:-2]}{flags}")
        events = client.get("/runs/run-001/events").json()["events"]
    assert any(span.trace_id.hex() == TRACE for span in collector.spans()) is is_sent
    kept = [event["data"].get("traceparent", "") for event in events]
    flags_of_trace = {each[-2:] for each in kept if each.startswith(f"00-{TRACE}-")}
    assert flags_of_trace == {flags}


@pytest.mark.parametrize("door", ["http", "mcp"])
def test_without_spans_the_agents_own_is_kept_in_the_events_and_the_record_is_valid(
    api: Api, door: str
) -> None:
    api.start(phases=1)
    submit(api.client, door)
    events = api.client.get("/runs/run-001/events").json()["events"]
    traces = {event["data"].get("traceparent") for event in events}
    assert traces == {None, AGENT}
    promotion = api.client.get("/runs/run-001/promotion").json()
    assert promotion["eligible"] is True, promotion


@pytest.mark.parametrize(
    "sent",
    [
        [("traceparent", "00-" + "0" * 32 + "-b7ad6b7169203331-01")],
        [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01")],
        [("traceparent", AGENT.upper())],
        [("traceparent", AGENT + "-more")],
        [("traceparent", "ff" + AGENT[2:])],
        [("traceparent", AGENT + "\n")],
        [("traceparent", "x" * 6_000)],
        [("traceparent", "\xff\xfe")],
        [("traceparent", "")],
        [("traceparent", AGENT), ("traceparent", AGENT)],
        [("tracestate", "," * 6_000)],
    ],
    ids=lambda sent: repr(sent)[:30],
)
def test_a_trace_header_of_a_wrong_form_is_as_none(api: Api, sent: list[tuple[str, str]]) -> None:
    headers = [(name.encode(), value.strip("\n").encode("latin-1")) for name, value in sent]
    if sent[0][1].endswith("\n"):
        assert tracing.read_traceparent(sent[0][1].encode()) is None
        return
    api.start(phases=1)
    response = api.client.post("/runs/run-001/cancel", json={}, headers=headers)
    assert response.status_code == 200, response.text
    events = api.client.get("/runs/run-001/events").json()["events"]
    assert not any("traceparent" in event["data"] for event in events)


def test_a_service_without_the_extra_starts_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with structlog.testing.capture_logs() as logged:
        tracing.start("http://127.0.0.1:9", "autopack")()
    assert not tracing.is_on()
    assert "pip install 'autopack[otel]'" in logged[0]["detail"]


def test_a_collector_that_hangs_delays_the_end_of_a_service_by_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    may_end, has_begun = threading.Event(), threading.Event()

    def export(*_: object) -> None:
        has_begun.set()
        may_end.wait()

    monkeypatch.setattr(exporter.OTLPSpanExporter, "export", export)
    monkeypatch.setattr(tracing, "SEND_SECONDS", 0.01)
    stop = tracing.start("http://127.0.0.1:9", "test")
    with tracing.span("one"):
        pass
    stop()  # else it would wait for ever
    assert has_begun.wait(60)
    may_end.set()

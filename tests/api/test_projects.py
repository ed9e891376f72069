"""Several projects in one service: nothing of one shows to a key of another. (docs/projects.md)"""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import Engine, text
from starlette.datastructures import State
from tests.api.conftest import Api
from tests.api.test_oidc import AUDIENCE, Issuer, serving
from tests.conftest import GitRepo, ServedHere, make_git_repo, serve_here
from tests.outbound.receiver import Receiver
from tests.waiting import PATIENCE_SECONDS

from autopack import main
from autopack.api.places import Places
from autopack.config import Settings
from autopack.contexts import create_key
from autopack.database import make_engine
from autopack.domain.access import PUBLIC, AccessRole, Caller
from autopack.domain.keys import NewKey
from autopack.main import create_app
from autopack.services.context import AppContext
from autopack.services.deliveries import deliver_webhook
from autopack.services.notifications import tell_webhooks

pytestmark = pytest.mark.integration

Json = dict[str, Any]
STREAM = {"Accept": "text/event-stream"}
DEFAULT = "Autopack"


def refused(response: httpx.Response, status: int, code: str, *words: str) -> None:
    """Expect a problem document, as Api.refused does."""
    Api.refused(response, status, code, *words)  # type: ignore[arg-type]  # its words are httpx's


def mark_of(project: str) -> str:
    """Return the text that stands in all that a project has."""
    return f"zq{project.lower()}qz"


def bare(path: Path) -> str:
    """Make an empty repository to push to."""
    subprocess.run(["git", "init", "--quiet", "--bare", str(path)], check=True)
    return str(path)


@dataclass
class Service:
    """A service that asks for keys, with three projects, and an operator of all of them."""

    server: ServedHere
    settings: Settings
    folder: Path
    places: Places
    operator: httpx.Client
    clients: list[httpx.Client] = field(default_factory=list)
    repos: dict[str, GitRepo] = field(default_factory=dict)

    def state(self, project: str) -> State:
        """Return what the requests of a project need."""
        place = self.places.find(project)
        assert place is not None
        return place.state

    def caller(self, key: str, project: str | None = None) -> httpx.Client:
        """Return a client with a key, on the paths of a project, or on the guide's."""
        prefix = "" if project is None else f"/projects/{project}"
        client = httpx.Client(
            base_url=f"{self.server.url}{prefix}", headers={"X-API-Key": key}, timeout=120
        )
        self.clients.append(client)
        return client

    def add(self, project: str) -> httpx.Response:
        """Add a project with a repository of its own, whose folder has the project's mark."""
        repo = self.repos[project] = make_git_repo(self.folder / mark_of(project))
        repo.git("remote", "add", "backup", bare(self.folder / f"{mark_of(project)}.git"))
        wanted = {"name": project, "repository": str(repo.path), "git_remote": "backup"}
        return self.operator.post("/projects", json=wanted)

    def key_of(self, project: str, name: str, *roles: str) -> str:
        """Make a key that is bound to a project."""
        wanted: Json = {"name": name, "roles": roles or ["operator"]}
        wanted["limits"] = {"requests_per_minute": 1_000_000}
        if project == DEFAULT:
            wanted["project_id"] = DEFAULT
        made = self.operator.post(f"/projects/{project}/keys", json=wanted)
        assert made.status_code == 201, made.text
        assert made.json()["key"]["project_id"] == project
        return str(made.json()["api_key"])

    def api(self, key: str, project: str) -> Api:
        # The guide's paths mean the project of the key, so no prefix.
        repo = self.repos[project]
        return Api(self.caller(key), repo, self.folder)  # type: ignore[arg-type]  # its words are httpx's


@pytest.fixture
def service(
    settings: Settings, git_repo: GitRepo, tmp_path: Path, copied_databases: None
) -> Iterator[Service]:
    remote = SecretStr(bare(tmp_path / f"{mark_of(DEFAULT)}.git"))
    changes = {"auth": "required", "webhook_private": True, "git_remote": remote}
    settings = settings.model_copy(update=changes)
    app = create_app(settings)
    with serve_here(app, settings) as server:
        context = app.state.context.for_caller(Caller(name="ada@host"))
        made = create_key(context, NewKey(name="chief", roles=(AccessRole.OPERATOR,)))
        headers = {"X-API-Key": made.api_key}
        operator = httpx.Client(base_url=server.url, headers=headers, timeout=120)
        service = Service(server, settings, tmp_path, app.state.places, operator)
        service.repos[DEFAULT] = git_repo
        yield service
        for client in (operator, *service.clients):
            client.close()


def seed(api: Api, project: str) -> None:
    """Give a project one of all that there is, each with its mark in every text."""
    mark = mark_of(project)
    send = api.client
    ruleset = {"project_id": project, "paths": {"protected": [f"{mark}/**"]}}
    ruleset["ci"] = {"mode": "external"}
    assert send.put("/project/ruleset", json=ruleset).status_code == 200
    for run_id in (f"run-{mark}", "run-same"):
        phase = {
            "description": f"What {mark} needs",
            "task_category": "feature_scaffolding",
        }
        plan = api.plan(run_id, phases=3, phase=phase)
        for each in plan["phases"]:
            each["name"] = f"Phase of {mark}"
        plan["tiers"][0]["name"] = f"Tier of {mark}"
        started = send.post("/runs/start", json=plan)
        assert started.status_code == 201, started.text
        patch = api.new_file(f"src/{mark}.txt", f"The content of {mark}")
        issue: Json = {"issue_key": f"issue_{mark}", "severity": "minor", "source": "test"}
        issue |= {"category": "test_failure", "evidence_refs": [f"log of {mark}"]}
        more: Json = {"notes": f"Notes of {mark}", "suggested_issues": [issue], "tokens_used": 7}
        built = api.result(run_id, "P0.0", patch, **more)
        assert built.status_code == 200, built.text
        for said in ("red", "green"):
            verdict: Json = {
                "verdict": said,
                "commit_sha": api.head(run_id),
                "summary": f"Log of {mark}",
            }
            if said == "red":
                verdict["failing_checks"] = [f"check of {mark}"]
            told = send.post(f"/runs/{run_id}/phases/P0.0/ci_result", json=verdict)
            assert told.status_code == 200, told.text
            if said == "red":
                assert api.result(run_id, "P0.0", api.new_file(f"src/{mark}.py")).status_code == 200
        assert api.issue(f"issue_{mark}", run_id, "P0.1").status_code == 201
        claim = {"role": "builder", "agent": f"agent-{mark}", "lease_seconds": 900}
        assert send.post(f"/runs/{run_id}/claim", json=claim).status_code == 200
    assert send.post(f"/runs/run-{mark}/cancel", json={"reason": f"{mark}"}).status_code == 200
    webhook = {"name": f"hook-{mark}", "url": f"http://127.0.0.1:9/{mark}", "kinds": ["*"]}
    assert send.post("/webhooks", json=webhook).status_code == 201
    key = {"name": f"key-{mark}", "roles": ["viewer"], "project_id": project}
    assert send.post("/keys", json=key).status_code == 201


def ids_of(api: Api, project: str) -> dict[str, list[str]]:
    """Return the values that the paths of a project's operations may have."""
    mark = mark_of(project)
    events = api.client.get(f"/runs/run-{mark}/events", params={"limit": 1000}).json()["events"]
    numbers = sorted(set(re.findall(r"\"(?:id|ci_run_id|patch_id)\": ?(\d+)", json.dumps(events))))
    return {
        "run_id": [f"run-{mark}", "run-same"],
        "phase_id": ["P0.0", "P0.1"],
        "issue_key": [f"issue_{mark}"],
        "name": [f"hook-{mark}", f"key-{mark}"],
        "project": [project],
        "item": [f"{mark}"],
        "message_id": ["1"],
        "patch_id": numbers[:2] or ["1"],
        "ci_run_id": numbers[:2] or ["1"],
    }


def urls(path: str, ids: dict[str, list[str]]) -> Iterator[str]:
    """Fill a path with each id of those that it names."""
    names = re.findall(r"{(\w+)}", path)
    most = max([len(ids.get(name, ["1"])) for name in names], default=1)
    for number in range(most):
        known = {name: ids.get(name, ["1"])[number % len(ids.get(name, ["1"]))] for name in names}
        yield path.format_map(defaultdict(lambda: "1", known))


def stream_text(client: httpx.Client, path: str, last: str) -> str:
    """Return what a stream tells from its beginning up to an event that has these words."""
    found = ""
    with client.stream("GET", path, headers=STREAM) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_text():
            found += chunk
            if last in found:
                break
    return found


EVERYWHERE = (
    *("/runs", "/attention", "/metrics", "/metrics/runs", "/metrics/costs?by=project", "/nodes"),
    *("/project/issues/backlog", "/project/ruleset", "/reports/budget_analysis", "/health"),
    *("/projects", "/runs/run-same/timeline", "/dashboard", "/dashboard/runs/run-same"),
)
PAGES = ("", "/runs", "/issues", "/figures", "/ruleset", "/keys", "/attention-count")


class TestIsolation:
    @pytest.mark.parametrize(
        "asking",
        [["alpha"], pytest.param([DEFAULT, "alpha", "beta"], marks=pytest.mark.campaigns)],
        ids=["one", "each"],
    )
    def test_no_operation_tells_a_key_anything_of_another_project(
        self, service: Service, asking: list[str]
    ) -> None:
        """Walks the OpenAPI document with the keys of projects and the ids of the others."""
        assert service.add("alpha").status_code == 201
        assert service.add("beta").status_code == 201
        projects = (DEFAULT, "alpha", "beta")
        keys = {name: service.key_of(name, f"op-{mark_of(name)}") for name in projects}
        apis = {name: service.api(keys[name], name) for name in projects}
        for name, api in apis.items():
            seed(api, name)
        ids = {name: ids_of(api, name) for name, api in apis.items()}
        document = service.operator.get("/openapi.json").json()
        operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if f"{method.upper()} {path}" not in PUBLIC
        ]
        assert len(operations) > 60
        leaks: list[str] = []
        seen_own: defaultdict[str, int] = defaultdict(int)

        def look(who: str, where: str, told: str) -> None:
            for other in projects:
                if other != who and mark_of(other) in told:
                    leaks.append(f"{who} at {where}: of {other}")
            seen_own[who] += mark_of(who) in told

        for who in asking:
            # Each asks for what the next one has; what it is told is searched for both others.
            others = [projects[(projects.index(who) + step) % 3] for step in (1, 2)]
            for prefix in (None, who, others[0]):
                client = service.caller(keys[who], prefix)
                for method, path, operation in operations:
                    if path.endswith("/stream"):
                        continue
                    for whose in (who, others[0]) if prefix is None else (prefix,):
                        for url in [*urls(path, ids[whose])][: None if whose == who else 1]:
                            answer = client.request(method, url, json=body_of(operation))
                            where = f"{method} {prefix or ''} {url}"
                            told = f"{answer.text} {dict(answer.headers)}"
                            if whose != who:
                                # What was asked for may be named again, as for any unknown id.
                                told = unasked(told, ids[whose])
                            look(who, where, told)
                            assert answer.status_code != 500, f"{where}: {answer.text}"
                            if prefix not in (None, who):
                                assert answer.status_code == 404, f"{where}: {answer.text}"
                                assert answer.json()["code"] == "project_not_found"
                for path in (f"/dashboard{page}" for page in PAGES):
                    shown = client.get(path, headers={"Accept": "text/html"}).text
                    look(who, path, shown)
                for whose in others:
                    run_id = ids[whose]["run_id"][0]
                    page = client.get(f"/dashboard/runs/{run_id}").text
                    look(who, run_id, unasked(page, ids[whose]))
            client = service.caller(keys[who])
            own = f"run-{mark_of(who)}"
            look(who, "a run's stream", stream_text(client, f"/runs/{own}/events", "event: end"))
            newest = client.get(f"/runs/{own}/events?limit=1000").json()["events"][-1]["hash"]
            look(who, "the stream", stream_text(client, "/events/stream?after=0", newest))
            for whose in others:
                gone = client.get(f"/runs/{ids[whose]['run_id'][0]}/events", headers=STREAM)
                assert gone.status_code == 404
            for tool in mcp_tools(client):
                for whose in (who, *others):
                    arguments = {
                        name: values[0] for name, values in ids[whose].items() if name in tool[1]
                    }
                    told = call_tool(client, tool[0], arguments)
                    look(who, tool[0], unasked(told, ids[whose]) if whose != who else told)
        assert not leaks, "\n".join(leaks[:20])
        # The walk would see a leak: it sees what is each key's own.
        assert all(seen_own[name] > 20 for name in asking), dict(seen_own)

    def test_an_id_of_another_project_is_the_same_404_as_one_that_is_not_there(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        assert service.add("beta").status_code == 201
        theirs = service.api(service.key_of("alpha", "theirs"), "alpha")
        seed(theirs, "alpha")
        mine = service.caller(service.key_of("beta", "mine"))
        run_id = f"run-{mark_of('alpha')}"
        nothing = "run-" + "x" * len(mark_of("alpha"))
        for path in ("/runs/{}", "/runs/{}/events", "/reports/run_summary/{}", "/runs/{}/diff"):
            there, none = (mine.get(path.format(each)) for each in (run_id, nothing))
            assert there.status_code == none.status_code == 404
            assert there.text.replace(run_id, nothing) == none.text
        for url in ("/projects/{}", "/projects/{}/runs", "/projects/{}/health"):
            there, none = (mine.get(url.format(each)) for each in ("alpha", "gamma"))
            assert there.status_code == none.status_code == 404
            assert there.text.replace("alpha", "gamma") == none.text
            assert there.json()["code"] == "project_not_found"
        assert [p["name"] for p in mine.get("/projects").json()["projects"]] == ["beta"]
        assert mine.get("/health").status_code in (200, 503)


def body_of(operation: Json) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return next((each["value"] for each in content.get("examples", {}).values()), None)


def unasked(told: str, ids: dict[str, list[str]]) -> str:
    """Return an answer without the ids that the request itself named."""
    for value in (value for values in ids.values() for value in values):
        if len(value) > 4:
            told = told.replace(value, "")
    return told


def call(client: httpx.Client, method: str, **params: Any) -> str:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    headers = {"Accept": "application/json, text/event-stream"}
    answer = client.post("/mcp", json=message, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


def mcp_tools(client: httpx.Client) -> list[tuple[str, list[str]]]:
    listed = json.loads(call(client, "tools/list"))["result"]["tools"]
    return [(tool["name"], [*tool["inputSchema"].get("properties", {})]) for tool in listed]


def call_tool(client: httpx.Client, name: str, arguments: Json) -> str:
    return call(client, "tools/call", name=name, arguments=arguments)


class TestWhichProjectAnswers:
    def test_the_guides_paths_mean_the_default_project_and_its_name_below_projects_too(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        plan = Api.plan("run-same")
        for prefix in ("", "/projects/alpha"):  # run ids are unique within a project
            started = service.operator.post(f"{prefix}/runs/start", json=plan)
            assert started.status_code == 201, started.text
        for prefix, project in (("", DEFAULT), (f"/projects/{DEFAULT}", DEFAULT)):
            run = service.operator.get(f"{prefix}/runs/run-same").json()
            assert run["project_id"] == project
        alphas = service.operator.get("/projects/alpha/runs/run-same").json()
        assert alphas["project_id"] == "alpha"
        for repo in service.repos.values():
            assert repo.git("rev-parse", "--verify", "autonomous/run-same")
        health = service.operator.get("/health").json()
        assert health["projects"] == {
            DEFAULT: {"status": "ok", "detail": None},
            "alpha": {"status": "ok", "detail": None},
        }
        assert service.operator.get("/projects/alpha/projects").status_code == 404

    def test_a_key_of_one_project_manages_that_one_alone(self, service: Service) -> None:
        assert service.add("alpha").status_code == 201
        of_default = service.caller(service.key_of(DEFAULT, "def-op"))
        of_alpha = service.caller(service.key_of("alpha", "alpha-op"))
        for caller, name in ((of_default, "def-op"), (of_alpha, "alpha-op")):
            # The key "chief" is for all projects: with a new secret of it so would be the caller.
            assert [key["name"] for key in caller.get("/keys").json()["keys"]] == [name]
            refused(caller.post("/keys/chief/rotate"), 404, "not_found", "chief")
            refused(caller.post("/keys/chief/revoke"), 404, "not_found", "chief")
            made = caller.post("/keys", json={"name": "more", "roles": ["viewer"]})
            assert made.json()["key"]["project_id"] == caller.get("/whoami").json()["project_id"]
            wanted = {"name": "gamma", "repository": "/nowhere"}
            refused(caller.post("/projects", json=wanted), 403, "wrong_project")
            refused(caller.post("/projects/alpha/close"), 403, "wrong_project")
        # The same name of a key in two projects is two keys, with limits of their own.
        assert of_alpha.post("/keys/more/revoke").status_code == 200
        states = {key["name"]: key["state"] for key in of_default.get("/keys").json()["keys"]}
        assert states["more"] == "live"

    def test_the_dashboard_leads_from_one_project_to_the_others_of_its_reader(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        key = service.key_of("alpha", "reader", "viewer")
        html = {"Accept": "text/html"}
        for path, other in (
            ("/dashboard", "/projects/alpha/dashboard"),
            ("/projects/alpha/dashboard", "/dashboard"),
        ):
            page = service.operator.get(path, headers=html).text
            assert f'href="{other}"' in page
        # A browser that signs in with a key of a project sees that project alone.
        with httpx.Client(base_url=service.server.url, timeout=120) as browser:
            for at, home in (("", "/dashboard"), ("/projects/alpha", "/projects/alpha/dashboard")):
                browser.cookies.clear()
                sent = browser.get(f"{at}/dashboard", headers=html)
                assert sent.headers["location"].startswith(f"{at}/dashboard/login")
                own = {"Origin": service.server.url}
                signed = browser.post(f"{at}/dashboard/login", data={"key": key}, headers=own)
                assert (signed.status_code, signed.headers["location"]) == (303, home)
                page = browser.get(home, headers=html).text
                assert "Project <b>alpha</b>" in page
                assert "others:" not in page
                assert browser.get(f"/projects/{DEFAULT}/dashboard", headers=html).status_code in (
                    303,
                    404,
                )
                out = browser.post(f"{at}/dashboard/logout", headers=own)
                assert out.status_code == 303
                assert browser.get(home, headers=html).status_code == 303


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving() as issuer:
        yield issuer


def token_of(issuer: Issuer, repository: str) -> str:
    """Return a token of a job of GitHub that runs in a repository."""
    return issuer.token(repository=repository, sub=f"repo:{repository}:ref:refs/heads/main")


class TestTokens:
    """A job's token is bound to a project by its claims, as a key is."""

    @pytest.fixture
    def settings(self, settings: Settings, issuer: Issuer) -> Settings:
        def table(repository: str) -> Json:
            conditions = {"repository": repository}
            return {AccessRole.CI: conditions, AccessRole.VIEWER: conditions}

        changes = {
            "oidc_issuer": issuer.url,
            "oidc_audience": AUDIENCE,
            "oidc_claims": table("acme/sample"),
            "oidc_project_claims": {"alpha": table("acme/a*"), "beta": table("acme/all")},
        }
        return settings.model_copy(update=changes)

    def test_a_token_judges_runs_of_the_project_of_its_claims_and_reads_no_other(
        self, service: Service, issuer: Issuer
    ) -> None:
        assert service.add("alpha").status_code == 201
        seed(service.api(service.key_of("alpha", "maker"), "alpha"), "alpha")
        plan = Api.plan(f"run-{mark_of(DEFAULT)}")
        assert service.operator.post("/runs/start", json=plan).status_code == 201
        job = service.caller(token_of(issuer, "acme/alpha"))
        told = job.get("/whoami").json()
        assert (told["project_id"], told["roles"]) == ("alpha", ["viewer", "ci"])
        said = {"verdict": "red", "commit_sha": "1" * 40, "summary": "x"}
        judged = job.post("/runs/run-same/phases/P0.0/ci_result", json=said)
        assert judged.status_code == 409, judged.text  # it is judged already: the run is its own
        refused(job.post("/webhooks", json={}), 403, "missing_role")
        own = f"run-{mark_of('alpha')}"
        seen = [job.get(path).text for path in EVERYWHERE]
        seen.append(stream_text(job, f"/runs/{own}/events", "event: end"))
        seen.append(call(job, "resources/list"))
        for tool, _ in mcp_tools(job):
            seen.append(call_tool(job, tool, {"run_id": "run-same", "phase_id": "P0.0"}))
        assert not [each for each in seen if mark_of(DEFAULT) in each]
        theirs = service.caller(token_of(issuer, "acme/alpha"), DEFAULT)
        for path in (*EVERYWHERE, "/events/stream"):
            refused(theirs.get(path), 404, "project_not_found")
        refused(theirs.post("/mcp", json={}), 404, "project_not_found")
        for path in ("/runs/{}", "/runs/{}/events", "/runs/{}/diff"):
            refused(job.get(path.format(plan["run"]["run_id"])), 404, "not_found")
        assert len([each for each in seen if mark_of("alpha") in each]) > 5
        assert [each["name"] for each in job.get("/projects").json()["projects"]] == ["alpha"]

    def test_a_token_with_the_claims_of_several_is_for_the_project_of_the_path(
        self, service: Service, issuer: Issuer
    ) -> None:
        assert service.add("alpha").status_code == 201
        # Of beta, which is not there yet, nobody is told by whom it is missed.
        for repository, path, project in (
            ("acme/sample", "", DEFAULT),
            ("acme/sample", f"/projects/{DEFAULT}", DEFAULT),
            ("acme/sample", "/projects/alpha", None),
            ("acme/all", "", "alpha"),
            ("acme/all", "/projects/alpha", "alpha"),
            ("acme/all", f"/projects/{DEFAULT}", None),
        ):
            answer = service.caller(token_of(issuer, repository)).get(f"{path}/whoami")
            if project is None:
                refused(answer, 404, "project_not_found")
            else:
                assert answer.json()["project_id"] == project, (repository, path)
        job = service.caller(token_of(issuer, "acme/all"), "beta")
        refused(job.get("/whoami"), 403, "wrong_project", "the token of 'repo:acme/all", "'beta'")
        assert service.add("beta").status_code == 201
        assert job.get("/whoami").json()["project_id"] == "beta"
        refused(service.caller(token_of(issuer, "acme/x")).get("/runs"), 401, "token_wrong_claims")


class TestDoorsBesideTheDocument:
    """Streams, MCP and webhooks, which the OpenAPI document has not, or not with their content."""

    def test_streams_and_mcp_of_another_project_are_not_there_for_a_key(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        seed(service.api(service.key_of("alpha", "theirs"), "alpha"), "alpha")
        run_id = f"run-{mark_of('alpha')}"
        mine = service.key_of(DEFAULT, "mine")
        outside = service.caller(mine, "alpha")
        for path in ("/events/stream?after=0", f"/runs/{run_id}/events"):
            refused(outside.get(path, headers=STREAM), 404, "project_not_found")
        refused(outside.post("/mcp", json={}), 404, "project_not_found")
        inside = service.caller(mine)
        for uri in (f"autopack://runs/{run_id}/summary", f"autopack://runs/{run_id}/diff"):
            told = call(inside, "resources/read", uri=uri)
            assert "there is no run" in told or "not_found" in told, told
        prompt = call(inside, "prompts/get", name="builder", arguments={"run_id": run_id})
        assert "not_found" in prompt
        assert mark_of("alpha") not in call(inside, "resources/list")
        own = service.caller(service.key_of("alpha", "reader", "viewer"))
        assert run_id in call(own, "resources/list")
        assert run_id in call(own, "resources/read", uri=f"autopack://runs/{run_id}/summary")

    def test_a_webhook_is_told_what_happens_in_its_own_project(self, service: Service) -> None:
        assert service.add("alpha").status_code == 201
        apis = {
            name: service.api(service.key_of(name, f"op-{name}"), name)
            for name in (DEFAULT, "alpha")
        }
        places: Places = service.places
        with Receiver() as receiver:
            for name, api in apis.items():
                hook = {"name": "hook", "url": f"{receiver.url}/{name}", "kinds": ["*"]}
                assert api.client.post("/webhooks", json=hook).status_code == 201
            for name, api in apis.items():
                plan = api.plan(f"run-{mark_of(name)}")
                assert api.client.post("/runs/start", json=plan).status_code == 201
            told: dict[str, str] = {}
            for name in apis:
                place = places.find(name)
                assert place is not None
                tell_webhooks(place.state.context)
                deliver_webhook(place.state.context, 1)
                told[name] = "".join(str(each.body) for each in receiver.messages)
                receiver.messages.clear()
        for name, api in apis.items():
            (other,) = {*apis} - {name}
            assert f"run-{mark_of(name)}" in told[name]
            assert mark_of(other) not in told[name]
            sent = api.client.get("/webhooks/hook/deliveries").json()["deliveries"]
            assert {each["state"] for each in sent} == {"delivered"}


def projects_in(metrics: str) -> dict[str, float]:
    """Return the projects that an answer of `/metrics` covers, and whether each is up."""
    families = [*text_string_to_metric_families(metrics)]
    labels = [sample.labels for family in families for sample in family.samples]
    (up,) = [family for family in families if family.name == "autopack_project_up"]
    found = {sample.labels["project"]: sample.value for sample in up.samples}
    assert {each["project"] for each in labels if "project" in each} == {*found}
    return found


class TestMetrics:
    def test_metrics_cover_the_projects_that_the_caller_may_see_each_by_its_label(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        of_alpha = service.caller(service.key_of("alpha", "watch", "viewer"))
        of_default = service.caller(service.key_of(DEFAULT, "watch", "viewer"))
        builder = service.caller(service.key_of("alpha", "maker"))
        assert builder.post("/runs/start", json=Api.plan()).status_code == 201
        told = service.operator.get("/metrics").text
        assert projects_in(told) == {DEFAULT: 1, "alpha": 1}
        for project, count in ((DEFAULT, 0), ("alpha", 1)):
            line = f'autopack_runs{{project="{project}",state="RUN_CREATED"}} {count}.0'
            assert line in told.splitlines()
        started = 'autopack_http_requests_total{method="POST",project="alpha",route="/runs/start"'
        assert f'{started},status="201"}} 1.0' in told
        assert told.count("# TYPE autopack_runs ") == told.count("# TYPE process_cpu") == 1
        for client, path, project in (
            (of_alpha, "/metrics", "alpha"),
            (of_default, "/metrics", DEFAULT),
            (service.operator, "/projects/alpha/metrics", "alpha"),
            (service.operator, f"/projects/{DEFAULT}/metrics", DEFAULT),
        ):
            assert projects_in(client.get(path).text) == {project: 1}, path
        in_flight = 'autopack_http_requests_in_flight{project="alpha"} 1.0'
        assert in_flight in of_alpha.get("/metrics").text

    def test_a_project_whose_database_is_gone_is_down_and_the_others_are_told(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        lose_database(service)
        assert projects_in(service.operator.get("/metrics").text) == {DEFAULT: 1, "alpha": 0}
        moved = service.repos["alpha"].path.rename(service.folder / "moved")
        wanted = {"repository": str(moved)}
        changed = service.operator.put("/projects/alpha", json=wanted).json()
        assert (changed["repository"], changed["state"]) == (str(moved), "open")
        assert "does not exist" in changed["problem"]
        wanted = {"repository": str(service.settings.repo_path)}
        refused(service.operator.put("/projects/alpha", json=wanted), 409, "repository_taken")
        wanted = {"repository": str(service.folder)}
        refused(service.operator.put("/projects/alpha", json=wanted), 422, "project_repository")

    def test_a_project_that_lost_its_database_while_it_is_served_is_closed(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        lose_database(service)
        closed = service.operator.post("/projects/alpha/close")
        assert (closed.status_code, closed.json()["state"]) == (200, "closed"), closed.text


class TestTheLifeOfAProject:
    def test_wrong_wishes_are_refused_by_name_and_leave_nothing(self, service: Service) -> None:
        assert service.add("alpha").status_code == 201
        ask = service.operator.post
        alpha = str(service.repos["alpha"].path)
        link = service.folder / "link"
        link.symlink_to(alpha)
        empty = service.folder / "empty"
        empty.mkdir()
        for wanted, status, code, words in (
            ({"name": "../x", "repository": alpha}, 422, "invalid_request", "name"),
            ({"name": "x/y", "repository": alpha}, 422, "invalid_request", "name"),
            ({"name": "beta", "repository": "here"}, 422, "invalid_request", "absolute"),
            ({"name": "beta"}, 422, "invalid_request", "repository"),
            ({"name": "alpha", "repository": alpha}, 409, "project_exists", "alpha"),
            ({"name": "ALPHA", "repository": alpha}, 409, "project_exists", "ALPHA"),
            ({"name": DEFAULT.lower(), "repository": alpha}, 409, "project_exists", "autopack"),
            ({"name": "beta", "repository": alpha}, 409, "repository_taken", "'alpha'"),
            ({"name": "beta", "repository": str(link)}, 409, "repository_taken", "'alpha'"),
            (
                {"name": "beta", "repository": str(service.settings.repo_path / "src")},
                *(409, "repository_taken", DEFAULT),
            ),
            ({"name": "beta", "repository": str(empty)}, 422, "project_repository", str(empty)),
            ({"name": "beta", "repository": "/nowhere"}, 422, "project_repository", "/nowhere"),
            ({"name": "beta", "repository": "/" + "x" * 300}, 422, "project_repository", "folder"),
        ):
            refused(ask("/projects", json=wanted), status, code, words)
        bad = make_git_repo(service.folder / "bad")
        for more, words in (
            ({"base_branch": "nope"}, "nope"),
            ({"base_branch": "../../main"}, "main"),
            ({"base_branch": "x" * 300}, "no branch"),
            ({"base_branch": "--upload-pack=x"}, "no branch"),
            ({"git_remote": "nope"}, "nope"),
        ):
            wanted = {"name": "beta", "repository": str(bad.path), **more}
            refused(ask("/projects", json=wanted), 422, "project_repository", words)
        assert [p["name"] for p in service.operator.get("/projects").json()["projects"]] == [
            *(DEFAULT, "alpha"),
        ]
        assert databases(service.settings) == {DEFAULT: 1, "project": 1}
        assert [each.name for each in (service.settings.home / "projects").iterdir()] == ["alpha"]
        refused(ask(f"/projects/{DEFAULT}/close"), 409, "default_project", DEFAULT)
        refused(ask("/projects/gamma/close"), 404, "project_not_found", "gamma")
        refused(service.operator.get("/projects/gamma/runs"), 404, "project_not_found")

    def test_a_home_that_was_there_before_survives_a_refusal(self, service: Service) -> None:
        """It may be a former service's, or what an operator has put there."""
        kept = service.settings.home / "projects" / "beta" / "kept.txt"
        kept.parent.mkdir(parents=True)
        kept.write_text("of before")
        wanted = {"name": "beta", "repository": str(make_git_repo(service.folder / "beta").path)}
        ask = service.operator.post
        wrong = ask("/projects", json={**wanted, "base_branch": "nope"})
        refused(wrong, 422, "project_repository", "nope")
        assert kept.read_text() == "of before"
        assert ask("/projects", json=wanted).status_code == 201
        assert kept.read_text() == "of before"

    def test_one_with_live_runs_is_not_closed_and_a_closed_one_comes_back_whole(
        self, service: Service
    ) -> None:
        assert service.add("alpha").status_code == 201
        mine = service.caller(service.key_of("alpha", "mine"))
        assert mine.post("/runs/start", json=Api.plan()).status_code == 201
        close = service.operator.post
        refused(close("/projects/alpha/close"), 409, "project_has_live_runs", "alpha")
        assert mine.post("/runs/run-001/cancel", json={"reason": "enough"}).status_code == 200
        closed = close("/projects/alpha/close")
        assert (closed.status_code, closed.json()["state"]) == (200, "closed")
        refused(close("/projects/alpha/close"), 409, "project_closed", "alpha")
        refused(mine.get("/runs"), 401, "key_required")
        refused(service.operator.get("/projects/alpha/runs"), 404, "project_not_found")
        # Its repository is free meanwhile.
        repository = str(service.repos["alpha"].path)
        beta = {"name": "beta", "repository": repository}
        assert service.operator.post("/projects", json=beta).status_code == 201
        refused(close("/projects/alpha/reopen"), 409, "repository_taken", "'beta'")
        assert close("/projects/beta/close").status_code == 200
        assert close("/projects/alpha/reopen").json()["state"] == "open"
        refused(close("/projects/alpha/reopen"), 409, "project_exists", "open")
        assert [run["run_id"] for run in mine.get("/runs").json()["runs"]] == ["run-001"]
        actions = [entry["action"] for entry in mine.get("/audit").json()["entries"]]
        assert actions == ["project_created", "key_created", "project_closed", "project_reopened"]

    def test_a_changed_one_is_served_from_its_new_folder(self, service: Service) -> None:
        assert service.add("alpha").status_code == 201
        moved = service.folder / "moved"
        service.repos["alpha"].path.rename(moved)
        wanted = {"repository": str(moved), "base_branch": "main"}
        changed = service.operator.put("/projects/alpha", json=wanted)
        assert changed.json()["repository"] == str(moved), changed.text
        started = service.operator.post("/projects/alpha/runs/start", json=Api.plan())
        assert started.status_code == 201, started.text
        other = make_git_repo(service.folder / "other")
        other.git("commit", "--quiet", "--amend", "--message", "Another history")
        refused(
            service.operator.put("/projects/alpha", json={"repository": str(other.path)}),
            *(422, "project_repository", "no history"),
        )


def lose_database(service: Service) -> None:
    """Drop the database of the one project beside the default one, also while it is used."""
    engine = make_engine(service.settings.database_url or "", 15)
    with engine.connect() as connection:
        name = connection.scalars(text("SELECT database FROM projects")).one()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    engine.dispose()


class TestTroubleOfAnother:
    """A project that is in trouble is no trouble of another one."""

    def test_no_project_is_added_that_would_take_the_connections_of_the_others(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert service.add("alpha").status_code == 201
        assert service.operator.post("/projects/alpha/close").status_code == 200
        monkeypatch.setattr("autopack.services.projects.CONNECTIONS_WANTED", 10_000)
        refused(service.add("beta"), 409, "connections_exhausted", "max_connections")
        again = service.operator.post("/projects/alpha/reopen")
        refused(again, 409, "connections_exhausted", "max_connections")
        assert databases(service.settings) == {DEFAULT: 1, "project": 1}
        monkeypatch.undo()
        assert service.operator.post("/projects/alpha/reopen").status_code == 200

    def test_a_database_that_is_away_stops_no_key_of_another_project(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert service.add("alpha").status_code == 201
        assert service.add("beta").status_code == 201
        alpha, beta = (service.caller(service.key_of(name, "op")) for name in ("alpha", "beta"))
        assert alpha.get("/runs").status_code == beta.get("/runs").status_code == 200
        monkeypatch.setattr("autopack.services.keys.CACHE_SECONDS", -1)  # each request asks
        name = service.state("alpha").context.engine.url.database
        with (
            closing_engine(make_engine(service.settings.database_url or "", 15)) as engine,
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = :name"
                ),
                {"name": name},
            )
            refused(alpha.get("/runs"), 503, "database_unavailable")
            refused(service.caller("ap_" + "a" * 49).get("/runs"), 503, "database_unavailable")
            assert beta.get("/runs").status_code == 200
            assert service.operator.get("/runs").status_code == 200
            new = service.caller(service.key_of("beta", "later"))
            assert new.get("/runs").status_code == 200
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
        assert alpha.get("/runs").status_code == 200

    def test_a_key_of_a_project_that_cannot_be_opened_is_not_called_invalid(
        self, service: Service
    ) -> None:
        """An agent gives up on 401, and tries again on 503."""
        assert service.add("alpha").status_code == 201
        alpha = service.caller(service.key_of("alpha", "op"))
        assert service.add("beta").status_code == 201
        beta = service.caller(service.key_of("beta", "op"))
        service.repos["alpha"].path.rename(service.folder / "elsewhere")
        app = create_app(service.settings)
        with serve_here(app, service.settings) as again:
            for client in (alpha, beta, service.operator):
                client.base_url = httpx.URL(again.url)
            assert "alpha" in service.operator.get("/health").json()["projects"]
            refused(alpha.get("/runs"), 503, "project_unavailable")
            assert beta.get("/runs").status_code == service.operator.get("/runs").status_code == 200

    def test_a_wrong_method_is_405_below_a_project_too(self, service: Service) -> None:
        assert service.add("alpha").status_code == 201
        of_alpha = service.caller(service.key_of("alpha", "op"))
        for client, path in ((service.operator, "/projects/alpha/runs"), (of_alpha, "/nodes/x")):
            refused(client.patch(path), 405, "method_not_allowed", "PATCH is not allowed here")

    def test_a_key_is_looked_for_first_where_it_was_known(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that a database that answers late delays no key of another project."""
        assert service.add("alpha").status_code == 201
        assert service.add("beta").status_code == 201
        beta = service.caller(service.key_of("beta", "op"))
        assert beta.get("/runs").status_code == 200
        monkeypatch.setattr("autopack.services.keys.CACHE_SECONDS", -1)
        keyring = service.state("alpha").keyring
        monkeypatch.setattr(keyring, "read", lambda *_, **__: pytest.fail("alpha was asked"))
        assert beta.get("/runs").status_code == 200

    def test_a_project_that_opens_slowly_delays_no_request_of_another_one(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert service.add("alpha").status_code == 201
        assert service.add("beta").status_code == 201
        is_opening, may_open = Event(), Event()
        opened = main._open_further

        def start(settings: Settings, stack: ExitStack) -> AppContext:
            if settings.project_id == "alpha":
                is_opening.set()
                may_open.wait(PATIENCE_SECONDS)
            return opened(settings, stack)

        monkeypatch.setattr(main, "_open_further", start)
        monkeypatch.setattr("autopack.api.places.REFRESH_SECONDS", 0)  # each request looks
        with ThreadPoolExecutor() as pool:
            wanted = {"repository": str(service.repos["alpha"].path)}
            changed = pool.submit(service.operator.put, "/projects/alpha", json=wanted)
            assert is_opening.wait(PATIENCE_SECONDS)
            assert service.operator.get("/projects/beta/runs").status_code == 200
            assert service.operator.get("/runs").status_code == 200
            may_open.set()
            assert changed.result().status_code == 200
        assert service.operator.get("/projects/alpha/runs").status_code == 200


@contextmanager
def closing_engine(engine: Engine) -> Iterator[Engine]:
    yield engine
    engine.dispose()


def databases(settings: Settings) -> dict[str, int]:
    """Count the databases of the service, and those of its projects."""
    engine = make_engine(settings.database_url or "", 15)
    try:
        with engine.connect() as connection:
            query = text("SELECT datname FROM pg_database WHERE starts_with(datname, :own)")
            own = str(engine.url.database)[:30]
            names = connection.scalars(query, {"own": f"{own}_project_"}).all()
            return {DEFAULT: 1, "project": len(names)}
    finally:
        engine.dispose()

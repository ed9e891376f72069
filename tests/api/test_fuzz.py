"""Random requests, from a fixed seed: each is answered, and none with a 5xx."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**63,
    2**64,
    10**400,
    0.1,
    -0.0,
    1e308,
    "",
    " ",
    "a",
    "0",
    "\0",
    "\n",
    "\ud800",
    "\u202e",
    "\u2028",
    "\uffff",
    "\N{GRINNING FACE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "..",
    "a..b",
    "../../etc/passwd",
    "x" * 101,
    "x" * 20_001,
    "NaN",
    "null",
    "2026-01-01",
    "'; DROP TABLE runs; --",
    "%s%(x)s{0}\\",
    "<script>",
    [],
    [[]],
    [None],
    {},
    {"": ""},
    {"a": {"b": []}},
]
SEED = 20_261_122
REQUESTS = 400


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where something stands within a document, from the outside in."""
    found = [place] if place else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places_in(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places_in(inner, (*place, index))
    return found


def spoil(document: Any, chance: random.Random) -> Any:
    """Change a document at one to three places: other values, no value, one too many."""
    document = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        places = places_in(document)
        if not places:
            return chance.choice(ODD_VALUES)
        *way, last = chance.choice(places)
        parent = document
        for step in way:
            parent = parent[step]
        match chance.randrange(5):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[chance.choice(["x", "", "\0", "id", "__proto__", "\ud800"])] = 1
            case 2 if isinstance(parent, list):
                parent.extend(copy.deepcopy(parent) * chance.choice([1, 1, 60]))
            case _:
                parent[last] = copy.deepcopy(chance.choice(ODD_VALUES))
    return document


def test_no_spoiled_request_is_a_500(api: Api) -> None:
    chance = random.Random(SEED)
    api.start(phases=2, tiers=2)
    schema = api.client.get("/openapi.json").json()
    targets: list[tuple[str, str, Any]] = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in body.get("examples", {}).values():
                value = json.loads(
                    json.dumps(example["value"]).replace("P1.1", "P0.0").replace('"T1"', '"T0"')
                )
                targets.append((method, path, value))
            if not body and "stream" not in path and method == "get":
                targets.append((method, path, None))

    for number in range(REQUESTS):
        method, path, value = chance.choice(targets)
        run_id = chance.choice(["run-001"] * 9 + ["nope", "a..b", "%00", "%ff%fe"])
        phase_id = chance.choice(["P0.0", "P0.0", "P0.1", "P1.0", "nope", "--x"])
        url = path.replace("{run_id}", run_id).replace("{phase_id}", phase_id)
        url = url.replace("{issue_key}", chance.choice(["k", "%00", "%ff", "a%20b"]))
        if value is None:
            names = ["limit", "cursor", "status", "text", "category", "project_id", "severity"]
            query = {chance.choice(names): chance.choice(ODD_VALUES) for _ in range(2)}
            clean = {
                key: str(each).encode(errors="replace").decode() for key, each in query.items()
            }
            response = api.client.request(method, url, params=clean)
        else:
            document = spoil(value, chance)
            if path == "/runs/start" and isinstance(document, dict):
                run = document.get("run")
                if isinstance(run, dict) and run.get("run_id") == "run-001":
                    run["run_id"] = f"fuzz-{number}"
            response = api.client.request(
                method,
                url,
                content=json.dumps(document).encode(),
                headers={"Content-Type": "application/json"},
            )
        sent = f"request {number}: {method} {url} {json.dumps(value)[:100] if value else ''}"
        assert response.status_code < 500, f"{sent}: {response.text}"
        if response.status_code >= 400:
            api.refused(response, response.status_code)
    assert api.repo.git("rev-parse", "main") == api.run()["base_commit"]
    branch = "refs/heads/autonomous/run-001"
    assert api.repo.git("rev-parse", branch) == api.run()["head_commit"]

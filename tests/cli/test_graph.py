"""`autopack run graph`: the page's plan and its drawing, and the sources of other drawings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.test_parallel_page import block

if TYPE_CHECKING:
    from tests.cli.conftest import Terminal

    from autopack.client import Autopack

pytestmark = pytest.mark.integration


def test_the_graph_of_the_pages_plan(terminal: Terminal, autopack: Autopack) -> None:
    autopack.start_run(json.loads(block("json")))
    assert terminal.run("run", "graph", "shop-7") == block("text")
    mermaid = terminal.run("run", "graph", "shop-7", "--format", "mermaid").splitlines()
    assert mermaid[0] == "graph LR"
    assert '  p0["schema<br/>QUEUED"]' in mermaid
    assert "  p0 --> p1" in mermaid
    dot = terminal.run("run", "graph", "shop-7", "--format", "dot").splitlines()
    assert (dot[0], dot[-1]) == ("digraph run {", "}")
    assert '  "schema" -> "api";' in dot
    document = terminal.json("run", "graph", "shop-7")
    phases = {each["phase_id"]: each for each in document["phases"]}
    assert phases["release"]["after"] == ["api", "web", "manual"]
    assert phases["web"]["waits_for"] == [{"phase_id": "schema", "cause": "order"}]


def test_a_run_without_dependencies_is_a_line(terminal: Terminal, autopack: Autopack) -> None:
    plan = json.loads(block("json"))
    for phase in plan["phases"]:
        phase.pop("depends_on", None)
    autopack.start_run(plan)
    document = terminal.json("run", "graph", "shop-7")
    assert [phase["after"] for phase in document["phases"]] == [
        [],
        ["schema"],
        ["api"],
        ["web"],
        ["manual"],
    ]

"""Program that starts a run and writes its phase, as HTTP, MCP, client and page show it, as JSON.

python tests/shown_phase.py <repository> <folder to work in> <address of the database>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tests.conftest import InProcess

from autopack.client import Autopack
from autopack.config import Settings
from autopack.database import init_db
from autopack.main import create_app

PLAN = {
    "run": {"run_id": "run-001"},
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
    "phases": [
        {"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "Say hello"},
    ],
}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "get_run", "arguments": {"run_id": "run-001"}},
}


def show(repository: Path, folder: Path, database_url: str) -> dict[str, Any]:
    """Return the phase as HTTP, MCP and the client have it, and the text of its page."""
    settings = Settings(
        _env_file=None,
        testing=True,
        database_url=database_url,
        repo_path=repository,
        home=folder / "home",
        autonomous_runs_dir=folder / "runs",
        jobs="outside",
    )
    init_db(settings)
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as http:
        with Autopack("http://localhost", transport=InProcess(http)) as client:
            client.start_run(PLAN)
            by_client = client.get_run("run-001").tiers[0].phases[0]
        by_http = http.get("/runs/run-001").json()["tiers"][0]["phases"][0]
        accept = {"Accept": "application/json, text/event-stream"}
        answer = http.post("/mcp", json=CALL, headers=accept).json()
        by_mcp = answer["result"]["structuredContent"]["tiers"][0]["phases"][0]
    return {
        "http": by_http,
        "mcp": by_mcp,
        "client": by_client.model_dump(mode="json"),
        "page": (folder / "runs" / "run-001" / "phases" / "phase_0_P1.md").read_text(),
    }


if __name__ == "__main__":
    json.dump(show(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]), sys.stdout)

"""The script of a project that checks promotions, as its workflow runs it: isolated."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from autopack.domain.naming import branch_name

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_promotion.py"
Json = dict[str, Any]


@cache
def compiled() -> str:
    """Compile the script once, as Python does with modules: it is most of a run's CPU time."""
    return str(py_compile.compile(str(SCRIPT), doraise=True))


def check_alone(repository: Path, run_id: str = "run-001", path: str | None = None) -> Json:
    """Return the script's verdict on a run's branch. `path` is where it finds git first."""
    done = subprocess.run(
        [
            *(sys.executable, "-I", compiled(), f"--run-id={run_id}", "--json"),
            *(f"--branch={branch_name(run_id)}", f"--repository={repository}"),
        ],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None,
    )
    assert done.stderr == ""
    verdict: Json = json.loads(done.stdout)
    assert done.returncode == (0 if verdict["eligible"] else 1)
    return verdict

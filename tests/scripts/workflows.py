"""GitHub's part in a workflow: contexts become environment, steps run one after another."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
# What GitHub starts for `shell: bash`, and for a step that names no shell.
_SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"],
    None: ["bash", "-e", "-c"],
}
# Pull requests are kept in a file beside it: enough of `gh` for what the workflow asks.
STAND_IN_GH = """\
#!/usr/bin/env python3
import json, os, pathlib, sys
store = pathlib.Path(__file__).with_name("pull_requests.json")
found = json.loads(store.read_text()) if store.exists() else []
assert os.environ["GH_TOKEN"] == "a-token" and sys.argv[1] == "pr"
command, *rest = sys.argv[2:]
options = dict(word[2:].split("=", 1) for word in rest if word.startswith("--"))
if "body-file" in options:
    options["body"] = pathlib.Path(options.pop("body-file")).read_text()
if command == "list":
    same = [pr for pr in found if all(pr[name] == options[name] for name in ("base", "head"))]
    print(same[0]["number"] if same else "")
elif command == "create":
    found.append({"number": len(found) + 1, **options})
else:
    assert command == "edit"
    found[int(rest[0]) - 1].update(options)
store.write_text(json.dumps(found))
"""


@dataclass(frozen=True)
class Workflow:
    document: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Workflow:
        document = yaml.safe_load(path.read_text())
        document["on"] = document.pop(True)  # YAML 1.1 reads `on` so; GitHub does not
        return cls(document)

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        jobs: dict[str, dict[str, Any]] = self.document["jobs"]
        return jobs

    def steps(self) -> list[dict[str, Any]]:
        return [step for job in self.jobs.values() for step in job["steps"]]

    def run(
        self, job_name: str, contexts: Mapping[str, str], folder: Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a job's shell steps until one fails; the answer is that of the last one.

        `contexts` are the expressions that the job's environments name.
        """
        job = self.jobs[job_name]
        scope: dict[str, str] = {}
        for level in (self.document, job):
            scope |= {
                name: _filled(value, {**contexts, **_as_context(scope)})
                for name, value in level.get("env", {}).items()
            }
        shell = self.document.get("defaults", {}).get("run", {}).get("shell")
        done = None
        for step in job["steps"]:
            if "run" not in step:
                continue
            own = {name: _filled(value, contexts) for name, value in step.get("env", {}).items()}
            done = subprocess.run(
                [*_SHELLS[step.get("shell", shell)], step["run"]],
                cwd=folder,
                env={"PATH": os.environ["PATH"], **scope, **own, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode != 0:
                break
        assert done is not None
        return done


def put_stand_in_gh(folder: Path) -> None:
    """Put a `gh` into a folder for the PATH."""
    folder.mkdir()
    (folder / "gh").write_text(STAND_IN_GH)
    (folder / "gh").chmod(0o755)


def pull_requests(folder: Path) -> list[dict[str, Any]]:
    """Return what the stand-in was told to open."""
    store = folder / "pull_requests.json"
    return json.loads(store.read_text()) if store.exists() else []


def _as_context(scope: Mapping[str, str]) -> dict[str, str]:
    return {f"env.{name}": value for name, value in scope.items()}


def _filled(text: str, contexts: Mapping[str, str]) -> str:
    return _EXPRESSION.sub(lambda match: contexts[match[1]], text)

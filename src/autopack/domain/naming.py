"""The names of a run's branch and snapshots in git."""

from __future__ import annotations

import re
from typing import Final

STRICT_MARK: Final = "[strict]"  # in a commit's subject, for CI: judge it by the strict profile
RUNS_FOLDER: Final = ".autonomous_runs"
RECORD: Final = "run.json"  # in a run's folder, as are the next
PULL_REQUEST: Final = "pull_request.md"
STATEMENT: Final = "statement.json"
RECORD_SEAL: Final = "Autopack-Record-SHA256"  # the trailer of a record's commit: of `run.json`


def branch_name(run_id: str) -> str:
    return f"autonomous/{run_id}"


def head_ref(branch: str) -> str:
    return f"refs/heads/{branch}"


def branch_ref(run_id: str) -> str:
    return head_ref(branch_name(run_id))


def snapshot_name(run_id: str, tier_id: str, phase_id: str) -> str:
    return f"autonomous/{run_id}/tier-{tier_id}/phase-{phase_id}"


def snapshot_ref(name: str) -> str:
    return f"refs/tags/{name}"


def record_folder(run_id: str) -> str:
    """Return the folder of a run's record on its branch, independent of the runs directory."""
    return f"{RUNS_FOLDER}/{run_id}"


def strategy_name(version: object) -> str:
    """Return the name of a strategy's file in a run's folder."""
    return f"project_implementation_strategy_v{version}.json"


def ruleset_name(project_id: str) -> str:
    """Return the name of a project's ruleset in the runs directory."""
    return f"project_ruleset_{project_id}.json"


def patch_name(sha256: str) -> str:
    """Return where the record keeps the bytes of a patch."""
    return f"patches/{sha256}.patch"


def record_message(run_id: str, state: str, record_sha256: str, *, is_strict: bool) -> str:
    """Return the message of a record's commit; CI looks for the mark of strict phases."""
    mark = f" {STRICT_MARK}" if is_strict else ""
    return (
        f"Record run {run_id}: {state}{mark}\n\n"
        f"Autopack-Run: {run_id}\n{RECORD_SEAL}: {record_sha256}\n"
    )


def record_seals(message: str) -> list[str]:
    """Return the sums of `run.json` that a record's commit names: one, if it is a record."""
    return re.findall(rf"^{RECORD_SEAL}: ([0-9a-f]{{64}})$", message, re.MULTILINE)


def snapshot_message(run_id: str, phase_id: str, title: str) -> str:
    """Return the message of a snapshot's tag. Without time or id, so a lost tag can be remade."""
    return f"Phase {phase_id} of run {run_id} is complete: {title}\n"

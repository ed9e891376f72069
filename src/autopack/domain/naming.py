"""The names of a run's branch and snapshots in git."""

from __future__ import annotations

from typing import Final

STRICT_MARK: Final = "[strict]"  # in a commit's subject, for CI: judge it by the strict profile


def branch_name(run_id: str) -> str:
    return f"autonomous/{run_id}"


def branch_ref(run_id: str) -> str:
    return f"refs/heads/{branch_name(run_id)}"


def snapshot_name(run_id: str, tier_id: str, phase_id: str) -> str:
    return f"autonomous/{run_id}/tier-{tier_id}/phase-{phase_id}"


def snapshot_ref(name: str) -> str:
    return f"refs/tags/{name}"


def record_folder(run_id: str) -> str:
    """Return the folder of a run's record on its branch, independent of the runs directory."""
    return f".autonomous_runs/{run_id}"


def record_message(run_id: str, state: str, record_sha256: str, *, is_strict: bool) -> str:
    """Return the message of a record's commit; CI looks for the mark of strict phases."""
    mark = f" {STRICT_MARK}" if is_strict else ""
    return (
        f"Record run {run_id}: {state}{mark}\n\n"
        f"Autopack-Run: {run_id}\nAutopack-Record-SHA256: {record_sha256}\n"
    )


def snapshot_message(run_id: str, phase_id: str, title: str) -> str:
    """Return the message of a snapshot's tag. Without time or id, so a lost tag can be remade."""
    return f"Phase {phase_id} of run {run_id} is complete: {title}\n"

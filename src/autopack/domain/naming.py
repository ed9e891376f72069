"""What a run's branch and snapshots are called in git."""

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
    """Return where a run's record stands on its branch, wherever the runs directory is."""
    return f".autonomous_runs/{run_id}"


def record_message(run_id: str, state: str, record_sha256: str, *, is_strict: bool) -> str:
    """Return what the commit of a run's record says; CI looks for the mark of strict phases."""
    mark = f" {STRICT_MARK}" if is_strict else ""
    return (
        f"Record run {run_id}: {state}{mark}\n\n"
        f"Autopack-Run: {run_id}\nAutopack-Record-SHA256: {record_sha256}\n"
    )


def snapshot_message(run_id: str, phase_id: str, title: str) -> str:
    """Return what a snapshot's tag says; a tag that was lost is made again from it."""
    return f"Phase {phase_id} of run {run_id} is complete: {title}\n"

"""What a run's branch and snapshots are called in git."""

from __future__ import annotations


def branch_name(run_id: str) -> str:
    return f"autonomous/{run_id}"


def branch_ref(run_id: str) -> str:
    return f"refs/heads/{branch_name(run_id)}"


def snapshot_name(run_id: str, tier_id: str, phase_id: str) -> str:
    return f"autonomous/{run_id}/tier-{tier_id}/phase-{phase_id}"


def snapshot_ref(name: str) -> str:
    return f"refs/tags/{name}"

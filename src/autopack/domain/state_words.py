"""The states of phases and tiers in words, for files and pages alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .states import PhaseStatus, TierStatus

PHASE_WORDS: Final[Mapping[PhaseStatus, str]] = {
    PhaseStatus.QUEUED: "queued",
    PhaseStatus.EXECUTING: "building",
    PhaseStatus.GATE: "in review",
    PhaseStatus.CI_RUNNING: "in CI",
    PhaseStatus.COMPLETE: "complete",
    PhaseStatus.FAILED: "failed",
    PhaseStatus.SKIPPED: "skipped",
}
TIER_WORDS: Final[Mapping[TierStatus, str]] = {
    TierStatus.PENDING: "pending",
    TierStatus.IN_PROGRESS: "in progress",
    TierStatus.COMPLETE: "complete",
    TierStatus.FAILED: "failed",
    TierStatus.SKIPPED: "skipped",
}

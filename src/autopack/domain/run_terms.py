"""What a run was started with, as its first event seals it. (rules §1)

Nothing changes it until the run's end, and no other event repeats it. So a record whose caps,
profiles or required evidence were edited does not fit its own first event.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .events import canonical_json
from .money import usd_text
from .run import PhaseState, RunState, TierState


def terms_sha256(run: RunState) -> str:
    """Return the hash of a run's scope and caps, and of what its tiers and phases must satisfy."""
    cap = run.cost_cap_usd
    document = {
        "run_scope": run.run_scope,
        "token_cap": run.token_cap,
        "cost_cap_usd": None if cap is None else usd_text(cap),
        "max_minor_issues_total": run.max_minor_issues_total,
        "tiers": sorted(
            (_terms_of_tier(each) for each in run.tiers), key=lambda each: each["tier_index"]
        ),
        "phases": sorted(
            (_terms_of_phase(each) for each in run.phases),
            key=lambda each: (each["tier_index"], each["phase_index"], each["phase_id"]),
        ),
    }
    return hashlib.sha256(canonical_json(document)).hexdigest()


def _terms_of_tier(tier: TierState) -> Mapping[str, Any]:
    return {
        "tier_id": tier.tier_id,
        "tier_index": tier.tier_index,
        "token_cap": tier.token_cap,
        "ci_run_cap": tier.ci_run_cap,
        "minors_tolerated": tier.minors_tolerated,
        "majors_tolerated": tier.majors_tolerated,
    }


def _terms_of_phase(phase: PhaseState) -> Mapping[str, Any]:
    return {
        "phase_id": phase.phase_id,
        "tier_id": phase.tier_id,
        "tier_index": phase.tier_index,
        "phase_index": phase.phase_index,
        "ci_profile": phase.ci_profile,
        "independence": phase.independence,
        "approvals_needed": phase.approvals_needed,
        "depends_on": None if phase.depends_on is None else list(phase.depends_on),
        "evidence_required": list(phase.evidence_required),
    }

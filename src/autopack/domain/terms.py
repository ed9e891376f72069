"""The closed sets of words that rules, records and the offline checker share.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from enum import StrEnum


class SafetyProfile(StrEnum):
    NORMAL = "normal"
    SAFETY_CRITICAL = "safety_critical"


class RunScope(StrEnum):
    SINGLE_TIER = "single_tier"
    INCREMENTAL = "incremental"
    MULTI_TIER = "multi_tier"


class Complexity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class CiProfile(StrEnum):
    NORMAL = "normal"
    STRICT = "strict"


class CiMode(StrEnum):
    NONE = "none"
    LOCAL = "local"
    EXTERNAL = "external"


class Severity(StrEnum):
    MINOR = "minor"
    MAJOR = "major"


class Role(StrEnum):
    BUILDER = "builder"
    AUDITOR = "auditor"


class Independence(StrEnum):
    """By what an Auditor must differ from a phase's Builder, and CI from both."""

    NONE = "none"
    AGENT = "agent"  # by key where calls need one, else by the name that the agent gives itself
    KEY = "key"  # by key; a caller without one is not told apart
    MODEL = "model"  # by the model that the agent names; CI by key or name


class DependencyReview(StrEnum):
    """What new dependencies of a phase ask for."""

    LISTED = "listed"
    REQUIRED = "required"


class Verdict(StrEnum):
    GREEN = "green"
    RED = "red"
    DID_NOT_RUN = "did_not_run"


class BuilderStatus(StrEnum):
    SUCCESS = "success"
    FAILED = "failed"
    NEEDS_REVIEW = "needs_review"
    UNAVAILABLE = "unavailable"  # the agent could not work: no attempt


class Recommendation(StrEnum):
    APPROVE = "approve"
    REVISE = "revise"
    ESCALATE = "escalate"
    UNAVAILABLE = "unavailable"  # the agent could not work: no review


class Sandbox(StrEnum):
    """Where a verdict was made: confined on our machine, unconfined there, or by a CI elsewhere."""

    BUBBLEWRAP = "bubblewrap"
    NONE = "none"
    EXTERNAL = "external"


class EvidenceKind(StrEnum):
    """What CI measures beside the command on the commit itself. (rules §6.1)"""

    BASELINE = "baseline"  # the command on the run's base
    BASE_TESTS = "base_tests"  # the base's tests on the new code
    FAILS_BEFORE = "fails_before"  # the phase's tests on the code as before the phase
    SEEDED_FAULTS = "seeded_faults"  # the commit with small faults in the phase's lines


class EvidenceResult(StrEnum):
    """What a measurement says of the change. (rules §6.1)"""

    PASSED = "passed"
    WARNED = "warned"  # it speaks against the change, and plan or ruleset let that pass
    FAILED = "failed"  # it speaks against the change: the verdict is not green
    NOT_NEEDED = "not_needed"  # the change gives nothing to measure
    NOT_MEASURED = "not_measured"  # over its budget, or not to be compared: nothing is known

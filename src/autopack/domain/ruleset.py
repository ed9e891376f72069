"""The operator's policy: a JSON document whose defaults are written here. (rules §9)"""

from __future__ import annotations

import datetime
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from .fault_terms import DEFAULT_FAULTS
from .terms import (
    CiMode,
    CiProfile,
    Complexity,
    DependencyReview,
    EvidenceKind,
    Independence,
    RunScope,
    SafetyProfile,
    Severity,
)
from .values import (
    Closed,
    Count,
    Identifier,
    PathGlob,
    PositiveCount,
    PositiveUsd,
    Several,
    Text,
    Usd,
    Word,
)

DEFAULT_CATEGORY = "default"
DEBT_CATEGORY: Final = "debt_cleanup"
#: Which files are tests, and what tests read, by the usual names of several languages.
DEFAULT_TEST_PATHS: Final = (
    *("**/tests/**", "**/test/**", "**/__tests__/**", "**/spec/**", "**/testdata/**"),
    *("**/test_*.py", "**/*_test.py", "**/conftest.py", "**/pytest.ini"),
    *("**/*.test.*", "**/*.spec.*", "**/__snapshots__/**", "**/*.snap"),
    *("**/*_test.go", "**/*_spec.rb", "**/*_test.rb", "**/*_test.exs", "**/*Test.php"),
    *("**/*Test.java", "**/*Tests.java", "**/*Test.kt", "**/*Tests.cs", "**/*Test.scala"),
)
# Kinds of evidence that compare tests by their names.
BY_TEST_NAMES: Final = frozenset({EvidenceKind.BASE_TESTS, EvidenceKind.FAILS_BEFORE})
# A quick command's evidence may take longer than the command: to lay out a tree takes time too.
MIN_EVIDENCE_SECONDS: Final = 60
Message = Annotated[Text, Field(min_length=8)]  # shorter texts occur in ordinary output too
Minutes = Annotated[int, Field(strict=True, ge=1, le=10_080)]
# Characters that end a simple command of a shell, and quotes: `bash -c 'scripts/check.sh'`.
_SHELL_SIGNS: Final = re.compile(r"[\n;&|(){}`'\"]+")
# Words that are not the program: assignments, options, numbers, and words before a program.
_BEFORE_A_PROGRAM: Final = re.compile(
    r"\w+=.*|-.*|[.$]|[\d.]+[smh]?|!|if|then|elif|else|while|until|do|time|timeout|nice|exec|env|source"
    r"|(\S*/)?((ba|da|z|k)?sh|python[\d.]*|node|perl|ruby)"
)
_PATH: Final = re.compile(r"[\w.][\w./+@-]*")


class CategoryRule(Closed):
    """The caps of one task category, and how its patches reach the branch."""

    complexity: Complexity = Complexity.MEDIUM
    ci_profile: CiProfile = CiProfile.NORMAL
    max_builder_attempts: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    max_auditor_attempts: Annotated[int, Field(strict=True, ge=0, le=100)] = 2
    incident_token_cap: PositiveCount = 500_000
    auto_apply: bool = True
    auditor_profile: Word | None = None
    default_severity: Severity = Severity.MINOR
    independence: Independence = Independence.NONE
    approvals: Annotated[int, Field(strict=True, ge=1, le=10)] = 1

    @property
    def is_high_risk(self) -> bool:
        """A category is high risk if its issues are major by default."""
        return self.default_severity is Severity.MAJOR


class BuilderModeRule(Closed):
    """Caps of a builder mode, in addition to those of the category."""

    max_builder_attempts: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None
    max_patch_files: PositiveCount | None = None


class SafetyRule(Closed):
    """What a safety profile demands."""

    every_phase_strict: bool = False
    minors_tolerated_per_phase: Count = 2
    cleanup_after_runs: PositiveCount = 3
    cleanup_after_tiers: PositiveCount = 2
    minor_cap_ends_run: bool = False
    any_failure_stops: bool = False
    high_risk_needs_review: bool = False
    independence: Independence = Independence.NONE


class RunBudget(Closed):
    token_cap: PositiveCount = 5_000_000
    cost_cap_usd: PositiveUsd | None = None
    max_phases: PositiveCount = 25
    max_duration_minutes: Minutes = 120
    minor_issues_per_phase: Count = 3


class Price(Closed):
    """The price of a model: USD per million tokens of each kind, as of a date.

    `cached`: tokens read from a cache; None: the price of `input`.
    """

    input: Usd
    output: Usd
    cached: Usd | None = None
    date: datetime.date


class TierBudget(Closed):
    token_cap_factor: PositiveCount = 3
    ci_runs_per_phase: PositiveCount = 2
    majors_tolerated: Count = 0


class PathRules(Closed):
    """Globs that no patch may change, in addition to the built-in ones, and exceptions from them.

    `portable_names`: new names must exist and differ on Windows and macOS too.
    """

    protected: Several[PathGlob] = ()
    opened: Mapping[Word, Several[PathGlob]] = Field(default_factory=dict)
    portable_names: Annotated[bool, Field(strict=True)] = True


class ReviewRules(Closed):
    """What needs an Auditor whatever the category says."""

    new_dependencies: DependencyReview = DependencyReview.LISTED


class CiCommand(Closed):
    command: Text | None = None
    timeout_seconds: Annotated[int, Field(strict=True, ge=1, le=86_400)] = 1_800
    retries: Annotated[int, Field(strict=True, ge=0, le=10)] = 1
    junit: PathGlob | None = None
    evidence: Several[EvidenceKind] = ()
    # How many times the command's own time one kind of evidence may take, and how many times its
    # time limit all kinds may take together.
    evidence_budget: Annotated[float, Field(strict=True, ge=0.1, le=100, allow_inf_nan=False)] = 2.0

    def evidence_seconds(self, plain: float) -> int:
        """Return how long one kind of evidence may take if the command took `plain` seconds."""
        return max(MIN_EVIDENCE_SECONDS, math.ceil(self.evidence_budget * plain))

    def all_evidence_seconds(self) -> int:
        """Return how long all evidence of a CI run may take, with base and repeats. (rules §6.1)"""
        return self.evidence_seconds(self.timeout_seconds)

    def most_seconds(self, evidence: Sequence[EvidenceKind]) -> int:
        """Return how long a CI run may take: the command on the commit, and all evidence."""
        return self.timeout_seconds + (self.all_evidence_seconds() if evidence else 0)

    def programs(self) -> Iterator[str]:
        """Yield the programs that the command's text names; each may be a path."""
        for part in _SHELL_SIGNS.split(self.command or ""):
            words = (word for word in part.split() if not _BEFORE_A_PROGRAM.fullmatch(word))
            program = posixpath.normpath(next(words, "."))
            if _PATH.fullmatch(program) and program != "." and not program.startswith(".."):
                yield program


class CiProfiles(Closed):
    normal: CiCommand = CiCommand()
    strict: CiCommand = CiCommand()


class CiBaseline(StrEnum):
    """What a check that is red on the base commit too does to a phase. (rules §6.1)"""

    KNOWN = "known"  # it is not the phase's fault
    STRICT = "strict"  # it has to be mended


class DeafGate(StrEnum):
    """What a CI command that notices no seeded fault does to a phase. (rules §6.1)"""

    WARN = "warn"
    RED = "red"


class CiRules(Closed):
    mode: CiMode = CiMode.NONE
    baseline: CiBaseline = CiBaseline.KNOWN
    test_paths: Several[PathGlob] = DEFAULT_TEST_PATHS
    # How many faults are seeded into the lines of a phase, and what follows if none is noticed.
    seeded_faults: Annotated[int, Field(strict=True, ge=1, le=20)] = DEFAULT_FAULTS
    deaf_gate: DeafGate = DeafGate.WARN
    # Whether promotion demands that each green verdict was made in the service's sandbox.
    require_sandbox: bool = False
    profiles: CiProfiles = CiProfiles()

    def command_for(self, profile: CiProfile) -> CiCommand:
        return self.profiles.strict if profile is CiProfile.STRICT else self.profiles.normal

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.mode is CiMode.EXTERNAL and self.require_sandbox:
            raise ValueError(
                "require_sandbox needs mode local: external CI does not run in this sandbox"
            )
        for profile in CiProfile:
            self._check_evidence(profile)
        if self.mode is CiMode.LOCAL:
            for profile in CiProfile:
                if not self.command_for(profile).command:
                    raise ValueError(f"mode local needs profiles.{profile}.command")
        return self

    def _check_evidence(self, profile: CiProfile) -> None:
        kinds = self.command_for(profile).evidence
        place = f"profiles.{profile}.evidence"
        if kinds and self.mode is not CiMode.LOCAL:
            raise ValueError(f"{place} needs mode local: only this service's own CI measures it")
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"{place} names '{kind}' twice")
            problem = self.evidence_problem(profile, kind)
            if problem is not None:
                raise ValueError(f"{place}: '{kind}' {problem}")

    def evidence_problem(self, profile: CiProfile, kind: EvidenceKind) -> str | None:
        """Say what the rules of a profile lack to measure a kind of evidence; None: nothing."""
        if self.mode is not CiMode.LOCAL:
            return f"needs ci.mode local, and it is {self.mode}"
        if kind not in BY_TEST_NAMES:
            return None
        if self.command_for(profile).junit is None:
            return f"needs ci.profiles.{profile}.junit, whose reports name the tests"
        return None if self.test_paths else "needs ci.test_paths, which is empty"


def _high_risk(builder: int, auditor: int, cap: int, auditor_profile: str) -> CategoryRule:
    return CategoryRule(
        complexity=Complexity.HIGH,
        ci_profile=CiProfile.STRICT,
        max_builder_attempts=builder,
        max_auditor_attempts=auditor,
        incident_token_cap=cap,
        auto_apply=False,
        auditor_profile=auditor_profile,
        default_severity=Severity.MAJOR,
        independence=Independence.AGENT,
    )


def _low_risk(builder: int, auditor: int, cap: int) -> CategoryRule:
    return CategoryRule(
        complexity=Complexity.LOW,
        max_builder_attempts=builder,
        max_auditor_attempts=auditor,
        incident_token_cap=cap,
    )


DEFAULT_CATEGORIES: Mapping[str, CategoryRule] = {
    "cross_cutting_refactor": _high_risk(2, 2, 1_000_000, "refactor_review"),
    "index_registry_change": _high_risk(2, 2, 800_000, "index_review"),
    "schema_contract_change": _high_risk(2, 3, 1_000_000, "schema_review"),
    "bulk_multi_file_operation": _high_risk(1, 2, 1_500_000, "bulk_review"),
    "security_auth_change": _high_risk(2, 3, 800_000, "security_review"),
    "feature_scaffolding": CategoryRule(),
    "docs": _low_risk(2, 1, 200_000),
    "tests": _low_risk(3, 1, 300_000),
    DEBT_CATEGORY: CategoryRule(
        max_builder_attempts=2,
        max_auditor_attempts=1,
        incident_token_cap=400_000,
        auto_apply=False,
        auditor_profile="debt_cleanup_review",
    ),
    DEFAULT_CATEGORY: CategoryRule(),
}
DEFAULT_ALIASES: Mapping[str, str] = {
    "schema_change": "schema_contract_change",
    "security_auth": "security_auth_change",
    "index_registry_maintenance": "index_registry_change",
    "bulk_operation": "bulk_multi_file_operation",
}
# What known agents print last when they could not work: parts of a line, without regard to case.
DEFAULT_UNAVAILABLE_MESSAGES: Mapping[str, tuple[str, ...]] = {
    "aider": (
        "litellm.RateLimitError",
        "litellm.ServiceUnavailableError",
        "litellm.InternalServerError",
        "litellm.AuthenticationError",
    ),
    "claude": (
        "usage limit reached",
        "You've hit your limit",
        "You've hit your session limit",
        "Credit balance is too low",
        "API Error: 429",
        "API Error: Request rejected (429)",
        "API Error: 529",
        "Please run /login",
    ),
    "codex": (
        "You've hit your usage limit",
        "exceeded retry limit, last status: 429",
        "Quota exceeded. Check your plan and billing details",
        "We're currently experiencing high demand",
        "unexpected status 401 Unauthorized",
    ),
    "gemini": (
        "RESOURCE_EXHAUSTED",
        "exhausted your capacity",
        "exhausted your daily quota",
        "Please set an Auth method",
        "API key not valid",
        "UNAUTHENTICATED",
    ),
    "opencode": (
        "Rate limit exceeded",
        "Too Many Requests",
        "insufficient_quota",
        "APIError 401:",
        "APIError 429:",
    ),
}
DEFAULT_SAFETY: Mapping[SafetyProfile, SafetyRule] = {
    SafetyProfile.NORMAL: SafetyRule(),
    SafetyProfile.SAFETY_CRITICAL: SafetyRule(
        every_phase_strict=True,
        minors_tolerated_per_phase=1,
        cleanup_after_runs=2,
        cleanup_after_tiers=2,
        minor_cap_ends_run=True,
        any_failure_stops=True,
        high_risk_needs_review=True,
        independence=Independence.AGENT,
    ),
}


class Ruleset(Closed):
    """`project_ruleset_<project_id>.json`: every budget and rule that an operator can set."""

    version: PositiveCount = 1
    project_id: Identifier
    default_safety_profile: SafetyProfile = SafetyProfile.NORMAL
    default_run_scope: RunScope = RunScope.INCREMENTAL
    categories: Mapping[Word, CategoryRule] = Field(
        default_factory=lambda: dict(DEFAULT_CATEGORIES)
    )
    aliases: Mapping[Word, Word] = Field(default_factory=lambda: dict(DEFAULT_ALIASES))
    builder_modes: Mapping[Word, BuilderModeRule] = Field(
        default_factory=lambda: {
            "tweak_light": BuilderModeRule(max_builder_attempts=2, max_patch_files=2),
            "scaffolding_heavy": BuilderModeRule(),
            "refactor_heavy": BuilderModeRule(),
            "schema_heavy": BuilderModeRule(),
            "compose": BuilderModeRule(),
        }
    )
    safety_profiles: Mapping[SafetyProfile, SafetyRule] = Field(
        default_factory=lambda: dict(DEFAULT_SAFETY)
    )
    run: RunBudget = RunBudget()
    tier: TierBudget = TierBudget()
    attempt_minutes: Minutes = 60
    audit_minutes: Minutes = 60
    auto_debt_cleanup: bool = False
    parallel: bool = True
    prices: Mapping[Word, Price] = Field(default_factory=dict)
    unavailable_messages: Mapping[Word, tuple[Message, ...]] = Field(
        default_factory=lambda: dict(DEFAULT_UNAVAILABLE_MESSAGES)
    )
    paths: PathRules = PathRules()
    review: ReviewRules = ReviewRules()
    ci: CiRules = CiRules()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if DEFAULT_CATEGORY not in self.categories:
            raise ValueError(f"categories needs an entry '{DEFAULT_CATEGORY}'")
        for profile in SafetyProfile:
            if profile not in self.safety_profiles:
                raise ValueError(f"safety_profiles needs an entry '{profile}'")
        for alias, target in self.aliases.items():
            if target not in self.categories:
                raise ValueError(f"aliases.{alias} names '{target}', which is not in categories")
        return self

    def canonical_category(self, category: str) -> str:
        """Follow the alias of a task category; an unknown one stays as it is."""
        return self.aliases.get(category, category)

    def rule_for(self, category: str) -> CategoryRule:
        """Return the rule of a category, after aliases, else the default's."""
        return self.categories.get(
            self.canonical_category(category), self.categories[DEFAULT_CATEGORY]
        )

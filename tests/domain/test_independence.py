"""Who may review or judge a phase, by who built it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopack.domain.independence import identity_of, is_independent, rests_on_names
from autopack.domain.run import PhaseState
from autopack.domain.states import PhaseStatus
from autopack.domain.terms import CiProfile, Independence

pytestmark = pytest.mark.unit

PHASE = PhaseState(
    phase_id="P1",
    tier_id="T1",
    tier_index=0,
    phase_index=0,
    state=PhaseStatus.GATE,
    ci_profile=CiProfile.STRICT,
    has_ci=True,
    ci_timeout_seconds=1,
    max_builder_attempts=1,
    max_auditor_attempts=1,
    incident_token_cap=1,
    auto_apply=False,
    is_high_risk=True,
    allow_empty=False,
    independence=Independence.AGENT,
)


@pytest.mark.parametrize(
    ("actor", "identity"),
    [
        ("key:codex-3:builder", "key:codex-3"),
        ("key:codex-3:auditor", "key:codex-3"),
        ("oidc:repo:acme/sample:ref:x:ci", "oidc:repo:acme/sample:ref:x"),
        ("local:codex@host", "local:codex@host"),
        ("local:auditor@host", None),
        ("local:builder@host", None),
        ("supervisor", None),
        ("operator", None),
        ("client", None),
    ],
)
def test_an_identity_is_the_actor_without_its_role(actor: str, identity: str | None) -> None:
    assert identity_of(actor) == identity


@pytest.mark.parametrize(
    ("rule", "built_by", "reviewer", "expected"),
    [
        ("agent", "key:a:builder", "key:a:auditor", False),
        ("agent", "key:a:builder", "key:b:auditor", True),
        ("agent", "local:a@h", "local:a@h", False),
        ("agent", "local:a@h", "local:b@h", True),
        ("agent", "local:builder@h", "local:auditor@h", True),
        ("agent", None, "key:a:auditor", True),
        ("key", "key:a:builder", "key:a:auditor", False),
        ("key", "local:a@h", "local:a@h", True),
        ("none", "key:a:builder", "key:a:auditor", True),
    ],
)
def test_an_auditor_is_another_than_the_builder(
    rule: str, built_by: str | None, reviewer: str, expected: bool
) -> None:
    phase = replace(PHASE, independence=Independence(rule), built_by=built_by)
    assert is_independent(phase, reviewer) is expected


def test_ci_is_neither_the_builder_nor_the_auditor() -> None:
    phase = replace(PHASE, built_by="key:a:builder", reviewed_by="key:b:auditor")
    for judge, expected in (("key:a:ci", False), ("key:b:ci", False), ("key:c:ci", True)):
        assert is_independent(phase, judge, is_judge=True) is expected
    assert is_independent(phase, "supervisor", is_judge=True)  # CI of the service's own
    assert is_independent(phase, "key:b:auditor")  # who reviewed may review again


def test_only_keys_prove_independence() -> None:
    for built_by, reviewed_by, expected in (
        ("key:a:builder", "key:b:auditor", False),
        ("key:a:builder", "local:b@h", True),
        (None, "key:b:auditor", True),
        ("local:a@h", None, False),
    ):
        phase = replace(PHASE, built_by=built_by, reviewed_by=reviewed_by)
        assert rests_on_names(phase) is expected
        assert not rests_on_names(replace(phase, independence=Independence.NONE))

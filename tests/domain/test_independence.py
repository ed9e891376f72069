"""Who may review or judge a phase, by who built it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopack.domain.independence import (
    NotIndependentError,
    identity_of,
    model_of,
    require_model,
    rests_on_names,
    why_not_judge,
    why_not_reviewer,
)
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
    assert (why_not_reviewer(phase, reviewer) is None) is expected


@pytest.mark.parametrize(
    ("built_with", "model", "expected"),
    [
        ("gpt-5-codex", "gpt-5-codex", False),
        ("gpt-5-codex", "openai/GPT-5-Codex ", False),
        ("gpt-5-codex", "claude-opus-4", True),
        ("gpt-5-codex", None, True),  # a claim that names none; of a result see below
        (None, "claude-opus-4", True),
        ("", "", True),
    ],
)
def test_an_auditor_works_by_another_model_than_the_builder(
    built_with: str | None, model: str | None, expected: bool
) -> None:
    phase = replace(
        PHASE,
        independence=Independence.MODEL,
        built_by="key:a:builder",
        built_with=built_with,
    )
    assert (why_not_reviewer(phase, "key:a:auditor", model) is None) is expected


@pytest.mark.parametrize(
    ("actor", "model", "is_refused"),
    [
        ("key:a:auditor", None, True),
        ("oidc:repo:x:auditor", "", True),
        ("key:a:auditor", "gpt-5", False),
        ("local:codex@host", None, False),
        ("local:auditor@host", None, False),
        ("supervisor", None, False),
    ],
)
def test_a_result_by_key_must_name_its_model(
    actor: str, model: str | None, is_refused: bool
) -> None:
    require_model(PHASE, actor, model)  # another rule asks for none
    phase = replace(PHASE, independence=Independence.MODEL)
    if is_refused:
        with pytest.raises(NotIndependentError, match="name your `model`"):
            require_model(phase, actor, model)
    else:
        require_model(phase, actor, model)


def test_whose_patch_is_on_the_branch_built_it_too() -> None:
    phase = replace(PHASE, built_by="key:b:builder", builders=("key:a:builder",))
    for reviewer in ("key:a:auditor", "key:b:auditor"):
        assert why_not_reviewer(phase, reviewer) == f"{identity_of(reviewer)} built it"
    assert why_not_judge(phase, "key:a:ci") is not None
    phase = replace(phase, independence=Independence.MODEL, built_with="m2", builder_models=("m1",))
    for model in ("m1", "m2"):
        assert why_not_reviewer(phase, "key:c:auditor", model) == f"the model '{model}' built it"


def test_a_model_is_compared_without_provider_case_and_blanks() -> None:
    names = (None, "", " / ", "openai/", "GPT-5", "openai/gpt-5 ", "a/b/gpt-5")
    assert [model_of(name) for name in names] == [None] * 4 + ["gpt-5"] * 3


def test_ci_is_neither_the_builder_nor_the_auditor() -> None:
    phase = replace(PHASE, built_by="key:a:builder", reviewed_by="key:b:auditor")
    for judge, expected in (("key:a:ci", False), ("key:b:ci", False), ("key:c:ci", True)):
        assert (why_not_judge(phase, judge) is None) is expected
    assert why_not_judge(phase, "supervisor") is None  # CI of the service's own
    assert why_not_reviewer(phase, "key:b:auditor") is None  # who reviewed may review again
    approved = replace(phase, reviewed_by="key:d:auditor", approved_by=("key:b:auditor",))
    assert why_not_judge(approved, "key:b:ci") is not None


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
        by_model = replace(phase, independence=Independence.MODEL)
        assert rests_on_names(by_model) is (reviewed_by is not None)

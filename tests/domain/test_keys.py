"""Keys as texts, and who may do what."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autopack.domain.access import (
    GRANTS,
    ROLES_OF,
    SERVICE,
    AccessRole,
    Caller,
    MissingRoleError,
)
from autopack.domain.audit_log import AuditAction, AuditEvent, first_broken, hash_of
from autopack.domain.events import GENESIS_HASH
from autopack.domain.keys import LENGTH, expiry, is_well_formed, make_key, without_keys
from autopack.domain.secret_rules import redact
from autopack.domain.terms import Role

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class TestKeys:
    def test_a_key_is_random_has_a_prefix_and_a_checksum(self) -> None:
        keys = {make_key() for _ in range(100)}
        assert len(keys) == 100
        for key in keys:
            assert re.fullmatch(r"ap_[0-9A-Za-z]{49}", key)
            assert len(key) == LENGTH
            assert is_well_formed(key)

    def test_one_wrong_letter_is_seen_without_asking_the_service(self) -> None:
        key = make_key()
        for at in range(3, len(key)):
            wrong = key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1 :]
            assert not is_well_formed(wrong)
        for wrong in ("", "ap_", key[:-1], key + "a", key.replace("ap_", "aq_"), key + "\n"):
            assert not is_well_formed(wrong)

    def test_a_key_is_a_credential_wherever_a_text_holds_it(self) -> None:
        key = make_key()
        for text in (key, f"token={key}.", f"map_{key}", f"{key}{key}"):
            assert key not in redact(text)
        mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
        assert redact(mistyped) == mistyped
        assert key not in without_keys(f"GET /runs?key={key}")
        assert mistyped not in without_keys(mistyped)

    def test_a_lifetime_is_hours_days_or_weeks(self) -> None:
        assert expiry("90d", NOON) == NOON + timedelta(days=90)
        assert expiry("12h", NOON) == NOON + timedelta(hours=12)
        assert expiry("8w", NOON) == NOON + timedelta(weeks=8)
        for wrong in (
            "",
            "0d",
            "90",
            "d",
            "-1d",
            "1.5d",
            "90 d",
            "999999w",
            "9" * 30 + "d",
            "90d\n",
        ):
            with pytest.raises(ValueError, match="no lifetime"):
                expiry(wrong, NOON)


class TestRoles:
    def test_every_role_may_read_and_the_operator_may_do_everything(self) -> None:
        for role in AccessRole:
            caller = Caller(roles=frozenset({role}), key="k")
            for operation in ROLES_OF:
                is_granted = operation in GRANTS[role] or operation in GRANTS[AccessRole.VIEWER]
                if is_granted or role is AccessRole.OPERATOR:
                    does = role if role is not AccessRole.OPERATOR else ROLES_OF[operation][0]
                    assert caller.acting(operation).role is does
                else:
                    with pytest.raises(MissingRoleError, match=f"key 'k' has {role}"):
                        caller.acting(operation)

    def test_what_a_refusal_names_is_the_role_that_would_do(self) -> None:
        viewer = Caller(roles=frozenset({AccessRole.VIEWER}), key="k")
        with pytest.raises(MissingRoleError) as refusal:
            viewer.acting("POST /runs/{run_id}/phases/{phase_id}/ci_result")
        assert "needs the role ci or operator" in refusal.value.detail
        assert refusal.value.extra == {"allowed": ["ci", "operator"]}

    def test_a_claim_needs_the_role_that_the_work_is_for(self) -> None:
        builder = Caller(roles=frozenset({AccessRole.BUILDER}), key="k")
        assert builder.claiming(Role.BUILDER).role is AccessRole.BUILDER
        with pytest.raises(MissingRoleError, match="a claim as auditor needs the role auditor"):
            builder.claiming(Role.AUDITOR)
        operator = Caller(roles=frozenset({AccessRole.OPERATOR}), key="k")
        assert operator.claiming(Role.AUDITOR).role is AccessRole.AUDITOR

    def test_a_key_with_several_roles_acts_in_the_one_that_is_asked_for(self) -> None:
        both = Caller(roles=frozenset({AccessRole.BUILDER, AccessRole.AUDITOR}), key="k")
        assert both.claiming(Role.AUDITOR).actor == "key:k:auditor"
        path = "POST /runs/{run_id}/phases/{phase_id}/builder_result"
        assert both.acting(path).actor == "key:k:builder"

    def test_a_caller_without_a_key_may_do_everything(self) -> None:
        local = Caller(host="here")
        for operation, roles in ROLES_OF.items():
            assert local.acting(operation).actor == f"local:{roles[0]}@here"

    def test_an_actor_is_a_key_in_its_role_or_a_name_on_its_host(self) -> None:
        local = Caller(host="here").acting("POST /claim")
        assert local.actor == "local:builder@here"
        assert local.named("codex").actor == "local:codex@here"
        assert local.named("codex@there").actor == "local:codex@there"
        assert local.named(None).actor == local.actor
        keyed = Caller(key="k", roles=frozenset({AccessRole.BUILDER})).acting("POST /claim")
        assert keyed.named("codex@there").actor == "key:k:builder"
        assert SERVICE.actor == "supervisor"


@dataclass(frozen=True)
class Entry:
    sequence: int
    at: datetime
    actor: str
    action: AuditAction
    subject: str
    data: dict[str, Any]
    previous_hash: str
    hash: str


def test_an_entry_of_the_audit_log_that_was_changed_or_removed_shows() -> None:
    entries: list[Entry] = []
    previous = GENESIS_HASH
    for sequence in range(1, 5):
        event = AuditEvent(
            NOON, "local", AuditAction.KEY_CREATED, f"k{sequence}", {"roles": ["ci"]}
        )
        digest = hash_of(sequence, event, previous)
        parts = (event.at, event.actor, event.action, event.subject, dict(event.data))
        entries.append(Entry(sequence, *parts, previous, digest))
        previous = digest
    assert first_broken([]) is None
    assert first_broken(entries) is None
    changed = [*entries[:1], replace(entries[1], actor="local:x"), *entries[2:]]
    assert first_broken(changed) == 2
    assert first_broken([*entries[:2], *entries[3:]]) == 3
    assert first_broken(entries[1:]) == 1
    assert first_broken([*entries[:1], replace(entries[1], data={"roles": ["operator"]})]) == 2

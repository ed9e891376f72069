"""The audit log of keys and policy: entries in a chain of hashes, as the events of a run are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from .events import GENESIS_HASH, canonical_json, wire_time


class AuditAction(StrEnum):
    KEY_CREATED = "key_created"
    KEY_REVOKED = "key_revoked"
    KEY_ROTATED = "key_rotated"
    RULESET_REPLACED = "ruleset_replaced"
    ATTENTION_DISMISSED = "attention_dismissed"
    WEBHOOK_CREATED = "webhook_created"
    WEBHOOK_REMOVED = "webhook_removed"
    WEBHOOK_ENABLED = "webhook_enabled"
    PROJECT_CREATED = "project_created"
    PROJECT_CHANGED = "project_changed"
    PROJECT_CLOSED = "project_closed"
    PROJECT_REOPENED = "project_reopened"
    NODE_REMOVED = "node_removed"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """What was done, to what, by whom; `data` is JSON and holds no key."""

    at: datetime
    actor: str
    action: AuditAction
    subject: str
    data: Mapping[str, Any]


class Sealed(Protocol):
    """An entry of the log as it is stored."""

    @property
    def sequence(self) -> int: ...
    @property
    def at(self) -> datetime: ...
    @property
    def actor(self) -> str: ...
    @property
    def action(self) -> AuditAction: ...
    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def previous_hash(self) -> str: ...
    @property
    def hash(self) -> str: ...


def hash_of(sequence: int, event: AuditEvent, previous_hash: str) -> str:
    """Return the hash of an entry, which covers the hash of the one before it."""
    document = {
        "sequence": sequence,
        "at": wire_time(event.at),
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "data": dict(event.data),
        "previous_hash": previous_hash,
    }
    return hashlib.sha256(canonical_json(document)).hexdigest()


def first_broken(entries: Iterable[Sealed]) -> int | None:
    """Return the number of the first entry that does not follow from those before it, or None.

    `entries` is the whole log from its first entry on. Entries that were cut off at its end do not
    show: compare the last hash with one that was noted elsewhere.
    """
    previous = GENESIS_HASH
    for sequence, entry in enumerate(entries, 1):
        event = AuditEvent(
            entry.at, entry.actor, AuditAction(entry.action), entry.subject, entry.data
        )
        digest = hash_of(sequence, event, previous)
        if (entry.sequence, entry.previous_hash, entry.hash) != (sequence, previous, digest):
            return sequence
        previous = entry.hash
    return None

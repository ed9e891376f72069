"""Events: what happened to a run, in order, each sealed by the hash of the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

GENESIS_HASH = "0" * 64
SUPERVISOR = "supervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    kind: str
    actor: str
    at: datetime
    phase_id: str | None = None
    tier_id: str | None = None
    from_state: str | None = None
    to_state: str | None = None
    reason: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEvent:
    """An event with its place in the run's chain."""

    sequence: int
    event: Event
    previous_hash: str
    hash: str


def wire_time(moment: datetime) -> str:
    """Write a moment as UTC ISO 8601 with microseconds and `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def canonical_json(value: object) -> bytes:
    """Write JSON in the one form that hashes are taken over."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def event_document(sequence: int, event: Event, previous_hash: str) -> dict[str, Any]:
    """Return the event as it is published, without its own hash."""
    return {
        "sequence": sequence,
        "at": wire_time(event.at),
        "actor": event.actor,
        "kind": event.kind,
        "phase_id": event.phase_id,
        "tier_id": event.tier_id,
        "from_state": event.from_state,
        "to_state": event.to_state,
        "reason": event.reason,
        "data": dict(event.data),
        "previous_hash": previous_hash,
    }


def seal(events: tuple[Event, ...], last_sequence: int, last_hash: str) -> list[SealedEvent]:
    """Chain events to the run's last one."""
    sealed = []
    for event in events:
        last_sequence += 1
        document = event_document(last_sequence, event, last_hash)
        digest = hashlib.sha256(canonical_json(document)).hexdigest()
        sealed.append(
            SealedEvent(sequence=last_sequence, event=event, previous_hash=last_hash, hash=digest)
        )
        last_hash = digest
    return sealed

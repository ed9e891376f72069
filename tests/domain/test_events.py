"""The chain of events shows when its history was changed. (rules §1)"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from autopack.domain.events import (
    GENESIS_HASH,
    EventRecord,
    canonical_json,
    event_document,
    seal,
    wire_time,
)

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
EVENTS = tuple(
    EventRecord(
        kind=kind, actor="supervisor", at=AT, phase_id="P1", reason="Grüße \u2028", data={"n": n}
    )
    for n, kind in enumerate(["RunStarted", "PhaseStarted", "PhaseCompleted"])
)


def published() -> list[dict[str, Any]]:
    """The chain as a reader has it: JSON documents, each with its hash."""
    return [
        {**event_document(one.sequence, one.event, one.previous_hash), "hash": one.hash}
        for one in seal(EVENTS, 0, GENESIS_HASH)
    ]


def is_whole(chain: list[dict[str, Any]]) -> bool:
    """Check a chain as a reader of its description would."""
    previous = "0" * 64
    for place, document in enumerate(chain, 1):
        rest = {name: value for name, value in document.items() if name != "hash"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if (document["sequence"], document["previous_hash"], document["hash"]) != (
            place,
            previous,
            digest,
        ):
            return False
        previous = digest
    return True


def test_a_chain_can_be_checked_with_only_its_description() -> None:
    assert is_whole(json.loads(json.dumps(published())))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "field", ["sequence", "at", "actor", "kind", "phase_id", "to_state", "reason", "data", "hash"]
)
def test_a_changed_field_shows(place: int, field: str) -> None:
    chain = published()
    chain[place][field] = "changed"
    assert not is_whole(chain)


def test_an_event_is_published_with_all_that_it_says() -> None:
    happened = EventRecord(
        kind="PhaseGated",
        actor="operator",
        at=AT,
        phase_id="P1",
        tier_id="T1",
        from_state="EXECUTING",
        to_state="GATE",
        reason="because",
        data={"n": 1},
    )
    assert event_document(7, happened, "a" * 64) == {
        "sequence": 7,
        "at": "2026-01-01T12:00:00.000001Z",
        "actor": "operator",
        "kind": "PhaseGated",
        "phase_id": "P1",
        "tier_id": "T1",
        "from_state": "EXECUTING",
        "to_state": "GATE",
        "reason": "because",
        "data": {"n": 1},
        "previous_hash": "a" * 64,
    }


def test_a_missing_doubled_or_moved_event_shows() -> None:
    one, two, three = published()
    for changed in ([two, three], [one, three], [one, one, two, three], [one, three, two]):
        assert not is_whole(changed)


def test_a_chain_goes_on_where_it_was_left() -> None:
    whole = seal(EVENTS, 0, GENESIS_HASH)
    begun = seal(EVENTS[:1], 0, GENESIS_HASH)
    assert [*begun, *seal(EVENTS[1:], begun[-1].sequence, begun[-1].hash)] == whole
    assert [one.sequence for one in whole] == [1, 2, 3]


def test_nothing_to_seal_is_no_event() -> None:
    assert seal((), 4, "a" * 64) == []


def test_the_same_moment_is_written_alike_in_every_zone() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=-7)))
    assert wire_time(elsewhere) == wire_time(AT) == "2026-01-01T12:00:00.000001Z"


def test_the_canonical_form_is_independent_of_the_order_of_names_and_has_no_nan() -> None:
    assert (
        canonical_json({"b": 1, "a": {"d": [], "c": "ü"}})
        == '{"a":{"c":"ü","d":[]},"b":1}'.encode()
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})

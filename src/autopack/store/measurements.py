"""Outcomes of CI's command that are kept, by the hash of what they depend on."""

from __future__ import annotations

import json
import zlib
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..models import Measurement

# What a machine has installed can change in ways that the key does not see.
KEPT: Final = timedelta(days=7)


def find(session: Session, key: str, now: datetime) -> dict[str, Any] | None:
    """Return the outcome of this key, unless it is too old."""
    query = select(Measurement.compressed).where(
        Measurement.key == key, Measurement.measured_at > now - KEPT
    )
    content = session.scalars(query).one_or_none()
    if content is None:
        return None
    document: dict[str, Any] = json.loads(zlib.decompress(content))
    return document


def keep(session: Session, key: str, document: dict[str, Any], now: datetime) -> None:
    """Keep an outcome, and remove those that are too old."""
    session.execute(delete(Measurement).where(Measurement.measured_at <= now - KEPT))
    content = zlib.compress(json.dumps(document, separators=(",", ":")).encode())
    statement = insert(Measurement).values(key=key, compressed=content, measured_at=now)
    update = {"compressed": content, "measured_at": now}
    session.execute(statement.on_conflict_do_update(index_elements=["key"], set_=update))

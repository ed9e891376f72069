"""What every use case works with; `main.py` puts it together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ..config import Settings
from ..gitrepo import Repository
from ..jobs.workers import Bell
from ..mirror import Mirror


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class House:
    settings: Settings
    engine: Engine
    repository: Repository
    mirror: Mirror
    now: Callable[[], datetime] = utc_now
    push_bell: Bell = field(default_factory=Bell)  # rung when a branch is to be pushed

    def reading(self) -> Session:
        """Open a session for a use case that changes nothing."""
        return Session(self.engine, expire_on_commit=False)

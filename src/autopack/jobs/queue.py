"""Work that is queued by the very transaction that makes it necessary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

# Not by the engine's own function, which has no ON CONFLICT: a job that is queued already would
# end the transaction. And to leave such a job alone would not do: a worker might take it, and look
# before our change is there to be seen. To touch it keeps it locked until we commit, and workers
# skip what is locked.
_DEFER: Final = text("""
    INSERT INTO procrastinate_jobs AS queued
        (task_name, queue_name, args, lock, queueing_lock, scheduled_at)
    VALUES (:task, :queue, CAST(:arguments AS jsonb), :lock, :queueing_lock, :at)
    ON CONFLICT (queueing_lock) WHERE status = 'todo' DO UPDATE SET scheduled_at =
        CASE WHEN EXCLUDED.scheduled_at < queued.scheduled_at THEN EXCLUDED.scheduled_at
             WHEN EXCLUDED.scheduled_at IS NOT NULL THEN queued.scheduled_at END
""")

_SILENCE: Final = text(
    "SELECT extract(epoch FROM now() - max(last_heartbeat)) FROM procrastinate_workers"
)


class TryAgainError(Exception):
    """A job was stopped, as its process ends: it is to be done again at once, elsewhere."""


def defer(
    session: Session,
    task: str,
    *,
    queue: str,
    arguments: Mapping[str, object],
    lock: str | None = None,
    queueing_lock: str | None = None,
    at: datetime | None = None,
) -> None:
    """Queue a job, which is done once the session's transaction is committed, or never.

    Of jobs with one `lock` one runs at a time. Of jobs with one `queueing_lock` one waits at a
    time: another is that one again, due at the earlier time of both. One statement.
    """
    session.connection().execute(
        _DEFER,
        {
            "task": task,
            "queue": queue,
            "arguments": json.dumps(arguments),
            "lock": lock,
            "queueing_lock": queueing_lock,
            "at": at,
        },
    )


def workers_silence(session: Session) -> float | None:
    """Return how many seconds ago any worker anywhere was alive; None: there is none."""
    seconds = session.connection().scalar(_SILENCE)
    return None if seconds is None else float(seconds)

"""Jobs that are queued in the transaction that needs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

# The engine's own function has no ON CONFLICT, so a job that is queued already would abort the
# transaction. DO NOTHING would be wrong: a worker could take the queued job and read the rows
# before this transaction commits. The update locks the job until the commit, and workers skip
# locked jobs.
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
    """A job was stopped because its process ends: another process must do it again at once."""


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
    """Queue a job; it runs after the session's transaction commits, and never if it rolls back.

    Of jobs with one `lock` one runs at a time. Of jobs with one `queueing_lock` one waits at a
    time: a further job is merged into it, due at the earlier time of both. One statement.
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
    """Return the seconds since the last sign of life of any worker; None without workers."""
    seconds = session.connection().scalar(_SILENCE)
    return None if seconds is None else float(seconds)

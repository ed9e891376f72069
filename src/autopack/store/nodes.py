"""The nodes of this database: who they are, and what the branches and files of each show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Float,
    Row,
    Text,
    column,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..advisory_locks import NODE, REGISTRATION, SERVING
from ..models import EventRow, Node, NodeRun, Run
from .session import RowSession

_GUARD: Final = f"SELECT pg_advisory_xact_lock({REGISTRATION.number})"
_TRY_ALONE = text(f"SELECT pg_try_advisory_xact_lock({SERVING.number})")
_SHARE = text(f"SELECT pg_advisory_lock_shared({SERVING.number})")
_LEAVE = text("SELECT pg_advisory_unlock_all()")
_TURN: Final = f"SELECT pg_try_advisory_xact_lock({NODE.number('%s')})"
# More events than are read at once; what a node lacks of them is counted up to here.
EVENTS_COUNTED: Final = 10_000
# A node without a sign of life for so long counts as stopped, and leaves the list after the other.
ALIVE_SECONDS: Final = 20
KEPT_DAYS: Final = 7
_RULESET: Final = "SELECT ruleset_sha256 FROM nodes WHERE id = %s"
_INSERT_CHECKPOINT: Final = (
    "INSERT INTO node_runs (run_pk, node_id, revision, event_sequence)"
    " SELECT %s, id, %s, %s FROM nodes WHERE id = %s"  # none, if the node was removed just now
    " ON CONFLICT (run_pk, node_id) DO UPDATE"
    " SET revision = greatest(node_runs.revision, excluded.revision),"
    " event_sequence = greatest(node_runs.event_sequence, excluded.event_sequence), lacks = NULL"
)


# Who serves


@dataclass(frozen=True, slots=True)
class Served:
    """The one repository of a database's runs (models/nodes.py), and whether it has any."""

    place: str
    root_commits: list[str]
    has_runs: bool


def lock_repository(session: RowSession) -> Served | None:
    """Return the served repository; no other node registers until the end of the transaction."""
    session.gather(_GUARD)
    found = session.fetch(
        "SELECT place, root_commits, EXISTS (SELECT FROM runs) FROM served_repository"
    )
    return Served(*found[0]) if found else None


def put_repository(session: RowSession, *, place: str, root_commits: list[str]) -> None:
    """Set the repository that the database belongs to."""
    session.gather(
        "INSERT INTO served_repository (id, place, root_commits, since) VALUES (1, %s, %s, now())"
        " ON CONFLICT (id) DO UPDATE SET place = excluded.place,"
        " root_commits = excluded.root_commits, since = excluded.since",
        (place, root_commits),
    )


def is_served(session: Session, *, is_kept: bool = False) -> bool:
    """Return whether another connection holds the lock of services.

    If none does, none gets it until the end of the transaction, which may be long if it `is_kept`.
    """
    if is_kept:
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    return not session.scalars(_TRY_ALONE).one()


def share(session: Session) -> None:
    """Take the lock of services, until this connection ends or `leave`.

    A killed process holds none; a stopped one (SIGSTOP) still does.
    """
    session.execute(_SHARE)


def leave(session: Session) -> None:
    """Release the lock of services, on a connection that holds no other lock."""
    session.execute(_LEAVE)


def find_generation(session: RowSession, node_id: str) -> str | None:
    """Return the generation of a node; None for one that is not in the list."""
    return _text(session.fetch("SELECT generation FROM nodes WHERE id = %s", (node_id,)))


def put_node(
    session: RowSession,
    node_id: str,
    *,
    place: str,
    address: str | None,
    version: str,
    generation: str,
) -> None:
    """Add a node, or describe its newest process. A job process leaves a service's address."""
    session.gather(
        "INSERT INTO nodes"
        " (id, place, address, version, generation, started_at, heartbeat_at, position)"
        " VALUES (%s, %s, %s, %s, %s, now(), now(), 0)"  # a new node has to look at every run
        " ON CONFLICT (id) DO UPDATE SET place = excluded.place, version = excluded.version,"
        " address = coalesce(excluded.address, nodes.address), generation = excluded.generation,"
        " started_at = excluded.started_at, heartbeat_at = excluded.heartbeat_at",
        (node_id, place, address, version, generation),
    )


def note_alive(session: RowSession, node_id: str) -> str | None:
    """Record a sign of life, and return the node's generation; None if it is not in the list."""
    statement = "UPDATE nodes SET heartbeat_at = now() WHERE id = %s RETURNING generation"
    return _text(session.fetch(statement, (node_id,)))


def has_others(session: RowSession, node_id: str, *, alive_seconds: float) -> bool:
    """Return whether another node gave a sign of life within so many seconds."""
    query = (
        "SELECT FROM nodes WHERE id <> %s AND heartbeat_at >= now() - make_interval(secs => %s)"
        " LIMIT 1"
    )
    return bool(session.fetch(query, (node_id, alive_seconds)))


def lock_node(session: Session, node_id: str) -> NodeState | None:
    """Return a node, whose signs of life wait until the end of the transaction; None: unknown."""
    # By a statement of its own, so that the next one sees what was committed while this one waited.
    # A change that keeps this node's checkpoint has its run, and must not wait for it.
    locked = select(Node.id).where(Node.id == node_id).with_for_update(key_share=True)
    found = session.scalars(locked)
    if found.one_or_none() is None:
        return None
    return next(node for node in list_nodes(session) if node.id == node_id)


def remove_node(session: Session, node_id: str) -> None:
    """Remove a node with all that the database notes of its branches and files."""
    _remove_marks(session, [node_id])
    session.execute(delete(Node).where(Node.id == node_id))


def remove_silent(session: RowSession) -> list[str]:
    """Remove the nodes without a sign of life for days; return their places."""
    silent = session.fetch(
        "SELECT id, place FROM nodes WHERE heartbeat_at < now() - make_interval(days => %s)"
        " FOR NO KEY UPDATE SKIP LOCKED",
        (KEPT_DAYS,),
    )
    if silent:
        node_ids = [node_id for node_id, _ in silent]
        _remove_marks(session, node_ids)
        session.execute(delete(Node).where(Node.id.in_(node_ids)))
    return [place for _, place in silent]


def _remove_marks(session: Session, node_ids: Sequence[str]) -> None:
    """Remove the checkpoints of nodes on the rows of runs; those beside them go with the nodes.

    With a node its generation goes, by which an old backup of its home would be found
    (services/nodes.py). So a node that comes back must trust no checkpoint. No run
    counts as lagging because of a node that is gone: the others show it by their own checkpoints.
    """
    theirs = update(Run).where(Run.mirrored_by.in_(node_ids))
    theirs = theirs.values(mirrored_by=None, mirrored_revision=Run.revision)
    session.execute(theirs.execution_options(synchronize_session=False))


def distrust(session: Session, node_id: str) -> None:
    """Forget all that a node shows, so that it is all brought up to date again."""
    mine = update(Run).where(Run.mirrored_by == node_id).values(mirrored_revision=0)
    session.execute(mine.execution_options(synchronize_session=False))
    session.execute(delete(NodeRun).where(NodeRun.node_id == node_id))
    everything = {"position": 0, "unseen_before": None}
    session.execute(update(Node).where(Node.id == node_id).values(everything))


def find_ruleset(session: RowSession, node_id: str) -> str | None:
    """Return the SHA-256 of the version that a node's ruleset file is of, if it is known."""
    return _text(session.fetch(_RULESET, (node_id,)))


def lock_ruleset(session: RowSession, node_id: str) -> str | None:
    """Return what `find_ruleset` does; no other process sets it until the transaction ends."""
    return _text(session.fetch(f"{_RULESET} FOR NO KEY UPDATE", (node_id,)))


def set_ruleset(session: RowSession, node_id: str, sha256: str) -> None:
    session.gather("UPDATE nodes SET ruleset_sha256 = %s WHERE id = %s", (sha256, node_id))


def try_turn(session: RowSession, node_id: str) -> bool:
    """Try to get the lock of a node's background work, until the end of the transaction."""
    ((has_turn,),) = session.fetch(_TURN, (NODE.text_of(node_id),))
    return bool(has_turn)


def _text(found: Sequence[tuple[str | None, ...]]) -> str | None:
    """Return the one value of a row; None without a row."""
    return found[0][0] if found else None


# What the branch and files of a run show


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where branch and files of a node show a run: its state at a revision, 0 for none.

    `event_sequence` is the run's last event then, or an earlier one. None: it is not known, or a
    change by this node has not reached its branch or files.
    """

    revision: int
    event_sequence: int | None = None


def find_checkpoint(session: RowSession, run: Run, node_id: str) -> Checkpoint:
    """Return up to where a node shows a run. No statement for a run that this node changed last."""
    if run.mirrored_by == node_id:
        return Checkpoint(run.mirrored_revision)
    query = "SELECT revision, event_sequence FROM node_runs WHERE run_pk = %s AND node_id = %s"
    found = session.fetch(query, (run.id, node_id))
    return Checkpoint(*found[0]) if found else Checkpoint(0)


def reach_checkpoint(session: RowSession, run: Run, node_id: str) -> None:
    """Record that a node shows a run that another one changed last. (`runs.mark_mirrored`)"""
    # If it is lost, branch and files are brought up to date once more.
    values = (run.id, run.revision, run.event_sequence, node_id)
    session.gather_unsynced((_INSERT_CHECKPOINT, values))


def keep_checkpoint(session: RowSession, run: Run, checkpoint: Checkpoint) -> None:
    """Keep the checkpoint that is on the run's row, before another node's replaces it.

    So that node writes only what changes from here on. It is part of the change.
    """
    values = (run.id, checkpoint.revision, checkpoint.event_sequence, run.mirrored_by)
    session.gather(_INSERT_CHECKPOINT, values)


_MARK_REMOVED: Final = (
    "UPDATE runs SET mirrored_revision = revision"
    " WHERE id = ANY(%s) AND mirrored_by = %s AND details_removed_at IS NOT NULL",
    "INSERT INTO node_runs (run_pk, node_id, revision)"
    " SELECT r.id, n.id, r.revision FROM runs r JOIN nodes n ON n.id = %s"
    " WHERE r.id = ANY(%s) AND r.mirrored_by IS DISTINCT FROM n.id"
    " AND r.details_removed_at IS NOT NULL"
    " ON CONFLICT (run_pk, node_id) DO UPDATE SET revision = excluded.revision, lacks = NULL",
)


def mark_removed(session: RowSession, run_pks: Sequence[int], node_id: str) -> None:
    """Record that a node shows the summaries of runs whose details were removed.

    Nothing changes such a run any more, so it takes no lock.
    """
    own, others = _MARK_REMOVED
    session.gather(own, (list(run_pks), node_id))
    session.gather(others, (node_id, list(run_pks)))
    session.send()


def note_lack(session: Session, run_id: str, node_id: str, why: str) -> None:
    """Record why a node cannot show the last revision of a run."""
    run_pk = select(Run.id).where(Run.run_id == run_id).scalar_subquery()
    statement = insert(NodeRun).values(run_pk=run_pk, node_id=node_id, revision=0, lacks=why)
    session.execute(
        statement.on_conflict_do_update(index_elements=["run_pk", "node_id"], set_={"lacks": why})
    )


_FORGET: Final = text("""
    INSERT INTO node_runs (run_pk, node_id, revision, lacks)
    SELECT r.id, n.id, 0, :why FROM runs r JOIN nodes n ON n.id = :node
    WHERE r.run_id = ANY(:names) AND r.mirrored_by IS DISTINCT FROM n.id
    ON CONFLICT (run_pk, node_id) DO UPDATE
        SET revision = 0, event_sequence = NULL, lacks = excluded.lacks
""")


def reset_checkpoints(session: Session, run_ids: Sequence[str], node_id: str, why: str) -> None:
    """Mark runs so that a node brings their branches and files up to date again."""
    chosen = Run.run_id.in_(run_ids)
    mine = update(Run).where(chosen, Run.mirrored_by == node_id).values(mirrored_revision=0)
    session.execute(mine.execution_options(synchronize_session=False))
    # Of runs that this node changed last, an earlier checkpoint; another node may change them next.
    pks = select(Run.id).where(chosen, Run.mirrored_by == node_id)
    earlier = update(NodeRun).where(NodeRun.node_id == node_id, NodeRun.run_pk.in_(pks))
    earlier = earlier.values(revision=0, event_sequence=None)
    session.execute(earlier.execution_options(synchronize_session=False))
    session.execute(_FORGET, {"node": node_id, "why": why, "names": list(run_ids)})


# Following the other nodes


@dataclass(frozen=True, slots=True)
class Followed:
    """Up to where a node has followed the changes of others (models/nodes.py)."""

    position: int
    unseen_before: int | None

    @property
    def is_catching_up(self) -> bool:
        return self.position == 0 or self.unseen_before is not None


def get_followed(session: RowSession, node_id: str) -> Followed:
    """Return up to where a node has followed; for an unknown one, that of a new node."""
    found = session.fetch("SELECT position, unseen_before FROM nodes WHERE id = %s", (node_id,))
    return Followed(*found[0]) if found else Followed(0, None)


def set_followed(session: RowSession, node_id: str, followed: Followed) -> None:
    """Note up to where a node has followed, by a transaction of its own."""
    # If it is lost, the same runs are looked at again.
    query = "UPDATE nodes SET position = %s, unseen_before = %s WHERE id = %s"
    values = (followed.position, followed.unseen_before, node_id)
    session.gather_unsynced((query, values))
    session.send()


def next_run_pk(session: RowSession) -> int:
    """Return an id that is above those of all runs so far."""
    ((found,),) = session.fetch("SELECT coalesce(max(id), 0) + 1 FROM runs")
    return int(found)


def list_unseen(
    session: Session, node_id: str, *, before: int, is_live: bool, limit: int
) -> list[tuple[int, str]]:
    """Return runs below an id that others changed last and this node does not show, newest first.

    Not those that it could not bring up to date. `is_live`: only those that are not over.
    """
    query = (
        select(Run.id, Run.run_id)
        .outerjoin(NodeRun, (NodeRun.run_pk == Run.id) & (NodeRun.node_id == node_id))
        .where(Run.id < before, Run.mirrored_by.is_distinct_from(node_id), _BEHIND)
        .where(NodeRun.lacks.is_(None))
        .order_by(Run.id.desc())
        .limit(limit)
    )
    if is_live:
        query = query.where(Run.ended_at.is_(None))
    return [(run_pk, run_id) for run_pk, run_id in session.execute(query)]


def list_behind(session: Session, node_id: str, *, after: int, up_to: int) -> list[str]:
    """Return the runs with events in a span that others changed last, and this node does not show.

    The newest first, after live ones.
    """
    touched = (
        select(EventRow.run_pk).where(EventRow.id > after, EventRow.id <= up_to).distinct()
    ).subquery()
    query = (
        select(Run.run_id)
        .join(touched, touched.c.run_pk == Run.id)
        .outerjoin(NodeRun, (NodeRun.run_pk == Run.id) & (NodeRun.node_id == node_id))
        .where(Run.mirrored_by.is_distinct_from(node_id), _BEHIND)
        .order_by(Run.ended_at.is_(None).desc(), Run.id.desc())
    )
    return list(session.scalars(query))


def list_lacking(session: Session, node_id: str, limit: int) -> list[tuple[str, str]]:
    """Return runs that a node could not bring up to date, and why, in any order."""
    query = (
        select(Run.run_id, NodeRun.lacks)
        .join(Run, Run.id == NodeRun.run_pk)
        .where(NodeRun.node_id == node_id, NodeRun.lacks.is_not(None))
        .order_by(func.random())
        .limit(limit)
    )
    return [(run_id, lacks or "") for run_id, lacks in session.execute(query)]


_BEHIND = func.coalesce(NodeRun.revision, 0) < Run.revision


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as the others see it. Counts end at EVENTS_COUNTED events."""

    id: str
    place: str
    address: str | None
    version: str
    started_at: datetime
    heartbeat_at: datetime
    silent_seconds: float
    lag_runs: int
    lag_revisions: int
    lag_seconds: float
    unseen_runs: int
    lacking_runs: int
    lacks: list[str]


STATES: Final = text("""
    SELECT n.id, n.place, n.address, n.version, n.started_at, n.heartbeat_at,
        extract(epoch FROM now() - n.heartbeat_at)::float AS silent_seconds,
        coalesce(b.runs, 0) AS lag_runs, coalesce(b.revisions, 0)::bigint AS lag_revisions,
        coalesce(extract(epoch FROM now() - b.since), 0)::float AS lag_seconds,
        (SELECT count(*) FROM (
            SELECT FROM runs WHERE n.position = 0 OR id < n.unseen_before LIMIT :counted
        ) unseen) AS unseen_runs,
        coalesce(l.runs, 0) AS lacking_runs, coalesce(l.lacks, '{}') AS lacks
    FROM nodes n
    LEFT JOIN LATERAL (
        SELECT count(*) AS runs, sum(r.revision - coalesce(s.revision, 0)) AS revisions,
            min(e.at) AS since
        FROM (
            SELECT run_pk, min(at) AS at FROM (
                SELECT run_pk, at FROM events WHERE n.position > 0 AND id > n.position
                ORDER BY id LIMIT :counted
            ) latest GROUP BY run_pk
        ) e
        JOIN runs r ON r.id = e.run_pk
        LEFT JOIN node_runs s ON s.run_pk = r.id AND s.node_id = n.id
        WHERE r.mirrored_by IS DISTINCT FROM n.id AND coalesce(s.revision, 0) < r.revision
            AND s.lacks IS NULL
    ) b ON true
    LEFT JOIN LATERAL (
        SELECT count(*) AS runs,
            (array_agg(r.run_id || ': ' || s.lacks ORDER BY s.run_pk))[1:5] AS lacks
        FROM node_runs s JOIN runs r ON r.id = s.run_pk
        WHERE s.node_id = n.id AND s.lacks IS NOT NULL
    ) l ON true
    ORDER BY n.started_at, n.id
""").columns(
    column("id", Text),
    column("place", Text),
    column("address", Text),
    column("version", Text),
    column("started_at", DateTime(timezone=True)),
    column("heartbeat_at", DateTime(timezone=True)),
    column("silent_seconds", Float),
    column("lag_runs", BigInteger),
    column("lag_revisions", BigInteger),
    column("lag_seconds", Float),
    column("unseen_runs", BigInteger),
    column("lacking_runs", BigInteger),
    column("lacks", ARRAY(Text)),
)


def list_nodes(session: Session) -> list[NodeState]:
    """Return all nodes with how far each is behind the others' changes."""
    rows: Any = session.execute(STATES, {"counted": EVENTS_COUNTED})
    return [_state(row) for row in rows]


def _state(row: Row[Any]) -> NodeState:
    return NodeState(**row._mapping)

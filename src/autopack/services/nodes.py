"""This process as a part of a node, and the nodes of this database.

A node is one clone with one home and one runs directory, and all processes that share them. Any
number of nodes may serve a database if their clones are of one repository. (docs/replicas.md)
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import replace
from select import select
from socket import socketpair
from threading import Event, Thread
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from .. import __version__
from ..domain.audit_log import AuditAction
from ..domain.errors import ConflictError, NotFoundError
from ..gitrepo import Generations, NodeIdentity, Repository, renew_home
from ..store import nodes
from ..store.feed import Listener
from ..store.nodes import ALIVE_SECONDS, NodeState, Served
from ..views.service import NodeAnswer
from .audit_log import note
from .availability import OUTAGES
from .context import AppContext
from .following import follow_events
from .upkeep import tend_node

logger = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5  # between two looks of a process after its node
# A burst of changes is followed together, so that followers do not hold a run again and again. The
# pause grows with what the last look cost, so that following takes a quarter of the time at most,
# but files are never more than about a second behind.
GATHERING_SECONDS: Final = 0.2
GATHERING_SHARE: Final = 3
MOST_GATHERING_SECONDS: Final = 1.0


class ServedElsewhereError(ConflictError):
    """The database has runs of another repository."""

    code = "served_elsewhere"


class NodeAliveError(ConflictError):
    """A process of the node still works."""

    code = "node_alive"


def require_history(context: AppContext) -> None:
    """Check that the database's runs are of this repository. Raises ServedElsewhereError."""
    with context.writing() as session:
        known = nodes.lock_repository(session)
        if known is not None and known.has_runs:
            _require_shared_history(known, context.repository)


def register(context: AppContext, address: str | None = None) -> AppContext:
    """Add this process to its node, and return the context with the node's id.

    A home that is an old backup, or of which a copy was started since, becomes a new node: what the
    database knows of the old node is not true for these folders. Raises ServedElsewhereError.
    """
    repository = context.repository
    with context.autocommitting() as session:
        session.begin_change()
        known = nodes.lock_repository(session)
        mine = repository.node_identity()
        if known is not None and known.has_runs:
            _require_shared_history(known, repository)
        else:
            roots = list(repository.root_commits())
            nodes.put_repository(session, place=mine.place, root_commits=roots)
        generation = nodes.find_generation(session, mine.node_id)
        if generation is not None and not mine.generations().has(generation):
            was, mine = mine, _renewed(context)
            logger.warning("node_renewed", was=was.node_id, now=mine.node_id, place=mine.place)
            generation = None
        fresh = uuid.uuid4().hex
        mine.put(Generations(before=generation or "", last=fresh))
        nodes.put_node(
            session,
            mine.node_id,
            place=mine.place,
            address=address,
            version=__version__,
            generation=fresh,
        )
        session.commit()
    return replace(context, node_id=mine.node_id)


def _renewed(context: AppContext) -> NodeIdentity:
    renew_home(context.settings.home)
    return context.repository.node_identity()


def _require_shared_history(known: Served, repository: Repository) -> None:
    roots = repository.root_commits()
    is_comparable = roots and known.root_commits  # a shallow clone has none
    if is_comparable and not {*roots} & {*known.root_commits}:
        raise ServedElsewhereError(
            f"the database has runs of the repository at {known.place} (first commit"
            f" {known.root_commits[0]}); {repository.node_identity().place} (first commit"
            f" {roots[0]}) shares no history with it. Set DATABASE_URL to a database of this"
            " repository's own."
        )


def list_nodes(context: AppContext) -> list[NodeAnswer]:
    """Return all nodes of this database, in the order of their starts."""
    with context.reading() as session:
        return [_answer(context, node) for node in nodes.list_nodes(session)]


def remove_node(context: AppContext, node_id: str) -> NodeAnswer:
    """Remove a node that is gone. Raises NotFoundError, NodeAliveError.

    If one of its processes starts again, the node comes back, and brings all runs up to date.
    """
    with context.writing() as session:
        node = nodes.lock_node(session, node_id)
        if node is None:
            raise NotFoundError(f"there is no node '{node_id}'; GET /nodes lists all of them")
        answer = _answer(context, node)
        if answer.is_alive:
            raise NodeAliveError(
                f"node '{node_id}' at {node.place} is alive: it gave a sign of life"
                f" {max(node.silent_seconds, 0):.0f} seconds ago. Stop its processes; it may be"
                f" removed after {ALIVE_SECONDS} seconds without one."
            )
        note(session, context, AuditAction.NODE_REMOVED, node_id, {"place": node.place})
        nodes.remove_node(session, node_id)
        session.commit()
    return answer


def _answer(context: AppContext, node: NodeState) -> NodeAnswer:
    return NodeAnswer.of(
        node,
        is_alive=node.silent_seconds <= ALIVE_SECONDS,
        is_this=node.id == context.node_id,
        lag_seconds=round(node.lag_seconds, 3),
    )


class NodeMember:
    """This process as a member of its node, until it is closed: signs of life, and the follower."""

    def __init__(self, context: AppContext, address: str | None = None) -> None:
        """Register. Raises ServedElsewhereError."""
        self._address = address
        self._is_over = Event()
        self.context: Final = register(context, address)
        self._connection = self._take()
        self._follower: Follower | None = None
        self._try_to_look()
        self._thread = Thread(target=self._keep_looking, name="node", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        if self._follower is not None:
            self._follower.close()
        with suppress(DBAPIError), Session(self._connection) as session:
            nodes.leave(session)
            session.commit()
        self._connection.close()

    def _take(self) -> Connection:
        """Hold the lock of services on a connection of its own, so that no restore begins."""
        connection = self.context.engine.connect()
        try:
            with Session(connection) as session:
                nodes.share(session)
                session.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_held(self) -> bool:
        held = self._connection.connection.dbapi_connection
        dialect = self._connection.dialect
        try:
            return held is not None and dialect.do_ping(held)
        except dialect.loaded_dbapi.Error:
            return False

    def _keep_looking(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self._try_to_look()

    def _try_to_look(self) -> None:
        with suppress(DBAPIError, PoolTimeoutError, OSError):  # Postgres or disk will be back
            self.look()

    def look(self) -> None:
        """Give a sign of life, look for a copy of this home, and follow other nodes if any."""
        context = self.context
        if not self._is_held():  # after an outage of Postgres
            connection = self._take()
            self._connection.invalidate()
            self._connection.close()
            self._connection = connection
        with context.autocommitting() as session:
            generation = nodes.note_alive(session, context.node_id)
            has_others = nodes.has_others(session, context.node_id, alive_seconds=ALIVE_SECONDS)
        if generation is None:  # it was removed from the list while it seemed to be gone
            register(context, self._address)
        elif not context.repository.node_identity().generations().has(generation):
            self._look_for_copy()
        if has_others and self._follower is None and not self._is_over.is_set():
            self._follower = Follower(context)

    def _look_for_copy(self) -> None:
        """Stop answering if another service has started with a copy of this home.

        Under the lock of registrations, as a process of this home may be starting right now.
        """
        context = self.context
        identity = context.repository.node_identity()
        with context.writing() as session:
            nodes.lock_repository(session)
            generation = nodes.find_generation(session, context.node_id)
            is_same = identity.node_id == context.node_id
            if generation is None or (is_same and identity.generations().has(generation)):
                return
            if not context.superseded.is_set():
                logger.error("home_was_copied", node=context.node_id, place=identity.place)
                nodes.distrust(session, context.node_id)  # each changed what the other must show
                session.commit()
        context.superseded.set()


class Follower:
    """A thread that follows the changes of other nodes as soon as Postgres tells of them."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._is_over = Event()
        self._wake, self._woken = socketpair()
        self._thread = Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._listen()
            except OUTAGES as error:
                logger.warning("follower_interrupted", why=type(error).__name__)
            except Exception:  # without it the files of this node would stay behind
                logger.exception("follower_failed")
            self._is_over.wait(1)

    def _listen(self) -> None:
        listener = Listener(self._context.engine)
        try:
            while not self._is_over.is_set():
                if not tend_node(self._context):
                    self._follow_for(listener)
        finally:
            listener.close()

    def _follow_for(self, listener: Listener) -> None:
        """Follow each notification, until it is time to look after the whole node again."""
        pause = GATHERING_SECONDS
        end = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < end:
            if not listener.has_heard():
                select([listener.file_number, self._woken.fileno()], [], [], LOOK_SECONDS)
                if not listener.has_heard():
                    return
            if self._is_over.wait(pause):
                return
            listener.has_heard()  # what came meanwhile is followed now
            began = time.monotonic()
            with self._context.writing() as session:
                if nodes.try_turn(session, self._context.node_id):
                    follow_events(self._context)
            took = time.monotonic() - began
            pause = min(max(GATHERING_SECONDS, took * GATHERING_SHARE), MOST_GATHERING_SECONDS)

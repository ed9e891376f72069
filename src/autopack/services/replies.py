"""The same request sent twice has one effect: its first answer is returned again. (rules §5)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from ..domain.errors import AutopackError, ErrorKind, InvalidError
from ..domain.events import canonical_json
from ..models import Reply
from ..models.work import OF_ALL_RUNS
from ..store import replies
from ..store.leases import hash_token
from ..store.session import RowSession
from ..views import Shape
from .change import RunChange
from .context import AppContext
from .opening import changing_locked, locked_session

_KEY: Final = "key:"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a use case, and whether it is new."""

    body: dict[str, Any]
    is_repeat: bool = False


class IdempotencyKeyReusedError(InvalidError):
    code = "idempotency_key_reused"


@dataclass(frozen=True, slots=True)
class Once:
    """A request's identity: the scopes of its answer, and the hash of its content.

    Only the first scope decides whether the request was sent before: a new key, or a new lease, is
    a new request, even with an equal body. Answers are stored in every scope, so that a request
    sent again without its key is still recognized by its lease or by its body.
    """

    scopes: tuple[str, ...]
    fingerprint: str

    def find(self, change: RunChange) -> Answer | None:
        """Return the stored answer. Raises the stored refusal.

        Raises IdempotencyKeyReusedError for a known key with another request.
        """
        if not self.scopes:
            return None
        reply = replies.find_reply(change.session, change.run.id, self.scopes[0])
        if reply is None:
            return None
        if reply.fingerprint == self.fingerprint:
            return _given_before(reply)
        if self._key is not None:
            raise IdempotencyKeyReusedError(
                f"Idempotency-Key '{self._key}' was used for another request of run "
                f"'{change.run.run_id}'; take a new key for a new request"
            )
        return None

    @contextmanager
    def keeping_refusals(self, change: RunChange) -> Iterator[None]:
        """Store a refusal under the request's key, although the refused request changes nothing.

        Without this, the same key would get one answer now and another one later, after a change of
        lease or state. A 503 is not stored: the request may succeed later.
        """
        run_pk, now = change.run.id, change.now  # a rollback drops them
        try:
            yield
        except AutopackError as refusal:
            is_answer = refusal.kind is not ErrorKind.UNAVAILABLE
            is_known = refusal.is_repeat or isinstance(refusal, IdempotencyKeyReusedError)
            if self._key is not None and is_answer and not is_known:
                change.session.rollback()
                self._keep(change.session, run_pk, self.scopes[:1], refusal, now)
                change.session.commit()
            raise

    def keep(self, change: RunChange, answer: Mapping[str, Any] | AutopackError) -> None:
        """Store the answer in the transaction of its change."""
        self._keep(change.session, change.run.id, self.scopes, answer, change.now)

    @property
    def _key(self) -> str | None:
        first = self.scopes[0] if self.scopes else ""
        for kind in (_KEY, OF_ALL_RUNS):
            if first.startswith(kind):
                return first.removeprefix(kind)
        return None

    def _keep(
        self,
        session: RowSession,
        run_pk: int,
        scopes: Sequence[str],
        answer: Mapping[str, Any] | AutopackError,
        now: datetime,
    ) -> None:
        if not scopes:
            return
        if isinstance(answer, AutopackError):
            kind: str | None = answer.kind
            body = {"code": answer.code, "detail": answer.detail, "extra": dict(answer.extra)}
        else:
            kind, body = None, dict(answer)
        replies.keep_reply(
            session,
            run_pk,
            scopes,
            fingerprint=self.fingerprint,
            error_kind=kind,
            body=body,
            now=now,
        )


@dataclass(slots=True)
class Turn:
    """One request of a run: to be decided now (`is_new`), or answered as before."""

    change: RunChange
    _given: Answer | None
    _body: dict[str, Any] = field(default_factory=dict)
    _refusal: AutopackError | None = None
    _late: tuple[str, Callable[[RowSession], Shape | None]] | None = None

    @property
    def is_new(self) -> bool:
        return self._given is None

    def answer(self, view: Shape, *, late: str | None = None) -> None:
        """Set the answer, which is returned after the change is committed.

        `late` names a field that is not known before; `complete` says how to read it.
        """
        self._body = view.model_dump(mode="json", exclude={late} if late else None)

    def complete(self, late: str, read: Callable[[RowSession], Shape | None]) -> None:
        """Let a field be read after the commit, where the answer lacks it.

        So does an answer whose service was killed right after the commit: it was given to no
        client. The repeated request gets what is read then.
        """
        self._late = late, read

    def finish(self, session: RowSession, identity: Once) -> None:
        """Read the field that comes after the commit. The run is still locked."""
        body = self._given.body if self._given else self._body
        if self._refusal is not None or self._late is None or self._late[0] in body:
            return
        name, read = self._late
        shape = read(session)
        late = {name: shape and shape.model_dump(mode="json")}
        body.update(late)
        if identity.scopes:
            replies.complete_reply(session, self.change.run.id, identity.scopes, late)

    def refuse(self, refusal: AutopackError) -> None:
        """Commit the change, and then refuse the request: it has used a try."""
        self._refusal = refusal

    def result(self) -> Answer:
        """Return the answer, or raise the refusal; call it after the change is committed."""
        if self._refusal is not None:
            raise self._refusal
        return self._given or Answer(self._body)


@contextmanager
def changing_once(context: AppContext, run_id: str, identity: Once) -> Iterator[Turn]:
    """Open a change for a request that has one effect, even if it is sent several times.

    Its answer is stored in the transaction of the change. Raises a stored refusal.
    """
    with locked_session(context, run_id) as session:
        opened = changing_locked(context, session, run_id)
        with opened as change, identity.keeping_refusals(change):
            turn = Turn(change, identity.find(change))
            yield turn
            if turn.is_new:
                identity.keep(change, turn._refusal or turn._body)
        turn.finish(session, identity)


def once(operation: str, request: Mapping[str, Any], scopes: Sequence[str | None]) -> Once:
    """Identify a request by its content, with these scopes in order of precedence."""
    digest = hashlib.sha256(canonical_json([operation, request])).hexdigest()
    return Once(tuple(scope for scope in scopes if scope), digest)


def key_scope(idempotency_key: str | None) -> str | None:
    return f"{_KEY}{idempotency_key}" if idempotency_key else None


def key_scope_of_all_runs(idempotency_key: str | None) -> str | None:
    """Return the scope of a request that does not name its run. Keys of a run are apart from it."""
    return f"{OF_ALL_RUNS}{idempotency_key}" if idempotency_key else None


def lease_scope(token: str | None) -> str | None:
    """Return the scope of a lease. Its token is a secret, so the scope contains its hash."""
    return f"lease:{hash_token(token)}" if token else None


def _given_before(reply: Reply) -> Answer:
    if reply.error_kind is None:
        return Answer(reply.body, is_repeat=True)
    # A stored refusal has only kind and code; a new class gets these of the first one.
    recorded = type(
        "RecordedRefusalError",
        (AutopackError,),
        {"kind": ErrorKind(reply.error_kind), "code": reply.body["code"], "is_repeat": True},
    )
    raise recorded(reply.body["detail"], **reply.body["extra"])

"""The same request sent twice has one effect: its first answer is given again. (01)"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..domain.errors import AutopackError, ErrorKind, InvalidError
from ..domain.events import canonical_json
from ..models import Reply
from ..store import submissions
from ..store.leases import hash_token
from .change import RunChange


@dataclass(frozen=True, slots=True)
class Answer:
    """What a use case answers, and whether it was decided just now."""

    body: dict[str, Any]
    is_replay: bool = False


class IdempotencyKeyReusedError(InvalidError):
    code = "idempotency_key_reused"


@dataclass(frozen=True, slots=True)
class Once:
    """A request's identity: where its answer is kept, and the hash of what it asks."""

    scopes: tuple[str, ...]
    fingerprint: str

    def find(self, change: RunChange) -> Answer | None:
        """Return the answer given before. Raises the refusal given before.

        Raises IdempotencyKeyReusedError for a known key with another request.
        """
        if not self.scopes:
            return None
        known = submissions.find_reply(change.session, change.run.id, self.scopes)
        for scope in self.scopes:
            reply = known.get(scope)
            if reply is None:
                continue
            if reply.fingerprint == self.fingerprint:
                return _given_before(reply)
            if scope.startswith("key:"):
                raise IdempotencyKeyReusedError(
                    f"Idempotency-Key '{scope.removeprefix('key:')}' was used for another request "
                    f"of run '{change.run.run_id}'; take a new key for a new request"
                )
        return None

    def keep(self, change: RunChange, answer: Mapping[str, Any] | AutopackError) -> None:
        """Keep the answer in the transaction that it speaks of."""
        if not self.scopes:
            return
        if isinstance(answer, AutopackError):
            kind: str | None = answer.kind
            body = {"code": answer.code, "detail": answer.detail, "extra": dict(answer.extra)}
        else:
            kind, body = None, dict(answer)
        submissions.keep_reply(
            change.session,
            change.run.id,
            self.scopes,
            fingerprint=self.fingerprint,
            error_kind=kind,
            body=body,
            now=change.now,
        )


def once(operation: str, request: Mapping[str, Any], scopes: Sequence[str | None]) -> Once:
    """Identify a request by what it asks, kept in the scopes that are given, first one first."""
    digest = hashlib.sha256(canonical_json([operation, request])).hexdigest()
    return Once(tuple(scope for scope in scopes if scope), digest)


def key_scope(idempotency_key: str | None) -> str | None:
    return f"key:{idempotency_key}" if idempotency_key else None


def lease_scope(token: str | None) -> str | None:
    """A lease is used once; its token is a secret, so its hash stands for it."""
    return f"lease:{hash_token(token)}" if token else None


def _given_before(reply: Reply) -> Answer:
    if reply.error_kind is None:
        return Answer(reply.body, is_replay=True)
    # A refusal is known by its kind and code alone; a class of its own carries those of the first.
    recorded = type(
        "RecordedRefusalError",
        (AutopackError,),
        {"kind": ErrorKind(reply.error_kind), "code": reply.body["code"], "is_replay": True},
    )
    raise recorded(reply.body["detail"], **reply.body["extra"])

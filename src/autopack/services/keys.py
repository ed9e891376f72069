"""API keys: make, list, revoke, rotate, and tell who calls by one. (docs/security.md)"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import Final, Literal

from ..domain.access import AccessRole, Caller, WrongProjectError
from ..domain.audit_log import AuditAction
from ..domain.errors import ConflictError, ForbiddenError
from ..domain.keys import ROTATION_OVERLAP, SESSION_LIFETIME, NewKey, digest_of, make_key
from ..domain.limits import CallerLimits
from ..models import ApiKey, BrowserSession
from ..store import keys
from ..store.session import RowSession
from ..views.keys import KeyAnswer, SecretKeyAnswer
from .audit_log import note
from .context import AppContext

# A key that another process revoked is answered for so long at most.
CACHE_SECONDS: Final = 10.0
MAX_CACHED: Final = 10_000
USE_SECONDS: Final = 60


class KeyNameTakenError(ConflictError):
    code = "key_name_taken"


class KeyRevokedError(ConflictError):
    code = "key_revoked"


class KeyNeededError(ForbiddenError):
    code = "key_needed"


def require_key(context: AppContext) -> None:
    """Refuse a caller without a key, which could make itself one. Raises KeyNeededError."""
    if context.caller.key is None:
        raise KeyNeededError(
            "keys are managed over HTTP by an operator's key alone; without one, "
            "`autopack keys` does it beside the database"
        )


def create_key(context: AppContext, wanted: NewKey) -> SecretKeyAnswer:
    """Make a key and tell its secret, this once. Raises KeyNameTakenError, WrongProjectError."""
    served = context.settings.project_id
    if wanted.project_id not in (None, served):
        raise WrongProjectError(
            f"project '{wanted.project_id}' is not the one that is served here: '{served}'; keys of"
            " another project are made below /projects/, or by `autopack keys create --project`"
        )
    # A key that no project is named for is for all of them: only the default one has such keys.
    project_id = wanted.project_id or context.caller.project_id
    if not context.is_default:
        project_id = served
    secret, now = make_key(), context.now()
    roles = [role for role in AccessRole if role in wanted.roles]
    with context.writing() as session:
        limits = wanted.limits.model_dump(exclude_none=True)
        data = {"roles": roles, "project_id": project_id, "limits": limits}
        if wanted.expires_at is not None:
            data["expires_at"] = wanted.expires_at.isoformat()
        note(session, context, AuditAction.KEY_CREATED, wanted.name, data)
        # Under the log's lock, so that no other process takes the name meanwhile.
        if keys.has_name(session, wanted.name):
            raise KeyNameTakenError(
                f"there is, or was, a key '{wanted.name}': a name is used once, as events tell it"
            )
        key = ApiKey(
            name=wanted.name,
            roles=roles,
            project_id=project_id,
            limits=limits,
            sha256=digest_of(secret.encode()),
            created_at=now,
            created_by=context.caller.actor,
            expires_at=wanted.expires_at,
        )
        session.add(key)
        session.commit()
        return SecretKeyAnswer(api_key=secret, key=_answer(key, now))


def list_keys(context: AppContext) -> list[KeyAnswer]:
    """Return every key that there is or was, oldest first; to a bound caller those bound alike."""
    now = context.now()
    with context.reading() as session:
        return [_answer(key, now) for key in keys.list_keys(session) if _may_see(context, key)]


def revoke_key(context: AppContext, name: str) -> KeyAnswer:
    """End a key, for good and at once. Raises NotFoundError."""
    now = context.now()
    with context.writing() as session:
        key = _lock(context, session, name)
        if key.revoked_at is None:
            key.revoked_at = now
            note(session, context, AuditAction.KEY_REVOKED, name, {})
            session.commit()
        return _answer(key, now)


def rotate_key(context: AppContext, name: str) -> SecretKeyAnswer:
    """Give a key a new secret; the old one is accepted for another hour.

    The secret before that is dead at once. Raises NotFoundError, KeyRevokedError.
    """
    secret, now = make_key(), context.now()
    with context.writing() as session:
        key = _lock(context, session, name)
        if _state(key, now) != "live":
            raise KeyRevokedError(f"key '{name}' is {_state(key, now)}: make another one")
        key.previous_sha256, key.sha256 = key.sha256, digest_of(secret.encode())
        key.previous_until, key.rotated_at = now + ROTATION_OVERLAP, now
        data = {"previous_until": key.previous_until.isoformat()}
        note(session, context, AuditAction.KEY_ROTATED, name, data)
        session.commit()
        return SecretKeyAnswer(api_key=secret, key=_answer(key, now))


def _lock(context: AppContext, session: RowSession, name: str) -> ApiKey:
    key = keys.lock_key(session, name)
    if not _may_see(context, key):
        raise keys.no_such_key(name)
    return key


def _may_see(context: AppContext, key: ApiKey) -> bool:
    """Tell whether the caller may see a key: one for one project sees none that is for all.

    By a new secret of such a key it would reach every project.
    """
    return context.caller.project_id in (None, key.project_id)


def open_session(context: AppContext, key: str) -> str:
    """Sign a browser in by a key that works, and return the secret of its cookie.

    Whether the key works is for the caller to find out, by the keyring.
    """
    secret, now = secrets.token_urlsafe(32), context.now()
    opened = BrowserSession(
        sha256=digest_of(secret.encode()),
        key_sha256=digest_of(key.encode()),
        expires_at=now + SESSION_LIFETIME,
    )
    with context.writing() as session:
        keys.add_session(session, opened, now)
        session.commit()
    return secret


def close_session(context: AppContext, secret: str) -> None:
    """Sign a browser out; its cookie is worth nothing from now on."""
    with context.writing() as session:
        keys.remove_session(session, digest_of(secret.encode()))
        session.commit()


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database said of a digest; `caller` is None for one that no key has."""

    caller: Caller | None
    ends_at: datetime | None
    read_at: float


class Keyring:
    """Tells who calls by a key, by the database's word of the last CACHE_SECONDS.

    A key that is unknown, malformed, revoked or expired takes the same path to the same answer. A
    change that this process made is known at once (`forget`).
    """

    def __init__(self, context: AppContext) -> None:
        self._context = context
        # By the digest, and whether it is that of a cookie: a cookie is not accepted as a key.
        self._known: OrderedDict[tuple[str, bool], _Known] = OrderedDict()
        self._changing = Lock()
        self._generation = 0

    def forget(self) -> None:
        """Ask the database again about every key: one of them was changed."""
        with self._changing:
            self._generation += 1
            self._known.clear()

    def find(self, digest: str, *, is_session: bool = False) -> tuple[Caller | None, bool]:
        """Return who has a digest, and whether that is known; if not, `read` asks the database."""
        known = self._known.get((digest, is_session))
        if known is None or time.monotonic() - known.read_at > CACHE_SECONDS:
            return None, False
        is_over = known.ends_at is not None and known.ends_at <= self._context.now()
        return (None if is_over else known.caller), True

    def knew(self, digest: str, *, is_session: bool = False) -> bool:
        """Return whether a digest was one of a key when the database was last asked."""
        known = self._known.get((digest, is_session))
        return known is not None and known.caller is not None

    def read(self, digest: str, *, is_session: bool = False) -> Caller | None:
        """Ask the database who has a digest, unless another thread has got the answer meanwhile.

        With `is_session` it is that of a browser's cookie: the caller is who has the key by which
        the browser signed in.
        """
        caller, is_known = self.find(digest, is_session=is_session)
        if is_known:
            return caller
        generation, read_at, now = self._generation, time.monotonic(), self._context.now()
        with self._context.autocommitting() as session:
            opened = keys.find_session(session, digest, now) if is_session else None
            secret = opened.key_sha256 if opened is not None else digest
            key = None if is_session and opened is None else keys.find_by_digest(session, secret)
            caller, ends_at = self._caller_of(key, secret, now)
            if opened is not None:
                ends_at = min(ends_at or opened.expires_at, opened.expires_at)
            known = _Known(caller, ends_at, read_at)
            if key is not None and known.caller is not None and _is_use_old(key, now):
                keys.touch(session, key, now)
        with self._changing:
            if generation == self._generation:  # else it may have been read before the change
                self._known[digest, is_session] = known
                self._known.move_to_end((digest, is_session))
                while len(self._known) > MAX_CACHED:
                    self._known.popitem(last=False)
        return known.caller

    def _caller_of(
        self, key: ApiKey | None, digest: str, now: datetime
    ) -> tuple[Caller | None, datetime | None]:
        """Return who calls by a key with this digest, and until when; None for no live key."""
        stored = (key.sha256, key.previous_sha256 or "") if key else ("", "")
        # Both are compared, and in constant time, though the index has found one already.
        is_current = hmac.compare_digest(stored[0], digest)
        is_previous = hmac.compare_digest(stored[1], digest)
        if key is None or not (is_current or is_previous) or _state(key, now) != "live":
            return None, None
        ends = [key.expires_at, None if is_current else key.previous_until]
        ends_at = min((end for end in ends if end is not None), default=None)
        if ends_at is not None and ends_at <= now:
            return None, None
        roles = frozenset(AccessRole(role) for role in key.roles)
        settings = self._context.settings
        limits = CallerLimits(
            requests_per_minute=key.limits.get(
                "requests_per_minute", settings.key_requests_per_minute
            ),
            streams=key.limits.get("streams", settings.key_streams),
            claims=key.limits.get("claims", settings.key_claims),
        )
        project_id = key.project_id if self._context.is_default else settings.project_id
        caller = Caller(roles=roles, key=key.name, project_id=project_id, limits=limits)
        return caller, ends_at


def _is_use_old(key: ApiKey, now: datetime) -> bool:
    return key.last_used_at is None or now - key.last_used_at >= timedelta(seconds=USE_SECONDS)


def _state(key: ApiKey, now: datetime) -> Literal["live", "expired", "revoked"]:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "live"


def _answer(key: ApiKey, now: datetime) -> KeyAnswer:
    return KeyAnswer.of(key, state=_state(key, now))

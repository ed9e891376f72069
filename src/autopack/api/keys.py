"""Keys, who calls, and the audit log of both. (docs/security.md)"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Request

from ..domain.access import AccessRole
from ..domain.keys import NewKey
from ..domain.values import Identifier
from ..services import audit_log, keys
from ..services.keys import Keyring
from ..views.keys import (
    AuditPage,
    CallerAnswer,
    KeyAnswer,
    KeysAnswer,
    LimitsAnswer,
    SecretKeyAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .examples import NEW_KEY, example
from .inputs import Context, Cursor, PageLimit, decode_cursor, encode_cursor

router = APIRouter(tags=["keys"], route_class=StrictRoute)


async def _keyring(request: Request) -> Keyring:
    keyring: Keyring = request.app.state.keyring
    return keyring


InKeyring = Annotated[Keyring, Depends(_keyring)]
KeyName = Annotated[
    Identifier,
    Path(description="The key's name.", openapi_examples={"agent": {"value": "codex-3"}}),
]


@router.get("/whoami", responses=problems(503), summary="See who calls")
def whoami(context: Context) -> CallerAnswer:
    """The key that came with this call, its roles, and how events name the caller."""
    caller = context.caller
    return CallerAnswer(
        auth=context.settings.auth,
        key=caller.key,
        roles=[role for role in AccessRole if role in caller.roles],
        project_id=caller.project_id,
        limits=None if caller.limits is None else LimitsAnswer.of(caller.limits),
        actor=caller.actor,
    )


@router.get("/keys", responses=problems(503), summary="List keys")
def list_keys(context: Context) -> KeysAnswer:
    """Every key that there is or was, oldest first; their secrets are stored nowhere.

    `last_used_at` is exact to a minute.
    """
    return KeysAnswer(keys=keys.list_keys(context))


@router.post(
    "/keys",
    status_code=201,
    responses=problems(409, 413, 422, 503),
    summary="Make a key",
)
def create_key(
    context: Context,
    wanted: Annotated[NewKey, Body(openapi_examples=example(NEW_KEY, "A Builder's key"))],
) -> SecretKeyAnswer:
    """The answer tells the secret, this once. A name is used once and for all.

    The caller needs a key: the first one comes from `autopack keys create` beside the database.
    """
    keys.require_key(context)
    return keys.create_key(context, wanted)


@router.post(
    "/keys/{name}/revoke",
    responses=problems(404, 422, 503),
    summary="Revoke a key",
)
def revoke_key(context: Context, keyring: InKeyring, name: KeyName) -> KeyAnswer:
    """End a key for good: at once in this process, within ten seconds in others.

    The caller needs a key.
    """
    keys.require_key(context)
    revoked = keys.revoke_key(context, name)
    keyring.forget()
    return revoked


@router.post(
    "/keys/{name}/rotate",
    responses=problems(404, 409, 422, 503),
    summary="Give a key a new secret",
)
def rotate_key(context: Context, keyring: InKeyring, name: KeyName) -> SecretKeyAnswer:
    """The answer tells the new secret, this once; the old one is accepted for another hour.

    The caller needs a key.
    """
    keys.require_key(context)
    rotated = keys.rotate_key(context, name)
    keyring.forget()
    return rotated


@router.get("/audit", responses=problems(422, 503), summary="Read the audit log")
def list_deeds(context: Context, limit: PageLimit = 100, cursor: Cursor = None) -> AuditPage:
    """What was done to keys and policy, by whom, oldest first.

    Each entry carries the hash of the one before it.
    """
    after = decode_cursor(cursor, int)[0] if cursor else 0
    page, more = audit_log.list_entries(context, after=after, limit=limit)
    return AuditPage(entries=page, next_cursor=None if more is None else encode_cursor(more))

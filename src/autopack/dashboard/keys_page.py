"""The page of API keys and of the audit log. Only the command line and the API show secrets."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from ..api.inputs import Context, Cursor, decode_cursor, encode_cursor
from ..api.keys import KeyName
from ..services import audit_log, keys
from ..services.keys import Keyring
from .rendering import HOME
from .routes import InPage, PageRoute, back_to

router = APIRouter(include_in_schema=False, route_class=PageRoute)

ENTRIES_A_PAGE: Final = 50


@router.get(f"{HOME}/keys", name="GET /keys")
def show_keys(context: Context, page: InPage, cursor: Cursor = None) -> HTMLResponse:
    """Show every key, and what was done to keys and policy, newest first."""
    before = decode_cursor(cursor, int)[0] if cursor else None
    entries = audit_log.last_entries(context, ENTRIES_A_PAGE, before=before)
    return page.render(
        "keys.html",
        here="keys",
        json=("/keys", "/audit"),
        keys=keys.list_keys(context),
        entries=entries[::-1],
        older=encode_cursor(entries[0].sequence) if entries and entries[0].sequence > 1 else None,
        is_later=before is not None,
        auth=context.settings.auth,
        may_revoke=context.caller.key is not None,
    )


@router.post(f"{HOME}/keys/{{name}}/revoke", name="POST /keys/{name}/revoke")
def revoke(request: Request, context: Context, page: InPage, name: KeyName) -> Response:
    """End a key for good. The caller needs a key."""
    keys.require_key(context)
    keys.revoke_key(context, name)
    keyring: Keyring = request.app.state.keyring
    keyring.forget()
    return back_to(page, f"{HOME}/keys")

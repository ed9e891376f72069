"""Sign in to the dashboard by an API key, sign out, choose a theme. (docs/dashboard.md)"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from ..api.bodies import read_body
from ..api.credentials import SESSION_COOKIE, SIGN_IN
from ..api.inputs import Context
from ..domain.keys import SESSION_LIFETIME, digest_of
from ..services.context import AppContext, utc_now
from ..services.keys import Keyring, close_session, open_session
from .rendering import HOME, THEME_COOKIE, Page
from .routes import InPage, PageRoute, back_to

router = APIRouter(include_in_schema=False, route_class=PageRoute)

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 20


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that was posted, the last of each name."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await read_body(request)
    if body and kind != FORM:
        raise HTTPException(415, f"the form must come with Content-Type: {FORM}")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise HTTPException(422, "the form cannot be read") from None
    return {name: values[-1] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(read_form)]


@router.get(SIGN_IN)
async def sign_in_page(request: Request, to: str = "") -> HTMLResponse:
    """Show the form that asks for a key."""
    return Page(request, utc_now()).render("login.html", bare=True, problem=None, to=_way(to))


@router.post(SIGN_IN)
async def sign_in(request: Request, form: Form) -> Response:
    """Give the browser a cookie in place of the key, which is not kept."""
    page, key, to = Page(request, utc_now()), form.get("key", "").strip(), _way(form.get("to", ""))
    context: AppContext = request.app.state.context
    keyring: Keyring = request.app.state.keyring
    caller = await run_in_threadpool(keyring.read, digest_of(key.encode())) if key else None
    if caller is None:
        problem = "This is not a key that works: it is misspelt, revoked or expired."
        return page.render("login.html", 403, bare=True, problem=problem, to=to)
    caller.require_project(context.settings.project_id)
    secret = await run_in_threadpool(open_session, context, key)
    answer = back_to(page, to)
    answer.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=round(SESSION_LIFETIME.total_seconds()),
        path=page.root or "/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post(f"{HOME}/logout")
def sign_out(request: Request, context: Context, page: InPage) -> Response:
    """End the browser's session, here and in the database."""
    close_session(context, request.cookies.get(SESSION_COOKIE, ""))
    keyring: Keyring = request.app.state.keyring
    keyring.forget()
    answer = back_to(page, SIGN_IN)
    answer.delete_cookie(SESSION_COOKIE, path=page.root or "/")
    return answer


@router.post(f"{HOME}/theme")
async def choose_theme(request: Request, form: Form) -> Response:
    """Keep the chosen theme in a cookie, and go back: for browsers without JavaScript."""
    page = Page(request, utc_now())
    answer = back_to(page, HOME)
    theme = form.get("theme")
    if theme in ("light", "dark"):
        answer.set_cookie(THEME_COOKIE, theme, max_age=31_536_000, path="/", samesite="strict")
    return answer


def _way(path: str) -> str:
    """Return a page of ours to go on to; anything else is the overview."""
    is_ours = path == HOME or path.startswith(f"{HOME}/")
    return path if is_ours and "\\" not in path and not path.startswith(SIGN_IN) else HOME

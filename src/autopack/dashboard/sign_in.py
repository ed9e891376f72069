"""Sign in to the dashboard by an API key, sign out, choose a theme. (docs/dashboard.md)"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from ..api.bodies import read_body
from ..api.credentials import SESSION_COOKIE, SIGN_IN, session_cookie
from ..api.places import Place, is_within, places_of
from ..domain.keys import SESSION_LIFETIME, digest_of
from ..domain.limits import Rates
from ..services.context import utc_now
from ..services.keys import close_session, open_session
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
    places = places_of(request.scope)
    lookups: CapacityLimiter = request.app.state.lookups
    digest = digest_of(key.encode())
    known = await places.caller_of(digest, is_session=False, lookups=lookups) if key else None
    if known is None:
        problem = "This is not a key that works: it is misspelt, revoked or expired."
        return page.render("login.html", 403, bare=True, problem=problem, to=to)
    caller, place = known
    await places.place_for(caller, request.scope.get("project"))
    if caller.holder is not None and caller.limits is not None:
        rates: Rates = place.state.rates
        rates.take(caller.holder, caller.limits.requests_per_minute)
    # The session is where its key is. That of a cookie before it may be another project's.
    replaced = session_cookie(request.headers)
    if replaced:
        cookie = digest_of(replaced.encode())
        before = await places.caller_of(cookie, is_session=True, lookups=lookups)
        if before is not None:
            await run_in_threadpool(close_session, before[1].state.context, replaced)
            before[1].state.keyring.forget()
    secret = await run_in_threadpool(open_session, place.state.context, key)
    answer = back_to(page, to)
    answer.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=round(SESSION_LIFETIME.total_seconds()),
        path=page.root or "/",
        httponly=True,
        samesite="strict",
        secure=_is_by_tls(request),
    )
    return answer


@router.post(f"{HOME}/logout")
def sign_out(request: Request, page: InPage) -> Response:
    """End the browser's session, here and in the database."""
    known: Place = request.scope.get("knows_caller", request.app)
    close_session(known.state.context, session_cookie(request.headers))
    known.state.keyring.forget()
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


def _is_by_tls(request: Request) -> bool:
    """Tell whether the browser speaks TLS, be it to a proxy that sends plain HTTP on.

    The origin, which was compared with the host, is the browser's own word, unlike what proxies
    add or forget to add.
    """
    origin = request.headers.get("origin", "")
    return request.url.scheme == "https" or origin.startswith("https://")


def _way(path: str) -> str:
    """Return a page of ours to go on to; anything else is the overview."""
    is_a_page = is_within(path, HOME) and "\\" not in path
    return path if is_a_page and not path.startswith(SIGN_IN) else HOME

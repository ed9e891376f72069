"""The API key of a request: where it stands, whose it is, and the one refusal of all that is wrong.

A missing, malformed, unknown, expired or revoked key gets the same answer, and a key that is sent
takes the same path to it, so that the answer tells nothing about a key.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Final
from urllib.parse import urlencode

import anyio
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from ..domain.access import Caller
from ..domain.errors import AutopackError
from ..domain.keys import digest_of
from ..domain.limits import Rates
from ..services.availability import OUTAGES
from ..services.keys import Keyring
from ..services.oidc import TokenVerifier
from .errors import outage_response, problem_response, refusal_response
from .places import Place, is_within, path_in, places_of

# Threads that look keys up: a flood of unknown ones leaves the others to requests.
LOOKUPS: Final = 4
# The same for every caller and installation, so they are readable without a key.
_PAGES: Final = frozenset({"/health/live", "/docs", "/redoc", "/openapi.json", "/favicon.ico"})
_FILES: Final = ("/docs/static/", "/dashboard/static/")
# Where a browser signs in: also posted to without a session.
SIGN_IN: Final = "/dashboard/login"
DASHBOARD: Final = "/dashboard"
SESSION_COOKIE: Final = "autopack_session"


class Credentials:
    """Finds the caller of a request by its key."""

    async def caller_of(self, scope: Scope, headers: Headers) -> Caller | Response | None:
        """Return the caller, the refusal, or None for what is answered without a key."""
        if _is_public(scope):
            return None
        key = _key_in(headers)
        is_session = key is None
        if is_session:
            key = _session_in(scope, headers)
        if key is None:
            return _sign_in_or_refusal(scope, headers)
        try:
            known = await self._known_by(key, scope, is_session=is_session)
            if known is None:
                return _sign_in_or_refusal(scope, headers)
            caller, place = known
            scope["knows_caller"] = place
            if caller.holder is not None and caller.limits is not None:
                rates: Rates = place.state.rates
                rates.take(caller.holder, caller.limits.requests_per_minute)
        except AutopackError as error:
            return refusal_response(error)
        except OUTAGES as error:
            return outage_response(error)
        return caller

    async def _known_by(
        self, key: bytes, scope: Scope, *, is_session: bool
    ) -> tuple[Caller, Place] | None:
        """Return who has a key or sends a token, and which project's place knows it.

        `scope` then says how long a stream may last.

        Raises TokenRefusedError, IssuerAwayError, and what a database that is away raises.
        """
        verifier: TokenVerifier | None = scope["app"].state.verifier
        lookups: anyio.CapacityLimiter = scope["app"].state.lookups
        if verifier is not None and not is_session and key.count(b".") == 2:
            verify, token = verifier.verify, key.decode("latin-1")
            named = scope.get("project")
            caller, until = await anyio.to_thread.run_sync(verify, token, named, limiter=lookups)
            scope["caller_until"] = until
            return caller, scope["app"]
        digest = digest_of(key)
        scope["key_digest"], scope["is_session"] = digest, is_session
        places = places_of(scope)
        return await places.caller_of(digest, is_session=is_session, lookups=lookups)


async def is_still_known(scope: Scope) -> bool:
    """Tell whether the key of an open stream still works; True where none is asked for."""
    if time.time() > scope.get("caller_until", math.inf):
        return False
    digest = scope.get("key_digest")
    if digest is None:
        return True
    keyring: Keyring = scope["knows_caller"].state.keyring
    caller, is_known = keyring.find(digest, is_session=scope["is_session"])
    if not is_known:
        try:
            read = partial(keyring.read, digest, is_session=scope["is_session"])
            caller = await anyio.to_thread.run_sync(read)
        except OUTAGES:  # the stream goes on when the database does
            return True
    return caller is not None


def _key_in(headers: Headers) -> bytes | None:
    """Return the one key of a request; None where there is none, or more than one.

    Of two keys a proxy in front may have judged the other one. An `Authorization` of another scheme
    is the proxy's own, and no key.
    """
    found = [value.encode("latin-1") for value in headers.getlist("x-api-key")]
    for value in headers.getlist("authorization"):
        scheme, _, given = value.partition(" ")
        if scheme.lower() == "bearer":
            found.append(given.strip(" ").encode("latin-1"))
    return found[0] if len(found) == 1 else None


def _session_in(scope: Scope, headers: Headers) -> bytes | None:
    """Return the secret of the browser's cookie, where a browser may use it.

    A page of another origin cannot send a change: `SameSite=Strict` keeps the cookie back, and a
    change that names no origin is no browser's.
    """
    is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    if not is_read and (headers.get("origin") is None or not is_within(path_in(scope), DASHBOARD)):
        return None
    secret = session_cookie(headers)
    return secret.encode() if secret else None


def session_cookie(headers: Headers) -> str:
    """Return the secret of the browser's cookie, "" without one.

    Browsers send the cookie of the longest path first: that of this service, where another one is
    served at the root of the same host.
    """
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.partition("=")
        if name.strip() == SESSION_COOKIE:
            return value.strip()
    return ""


def _sign_in_or_refusal(scope: Scope, headers: Headers) -> Response:
    """Return the way to the sign-in page, for a browser that opens a page."""
    path = path_in(scope)
    is_page = scope["type"] == "http" and "text/html" in headers.get("accept", "")
    if is_page and (path == "/" or is_within(path, DASHBOARD)):
        root = str(scope.get("root_path", "")).rstrip("/")
        query = scope.get("query_string", b"").decode("latin-1")
        to = f"{path}?{query}" if query else path
        return RedirectResponse(f"{root}{SIGN_IN}?{urlencode({'to': to})}", 303)
    return _refusal()


def _refusal() -> Response:
    return problem_response(
        401,
        "key_required",
        "this service answers calls with a valid API key, as `Authorization: Bearer ap_…` or "
        "`X-API-Key: ap_…`; an operator makes one by `autopack keys create`",
        headers={"WWW-Authenticate": 'Bearer realm="autopack"'},
    )


def _is_public(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    path = path_in(scope)
    if path == SIGN_IN:
        return scope["method"] in ("GET", "HEAD", "POST")
    return scope["method"] in ("GET", "HEAD") and (path in _PAGES or path.startswith(_FILES))

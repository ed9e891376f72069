"""The API key of a request: where it stands, whose it is, and the one refusal of all that is wrong.

A missing, malformed, unknown, expired or revoked key gets the same answer, and a key that is sent
takes the same path to it, so that the answer tells nothing about a key.
"""

from __future__ import annotations

import math
import time
from typing import Final

import anyio
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from ..domain.access import Caller
from ..domain.errors import AutopackError
from ..domain.keys import digest_of
from ..domain.limits import Rates
from ..services.availability import OUTAGES
from ..services.keys import Keyring
from ..services.oidc import TokenVerifier
from .errors import outage_response, problem_response, refusal_response

# Threads that look keys up: a flood of unknown ones leaves the others to requests.
_LOOKUPS: Final = 4
# The same for every caller and installation, so they are readable without a key.
_PAGES: Final = frozenset({"/health/live", "/docs", "/redoc", "/openapi.json", "/favicon.ico"})
_FILES: Final = "/docs/static/"


class Credentials:
    """Finds the caller of a request by its key."""

    def __init__(self) -> None:
        self._lookups = anyio.CapacityLimiter(_LOOKUPS)
        self._rates = Rates(clock=time.monotonic)

    async def caller_of(self, scope: Scope, headers: Headers) -> Caller | Response | None:
        """Return the caller, the refusal, or None for what is answered without a key."""
        if _is_public(scope):
            return None
        key = _key_in(headers)
        if key is None:
            return _refusal()
        try:
            caller = await self._known_by(key, scope)
            if caller is None:
                return _refusal()
            caller.require_project(scope["app"].state.settings.project_id)
            if caller.holder is not None and caller.limits is not None:
                self._rates.take(caller.holder, caller.limits.requests_per_minute)
        except AutopackError as error:
            return refusal_response(error)
        except OUTAGES as error:
            return outage_response(error)
        return caller

    async def _known_by(self, key: bytes, scope: Scope) -> Caller | None:
        """Return who has a key or sends a token; `scope` then says how long a stream may last.

        Raises TokenRefusedError, IssuerAwayError, and what a database that is away raises.
        """
        verifier: TokenVerifier | None = scope["app"].state.verifier
        if verifier is not None and key.count(b".") == 2:
            verify, token = verifier.verify, key.decode("latin-1")
            caller, until = await anyio.to_thread.run_sync(verify, token, limiter=self._lookups)
            scope["caller_until"] = until
            return caller
        keyring: Keyring = scope["app"].state.keyring
        digest = digest_of(key)
        known, is_known = keyring.find(digest)
        if not is_known:
            known = await anyio.to_thread.run_sync(keyring.read, digest, limiter=self._lookups)
        scope["key_digest"] = digest
        return known


async def is_still_known(scope: Scope) -> bool:
    """Tell whether the key of an open stream still works; True where none is asked for."""
    if time.time() > scope.get("caller_until", math.inf):
        return False
    digest = scope.get("key_digest")
    if digest is None:
        return True
    keyring: Keyring = scope["app"].state.keyring
    caller, is_known = keyring.find(digest)
    if not is_known:
        try:
            caller = await anyio.to_thread.run_sync(keyring.read, digest)
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


def _refusal() -> Response:
    return problem_response(
        401,
        "key_required",
        "this service answers calls with a valid API key, as `Authorization: Bearer ap_…` or "
        "`X-API-Key: ap_…`; an operator makes one by `autopack keys create`",
        headers={"WWW-Authenticate": 'Bearer realm="autopack"'},
    )


def _is_public(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    path: str = scope["path"]
    prefix = str(scope.get("root_path", "")).rstrip("/")
    if prefix and path.startswith(f"{prefix}/"):  # as the router takes it
        path = path[len(prefix) :]
    return path in _PAGES or path.startswith(_FILES)

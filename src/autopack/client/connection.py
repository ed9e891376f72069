"""One HTTP connection to the service: requests, retries, and refusals as errors."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from .. import tracing
from .credentials import find_key, usable_key
from .errors import ApiError, ClientError, UnreachableError
from .operator_file import read_operator_settings

DEFAULT_URL: Final = "http://localhost:8000"
URL_VARIABLES: Final = ("AUTOPACK_URL", "API_URL")
# Where an address names none: the project that is asked, the default one if this is not set.
PROJECT_VARIABLE: Final = "AUTOPACK_PROJECT"
PROJECTS: Final = "/projects"
_PROJECT: Final = re.compile(r"/projects/[^/]+/?$")
TIMEOUT_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 5.0
RETRIES: Final = 3
MAX_PAUSE_SECONDS: Final = 60.0
FIRST_PAUSE_SECONDS: Final = 0.25  # doubled for each further try
_MAX_SHOWN: Final = 1_000

Body = Mapping[str, Any] | BaseModel


def named_url() -> str | None:
    """Return the service's address that AUTOPACK_URL, API_URL or the operator's file names.

    AUTOPACK_URL comes first: other programs use a variable API_URL for services of their own, and
    the key of AUTOPACK_API_KEY must not go there. Raises ClientError for a wrong file.
    """
    for name in URL_VARIABLES:
        if given := os.environ.get(name):
            return given
    return read_operator_settings().url


class Connection:
    """Sends requests to the service; repeats a repeatable one that got no answer."""

    def __init__(
        self,
        url: str | None,
        *,
        api_key: str | None,
        project: str | None,
        timeout: float,
        retries: int,
        transport: httpx.BaseTransport | None,
    ) -> None:
        given = url or named_url() or DEFAULT_URL
        shown = re.sub(r"(?<=://).*@", "***@", given)  # it may contain a password
        try:
            self._url = httpx.URL(given.rstrip("/"))
        except httpx.InvalidURL as error:
            raise ClientError(_one_line(f"{shown!r} is not an address: {error}")) from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ClientError(_one_line(f"{shown!r} is not an address: give http://HOST:PORT."))
        # The address without a project, for what is asked of the service itself.
        self._service = self._url.copy_with(path=_PROJECT.sub("", self._url.path))
        if project is None:
            project = os.environ.get(PROJECT_VARIABLE)
        if project and not _PROJECT.search(self._url.path):
            path = f"{self._url.path.rstrip('/')}{PROJECTS}/{quote(project, safe='')}"
            self._url = self._url.copy_with(raw_path=path.encode())
        key = api_key
        if key is None:
            key = find_key(self.address) or find_key(_without_password(self._service))
        if key:
            usable_key(key, "the key")
        self.retries = retries
        self._http = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            transport=transport,
            trust_env=False,
            verify=self._url.scheme == "https",  # loading certificates takes 35 ms
        )

    @property
    def address(self) -> str:
        """The service's address without a password that may be in it."""
        return _without_password(self._url)

    @property
    def is_in_clear(self) -> bool:
        """Say whether others on the way can read what is sent."""
        host = self._url.host
        is_local = host in ("localhost", "::1") or host.startswith("127.")
        return self._url.scheme == "http" and not is_local

    def close(self) -> None:
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: Body | None = None,
        key: str | None = None,
        is_repeatable: bool = False,
        expected: tuple[int, ...] = (),
        timeout: float | None = None,
    ) -> httpx.Response:
        """Send a request and return its answer: a success, or a status that is `expected`.

        A request that was not sent is sent again; one that may have arrived only if it
        `is_repeatable`. Raises ApiError, UnreachableError.
        """
        is_of_service = path == PROJECTS or path.startswith(f"{PROJECTS}/")
        request = self._http.build_request(
            method,
            f"{_without_password(self._service)}{path}" if is_of_service else path,
            params={name: value for name, value in (query or {}).items() if value is not None},
            headers=_headers(body, key),
            content=None if body is None else _encoded(body),
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout,
        )
        tries_left, pause = self.retries, FIRST_PAUSE_SECONDS
        while True:
            try:
                response = self._http.send(request)
            except httpx.RequestError as error:
                may_repeat = is_repeatable or isinstance(error, httpx.ConnectError)
                if not (tries_left and may_repeat):
                    raise self._unreachable(error) from error
            else:
                if response.is_success or response.status_code in expected:
                    return response
                is_refused = response.status_code == 429  # so it had no effect
                if not (
                    tries_left and (is_refused or (is_repeatable and is_away(response.status_code)))
                ):
                    raise refusal(response)
                pause = max(pause, _retry_after(response))
            time.sleep(pause)
            tries_left, pause = tries_left - 1, pause * 2

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Open an answer as a stream.

        Raises ApiError, and UnreachableError while it is read, too.
        """
        try:
            with self._http.stream("GET", path, headers=dict(headers)) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield response
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.RequestError) -> UnreachableError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            hint = "`autopack serve` starts one; --url or AUTOPACK_URL gives another address."
            return UnreachableError(_one_line(f"no service at {self.address} ({error}). {hint}"))
        reason = str(error) or type(error).__name__
        return UnreachableError(_one_line(f"{self.address} gave no answer: {reason}"))


def _without_password(url: httpx.URL) -> str:
    port = "" if url.port is None else f":{url.port}"
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}{url.path.rstrip('/')}"


def is_away(status: int) -> bool:
    """Tell whether the same request may succeed soon: with 502 and 504 a proxy has no answer."""
    return status in (502, 503, 504)


def _retry_after(response: httpx.Response) -> float:
    """Return how many seconds the service asks to wait, MAX_PAUSE_SECONDS at most."""
    given = response.headers.get("Retry-After", "")
    return min(float(given), MAX_PAUSE_SECONDS) if given.isdecimal() else 0.0


def new_key() -> str:
    """Return a new Idempotency-Key: a request that is repeated with it has one effect."""
    return uuid.uuid4().hex


def refusal(response: httpx.Response) -> ApiError:
    """Return the error of a refusal, also without a problem document, as from a proxy."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        detail = problem.get("detail") if isinstance(problem, dict) else None
        if "html" in response.headers.get("Content-Type", ""):  # a page for people
            detail = f"a proxy before the service answered {response.reason_phrase}"
        text = _one_line(str(detail or response.text) or "no reason was given")
        problem = {"status": response.status_code, "code": str(response.status_code)}
        problem["detail"] = text
    detail = _one_line(str(problem.get("detail", "")))
    return ApiError(response.status_code, problem["code"], detail, problem)


def unreadable(response: httpx.Response, what: str) -> ApiError:
    """Return the error for a success in an unknown form: of another service or version."""
    detail = _one_line(f"{response.request.url.path} answered {response.status_code}, and {what}")
    return ApiError(response.status_code, "unreadable_answer", detail, {})


def _headers(body: Body | None, key: str | None) -> dict[str, str]:
    headers = {} if body is None else {"Content-Type": "application/json"}
    if trace := tracing.current():
        headers["traceparent"] = trace
    return headers if key is None else {**headers, "Idempotency-Key": key}


def _encoded(body: Body) -> bytes:
    if isinstance(body, BaseModel):
        return body.model_dump_json(exclude_unset=True).encode()
    return json.dumps(body, allow_nan=False).encode()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_SHOWN]

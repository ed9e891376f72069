"""Routes that answer with pages, also where they refuse."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from ..api.credentials import SIGN_IN
from ..api.errors import STATUS_OF_KIND, TITLES, invalid_document
from ..api.guard import GuardedRoute
from ..api.inputs import Context
from ..domain.access import ROLES_OF
from ..domain.errors import AutopackError, ErrorKind, TooManyError
from ..domain.run_filter import RunFilter
from ..services import runs
from ..services.availability import OUTAGES, as_unavailable
from ..services.context import utc_now
from .rendering import HOME, Page

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
NEAR: Final = 200


class PageRoute(GuardedRoute):
    """A route whose refusals are pages too, for a person in front of a browser.

    It takes the roles of the operation of the API that its `name` says, or, without one, those that
    may read.
    """

    @property
    def operation(self) -> str:
        if self.path_format == SIGN_IN:
            return "GET /health/live"  # for everybody
        return self.name if self.name in ROLES_OF else "GET /runs"

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_for_people(request: Request) -> Response:
            try:
                return await handle(request)
            except AutopackError as error:
                return await run_in_threadpool(_refusal, request, error)
            except OUTAGES as error:
                known = as_unavailable(error)
                if known is None:
                    raise
                return _problem(request, 503, known.detail, known.code)
            except RequestValidationError as error:
                document = invalid_document(error.errors(), None)
                return _problem(request, 422, document["detail"], document["code"])
            except HTTPException as error:
                return _problem(request, error.status_code, str(error.detail), "refused")

        return handle_for_people


def _page(request: Request, context: Context) -> Page:
    return Page(request, context.now())


InPage = Annotated[Page, Depends(_page)]


def _refusal(request: Request, error: AutopackError) -> Response:
    status = STATUS_OF_KIND[error.kind]
    run_id = request.path_params.get("run_id")
    if error.kind is ErrorKind.NOT_FOUND and run_id is not None:
        return not_found(request, error.detail, run_id, _nearest(request, run_id))
    answer = _problem(request, status, error.detail, error.code)
    if isinstance(error, TooManyError):
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


def not_found(request: Request, what: str, text: str = "", nearest: str | None = None) -> Response:
    """Return the page for what does not exist, with a way on."""
    page = Page(request, utc_now())
    sentence = what[:1].upper() + what[1:]
    return page.render("not-found.html", 404, what=sentence, text=text[:64], nearest=nearest)


def _nearest(request: Request, run_id: str) -> str | None:
    """Return the latest run with a name like this one."""
    try:
        page, _ = runs.list_runs(request.app.state.context, RunFilter(), limit=NEAR, before=None)
    except OUTAGES:
        return None
    near = difflib.get_close_matches(run_id, [run.run_id for run in page], n=1)
    return near[0] if near else None


def _problem(request: Request, status: int, detail: str, code: str) -> Response:
    page = Page(request, utc_now())
    return page.render(
        "problem.html",
        status,
        title=TITLES.get(status, "Refused"),
        detail=detail,
        code=code,
        status=status,
        again=f"{page.root}{request.url.path}" if request.method == "GET" else f"{page.root}{HOME}",
    )


def back_to(page: Page, path: str) -> RedirectResponse:
    """Send the browser to a page of ours after a change."""
    return RedirectResponse(f"{page.root}{path}", 303)

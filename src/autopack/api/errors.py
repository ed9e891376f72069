"""Every refusal as RFC 9457 problem+json. One table maps a kind to a status."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ..domain.errors import AutopackError, ErrorKind, TooManyError
from ..domain.values import MAX_PROBLEMS
from ..services.availability import OUTAGES, as_unavailable
from .openapi import Schema, amend

logger = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
STATUS_OF_KIND = {
    ErrorKind.INVALID: 422,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.GONE: 410,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.UNAUTHORIZED: 401,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.TOO_MANY: 429,
    ErrorKind.UNAVAILABLE: 503,
}
TITLES = {
    400: "Bad request",
    401: "Not authorised",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    415: "Unsupported media type",
    421: "Misdirected request",
    422: "Invalid request",
    429: "Too many requests",
    431: "Request header fields too large",
    500: "Internal error",
    503: "Unavailable",
}
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    422: "invalid_body",
}
RETRY_AFTER = {"Retry-After": "1"}
REPEATED = {"Idempotency-Replayed": "true"}
# On every answer, unless it has its own.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SOURCES = ("body", "path", "query", "header")


class FieldProblem(BaseModel):
    loc: str
    message: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable and for machines, `detail` one sentence for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] | None = None
    allowed: list[str] | None = None


def problem_response(
    status: int,
    code: str,
    detail: str,
    extra: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Answer with a problem document."""
    document = _document(status, code, detail, extra)
    return JSONResponse(document, status, headers, media_type=MEDIA_TYPE)


def problem_document(error: AutopackError) -> dict[str, Any]:
    """Return the problem document of a refusal."""
    return _document(STATUS_OF_KIND[error.kind], error.code, error.detail, error.extra)


def invalid_document(
    errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None
) -> dict[str, Any]:
    """Return a problem that names each wrong field and the reason, never the sent value."""
    # Unknown fields first: a missing field is often a misspelled one.
    ordered = sorted(errors, key=lambda problem: problem["type"] != "extra_forbidden")
    found = [
        {"loc": _field_path(problem["loc"]), "message": _message(problem, model)}
        for problem in ordered[:MAX_PROBLEMS]
    ]
    first = found[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    detail = f"{first['loc']}: {first['message']}{more}"
    return _document(422, "invalid_request", detail, {"errors": found})


def failure_document(error: Exception) -> dict[str, Any]:
    """Return the problem of an error; an unexpected one is logged, and shown only by an id."""
    refusal = as_unavailable(error) if isinstance(error, OUTAGES) else error
    if isinstance(refusal, AutopackError):
        if refusal is not error:
            logger.warning(refusal.code, error=type(error).__name__)
        return problem_document(refusal)
    correlation_id = uuid.uuid4().hex
    logger.error("unforeseen_error", correlation_id=correlation_id, exc_info=error)
    return _document(
        500,
        "internal_error",
        f"internal error, not caused by your request; in the log it is {correlation_id}",
        {"correlation_id": correlation_id},
    )


def _document(
    status: int, code: str, detail: str, extra: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "type": f"urn:autopack:problem:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        **(extra or {}),
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe an operation's refusals for OpenAPI; a body (413) needs JSON (415).

    Without `model`: FastAPI would build a validator for each of some 500 refusals at every start.
    """
    of_body = {415} if 413 in statuses else set()
    return {
        status: {
            "description": TITLES[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, *of_body, 401, 403, 421, 429})
    }


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error with a problem document."""
    app.add_exception_handler(AutopackError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in OUTAGES:
        app.add_exception_handler(kind, _outage)
    app.add_exception_handler(Exception, _unforeseen)
    amend(app, _share_problems)


def _share_problems(schema: Schema) -> None:
    """Describe each refusal once, in `components.responses`; operations refer to it."""
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**schema["components"]["schemas"], **problem.pop("$defs"), "Problem": problem}
    schema["components"]["schemas"] = dict(sorted(schemas.items()))
    shared = schema["components"].setdefault("responses", {})
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if MEDIA_TYPE in content:  # not so in a document that was changed before
                    name = TITLES[int(status)].title().replace(" ", "")
                    shared.setdefault(name, response)
                    operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, AutopackError)  # noqa: S101 - for the type checker
    return refusal_response(error)


def refusal_response(error: AutopackError) -> Response:
    """Answer a refusal with its problem document."""
    status = STATUS_OF_KIND[error.kind]
    headers = dict(RETRY_AFTER) if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="autopack"'
    if isinstance(error, TooManyError):
        headers["Retry-After"] = str(error.retry_after)
    if error.is_repeat:
        headers |= REPEATED
    return problem_response(status, error.code, error.detail, error.extra, headers)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    status = error.status_code
    detail = str(error.detail)
    if status == 404 and detail == "Not Found":
        detail = f"there is no resource at {request.url.path[:200]}"
    headers = dict(error.headers or {})
    if status == 405:
        allowed = ", ".join(_allowed(request))
        headers["Allow"] = allowed
        detail = f"{request.method} is not allowed here; allowed: {allowed}"
    code = _CODES.get(status, TITLES.get(status, "error").lower().replace(" ", "_"))
    return problem_response(status, code, detail, headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return every method of a path; the router only reports those of the first route."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.scope["router"].routes)
    ]


def _invalid(request: Request, error: Exception) -> Response:
    """Answer with each wrong field and its reason."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type checker
    document = invalid_document(error.errors(), _body_model(request))
    return JSONResponse(document, 422, media_type=MEDIA_TYPE)


def _outage(request: Request, error: Exception) -> Response:
    return outage_response(error)


def outage_response(error: Exception) -> Response:
    """Answer that the database or a disk is unavailable; other errors of theirs are internal."""
    document = failure_document(error)
    status = document["status"]
    headers = RETRY_AFTER if status == 503 else SECURITY_HEADERS
    return JSONResponse(document, status, headers, media_type=MEDIA_TYPE)


def _unforeseen(request: Request, error: Exception) -> Response:
    # This answer is created outside of the middleware that adds the headers.
    return JSONResponse(failure_document(error), 500, SECURITY_HEADERS, media_type=MEDIA_TYPE)


def _field_path(location: Sequence[str | int]) -> str:
    """Write the path of a field in the form `phases[0].tier_id`."""
    text = ""
    for part in location[1:] if location and location[0] in _SOURCES else location:
        name = str(part)[:100]
        text += f"[{name}]" if isinstance(part, int) else f".{name}" if text else name
    return text or str(location[0] if location else "body")


def _message(problem: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] != "extra_forbidden":
        return message
    name = str(problem["loc"][-1])[:100]
    known = _fields_at(model, problem["loc"][1:-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown field; the nearest known one is '{near[0]}'" if near else "unknown field"


def _body_model(request: Request) -> type[BaseModel] | None:
    dependant = getattr(request.scope.get("route"), "dependant", None)
    for parameter in getattr(dependant, "body_params", ()):
        return _model_in(parameter.field_info.annotation)
    return None


def _fields_at(model: type[BaseModel] | None, location: Sequence[str | int]) -> list[str]:
    for part in location:
        if model is None:
            return []
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation)
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model in types such as `Model | None` and `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None

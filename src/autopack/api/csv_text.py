"""Lists as CSV, for a client that prefers `text/csv` to JSON. (docs/watching.md)

A view that is a list of rows, or an object of rows by name, names its field in `csv_rows`.
A row's JSON is flattened: `a.b` is the column of a value within an object; a list is one cell.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from ..views import Shape
from .openapi import Schema, amend

MEDIA_TYPE: Final = "text/csv"
# Spreadsheets take a cell that begins so as a formula, and most of these texts are foreign.
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def wants_csv(accept: str) -> bool:
    """Tell whether an Accept header prefers CSV to JSON."""
    weights = {}
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        weight = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        try:
            weights[kind] = float(weight)
        except ValueError:
            weights[kind] = 0.0
    csv_weight = weights.get(MEDIA_TYPE, 0.0)
    return csv_weight > 0 and csv_weight >= weights.get("application/json", 0.0)


def rows_field(model: object) -> str | None:
    """Return the field of a view that holds its rows; None: it is no list."""
    is_view = isinstance(model, type) and issubclass(model, Shape)
    return getattr(model, "csv_rows", None) if is_view else None


def as_csv(request: Request, answer: Response, field: str) -> Response:
    """Return an answer's rows as CSV; the next page, if there is one, is in the header `Link`."""
    document = json.loads(bytes(answer.body))
    items = document[field]
    items = items.values() if isinstance(items, Mapping) else items
    rows = [dict(_flatten(row)) for row in items]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(name)) for name in columns] for row in rows])
    csv_answer = Response(written.getvalue(), media_type=f"{MEDIA_TYPE}; charset=utf-8")
    cursor = document.get("next_cursor")
    if cursor is not None:
        following = request.url.include_query_params(cursor=cursor)
        csv_answer.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return csv_answer


def describe_csv(app: FastAPI) -> None:
    """Let OpenAPI name CSV beside JSON at every list."""
    amend(app, _add_csv)


def _add_csv(schema: Schema) -> None:
    lists = {kind.__name__ for kind in _kinds(Shape) if rows_field(kind) is not None}
    for operations in schema["paths"].values():
        answer = operations.get("get", {}).get("responses", {}).get("200", {})
        content = answer.get("content", {})
        shape = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        if shape.rpartition("/")[2] in lists:
            content[MEDIA_TYPE] = {"schema": {"type": "string"}}


def _kinds(kind: type[Shape]) -> Iterator[type[Shape]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _flatten(row: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{within}{name}.")
        else:
            yield within + name, value


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value

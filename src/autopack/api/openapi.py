"""Changes of the OpenAPI document that FastAPI makes of the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

Schema = dict[str, Any]


def amend(app: FastAPI, change: Callable[[Schema], None]) -> None:
    """Apply a change to the document, after those that were added before.

    FastAPI keeps its document and returns it again, so a change must have no effect a second time.
    """
    describe = app.openapi

    def openapi() -> Schema:
        schema = describe()
        change(schema)
        return schema

    # To replace the method is how FastAPI has its document changed.
    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents

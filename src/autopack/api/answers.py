"""Examples of answers in OpenAPI.

answers.json holds answers of a real service, which tests/api/test_answers.py records and compares.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI

from .openapi import Schema, amend

FILE: Final = Path(__file__).with_name("answers.json")


@functools.cache
def recorded_answers() -> dict[str, dict[str, Any]]:
    """Return the answers by operation and status, such as `POST /runs/start` and `201`.

    The refusals, which are the same for all operations, are those of the operation `""`.
    """
    document: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return document


def describe_answers(app: FastAPI) -> None:
    """Let OpenAPI show the recorded answers."""
    amend(app, _add_examples)


def _add_examples(schema: Schema) -> None:
    answers = recorded_answers()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, answer in answers.get(f"{method.upper()} {path}", {}).items():
                operation["responses"][status]["content"]["application/json"]["example"] = answer
    for response in schema["components"]["responses"].values():
        for content in response["content"].values():
            for answer in answers[""].values():
                if answer["title"] == response["description"]:
                    content["example"] = answer

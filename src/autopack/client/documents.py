"""Plans and rulesets as people write them: JSON or YAML."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from .errors import ClientError


class DocumentError(ClientError):
    """A text is not a document."""


def parse_document(text: str) -> dict[str, Any]:
    """Read JSON or YAML with one object. Raises DocumentError."""
    document = _parse(text)
    if not isinstance(document, dict):
        raise DocumentError("has no object")
    return document


def _parse(text: str) -> object:
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"is not JSON: {error}") from error
    import yaml  # imported here, as it is slow to import and rarely needed

    try:
        # Through JSON, so that a date stays text, and values without a JSON form are refused.
        return json.loads(json.dumps(yaml.safe_load(text), default=_as_text, allow_nan=False))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DocumentError(f"is neither JSON nor YAML with a JSON form: {reason}") from error


def _as_text(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")

"""Documents that agents send, without the credentials in them. (docs/paths.md)"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from .secret_rules import redact

Document = TypeVar("Document")

# What is stored elsewhere, or is not text: a patch that contains a credential is refused instead.
_KEPT: Final = frozenset(
    ["patch_content", "patch_content_base64", "lease_token", "base_commit", "commit_sha"]
)
# A mark may be longer than what it replaces; the shortest limit of a text has space for this many
# more characters.
_ROOM: Final = 90


def redacted(document: Document) -> Document:
    """Return a document with the credentials redacted in all of its texts.

    Goes through models, mappings and sequences, keys included. No text becomes longer than its
    limit.
    """
    # The result has the type of the argument, which a walk over values of any kind cannot express.
    return _redacted(document)  # type: ignore[no-any-return]


def _redacted(value: Any) -> Any:
    match value:
        case Enum():
            return value
        case str():
            return redact(value)[: max(len(value), _ROOM)]
        case BaseModel():
            fields = {name: getattr(value, name) for name in value.model_fields_set - _KEPT}
            changed = {name: _redacted(field) for name, field in fields.items()}
            return value.model_copy(
                update={name: field for name, field in changed.items() if field != fields[name]}
            )
        case dict():
            return {
                _redacted(name): field if name in _KEPT else _redacted(field)
                for name, field in value.items()
            }
        case tuple() | list():
            return type(value)(map(_redacted, value))
        case _:
            return value

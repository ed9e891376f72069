"""In which fields two JSON documents differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """A field by its path, `run.token_cap`. A side is None where the document has no such field."""

    field: str
    was: Any
    would: Any


def differences(was: Mapping[str, Any], would: Mapping[str, Any]) -> list[FieldChange]:
    """Return the fields that differ, in the order of their paths; lists are compared as a whole."""
    return sorted(_differences(was, would, ""), key=lambda change: change.field)


def _differences(
    was: Mapping[str, Any], would: Mapping[str, Any], within: str
) -> Iterator[FieldChange]:
    for name in was.keys() | would.keys():
        before, after = was.get(name), would.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{within}{name}.")
        elif before != after:
            yield FieldChange(field=f"{within}{name}", was=before, would=after)

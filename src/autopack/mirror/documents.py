"""The JSON files: issues of a phase, issues of a run, backlog of a project."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from functools import cache, lru_cache
from operator import attrgetter
from types import NoneType
from typing import Any

from ..domain.events import wire_time
from ..domain.money import usd_text
from ..domain.run_issues import IndexEntry
from ..views.issues import BacklogEntryAnswer, IssueIndexAnswer, PhaseIssue
from ..views.runs import PhaseDetail, RunDetail

# Escaped because a terminal or an editor that shows the file could execute them.
_UNSHOWN = re.compile(r"[\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
# Identifiers have no quotes, so no name can look like this line.
_REVISION = re.compile(rb'^  "revision": (\d{1,16}),?$', re.MULTILINE)
_INDEX_NAMES = tuple(field.name for field in fields(IndexEntry))
_BACKLOG_NAMES = tuple(name for name in BacklogEntryAnswer.model_fields if name != "issue_key")
_ISSUE_NAMES = tuple(PhaseIssue.model_fields)
_SCALARS = (str, int, NoneType, datetime, float, Decimal)
_index_values = attrgetter(*_INDEX_NAMES)
_backlog_values = attrgetter(*_BACKLOG_NAMES)
_issue_values = attrgetter(*_ISSUE_NAMES)


def phase_issues(run: RunDetail, phase: PhaseDetail) -> bytes:
    """Render `issues/phase_<phase_index>_<phase_id>_issues.json`. (rules §7)"""
    head = {
        "run_id": run.run_id,
        "phase_id": phase.phase_id,
        "phase_index": phase.phase_index,
        "tier_id": phase.tier_id,
        "revision": run.revision,
        "issue_state": phase.issue_state,
        "minor_issue_count": phase.minor_issues_count,
        "major_issue_count": phase.major_issues_count,
    }
    issues = ",\n    ".join(_issue(_hashable(_issue_values(each))) for each in phase.issues)
    listed = f"[\n    {issues}\n  ]" if issues else "[]"
    return _bytes(_indented(head).removesuffix("\n}") + f',\n  "issues": {listed}\n}}')


def run_issue_index(run: RunDetail, index: IssueIndexAnswer) -> bytes:
    """Render `run_issue_index.json`. (rules §7)"""
    return _encode_by_key(
        {"run_id": run.run_id, "revision": run.revision},
        (
            (key, _entry(_INDEX_NAMES, _index_values(entry)))
            for key, entry in index.issues_by_key.items()
        ),
    )


def project_backlog(project_id: str, entries: Sequence[BacklogEntryAnswer]) -> bytes:
    """Render `project_issue_backlog.json`. (rules §7)"""
    return _encode_by_key(
        {"project_id": project_id},
        (
            (entry.issue_key, _entry(_BACKLOG_NAMES, _hashable(_backlog_values(entry))))
            for entry in entries
        ),
    )


def revision_of(head: bytes) -> int | None:
    """Read the revision from the beginning of a JSON file of a run."""
    found = _REVISION.search(head)
    return int(found[1]) if found else None


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON that is safe to show in a terminal."""
    return _bytes(_indented(document))


def encode_sorted(document: Mapping[str, Any]) -> bytes:
    """Return what `json.dumps` with `indent=2` and sorted names does, in a tenth of its time."""
    plain = json.dumps(document, sort_keys=True)
    text = _indented(json.loads(plain))
    # The files of earlier runs, whose hashes are recorded, have these characters escaped.
    if not text.isascii() or "\x7f" in text:
        text = json.dumps(json.loads(plain), indent=2)
    return f"{text}\n".encode()


def lines_of(entries: Iterable[Any]) -> str:
    """Encode the entries of a long list, one a line, for `encode_with_lines`."""
    return ",\n".join(f"    {_LINE.encode(entry)}" for entry in entries)


def encode_with_lines(head: Mapping[str, Any], lists: Mapping[str, str]) -> bytes:
    """Encode a document whose long lists follow its other members."""
    text = _indented(head).removesuffix("\n}")
    for name, lines in lists.items():
        text += f",\n  {_LINE.encode(name)}: " + (f"[\n{lines}\n  ]" if lines else "[]")
    return _bytes(text + "\n}")


def _encode_by_key(head: Mapping[str, Any], entries: Iterable[tuple[str, str]]) -> bytes:
    """Encode with one entry a line: faster than indenting, and easy to search."""
    names = ",\n".join(f"  {_LINE.encode(name)}: {_LINE.encode(head[name])}" for name in head)
    lines = ",\n".join(f"    {_LINE.encode(key)}: {entry}" for key, entry in entries)
    by_key = f"{{\n{lines}\n  }}" if lines else "{}"
    return _bytes(f'{{\n{names},\n  "issues_by_key": {by_key}\n}}')


# A report changes one entry of each file; the text of the others is as it was.


@lru_cache(maxsize=1_024)
def _issue(values: tuple[object, ...]) -> str:
    return _indented(dict(zip(_ISSUE_NAMES, values, strict=True)), "\n    ")


@lru_cache(maxsize=4_096)
def _entry(names: tuple[str, ...], values: tuple[object, ...]) -> str:
    return _LINE.encode(dict(zip(names, values, strict=True)))


def _hashable(values: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(tuple(each) if isinstance(each, list) else each for each in values)


def _indented(value: object, line: str = "\n") -> str:
    """Encode as `json.dumps` does with `indent=2`, which does all of it in Python.

    Most containers have no other one inside. The encoder in C writes those in one call, with the
    line breaks of the indentation as its separators.
    """
    inner = line + "  "
    if isinstance(value, dict | list) and _is_flat(value):
        text = _encoder(inner).encode(value)
        return f"{text[0]}{inner}{text[1:-1]}{line}{text[-1]}"
    if isinstance(value, Mapping) and value:
        members = (f"{_LINE.encode(name)}: {_indented(of, inner)}" for name, of in value.items())
        return f"{{{inner}{f',{inner}'.join(members)}{line}}}"
    if isinstance(value, list | tuple) and value:
        return f"[{inner}{f',{inner}'.join(_indented(each, inner) for each in value)}{line}]"
    return _LINE.encode(value)


def _is_flat(value: dict[str, Any] | list[Any]) -> bool:
    """Return whether no member has lines of its own."""
    members = value.values() if isinstance(value, dict) else value
    return bool(value) and all(
        isinstance(each, _SCALARS) or (isinstance(each, list | tuple) and not each)
        for each in members
    )


@cache
def _encoder(line: str) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, default=_plain, separators=(f",{line}", ": "))


def _bytes(text: str) -> bytes:
    text = _UNSHOWN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    # A lone surrogate becomes its own JSON escape, which is what `backslashreplace` writes.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return usd_text(value)
    if isinstance(value, datetime):
        return wire_time(value)
    raise TypeError(f"{type(value).__name__} cannot be written to a JSON file")


_LINE = json.JSONEncoder(ensure_ascii=False, default=_plain)

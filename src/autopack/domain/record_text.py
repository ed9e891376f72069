"""A record as a text: its shape, the seal of its commit, the chain of its events. (rules §8)

Nothing in it is trusted. What its events make, and whether it may be promoted, is decided in
`record_replay.py`.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from .events import GENESIS_HASH, canonical_json
from .naming import RECORD, record_seals

SCHEMA_VERSION: Final = 1
MAX_SHOWN: Final = 500
MAX_DIGITS: Final = 20

JsonObject = dict[str, Any]


# The record's shape: a type, several of them, a list of one, or the members of an object. Members
# that are not named here came later or say nothing of the verdict.
_TEXT: Final = (str, type(None))
_COMMIT_SHAPE: Final = {
    "sha": str,
    "tree": str,
    "parent": str,
    "kind": str,
    "phase_id": _TEXT,
    "patch_sha256": _TEXT,
    "is_merged": bool,
}
_EVENT_SHAPE: Final = {
    "sequence": int,
    "at": str,
    "actor": str,
    "kind": str,
    "phase_id": _TEXT,
    "tier_id": _TEXT,
    "from_state": _TEXT,
    "to_state": _TEXT,
    "reason": _TEXT,
    "data": dict,
    "previous_hash": str,
    "hash": str,
}
_TIER_SHAPE: Final = {
    "tier_id": str,
    "tier_index": int,
    "state": str,
    "cleanliness": str,
    "cleanliness_reasons": [str],
    "token_cap": int,
    "tokens_used": int,
    "ci_run_cap": int,
    "ci_runs_count": int,
    "minors_tolerated": int,
    "minor_issues_count": int,
    "majors_tolerated": int,
    "major_issues_count": int,
}
_PHASE_SHAPE: Final = {
    "phase_id": str,
    "tier_id": str,
    "tier_index": int,
    "phase_index": int,
    "state": str,
    "ci_profile": str,
    "verdict": _TEXT,
    "completed_by": _TEXT,
    "tokens_used": int,
    "commit": _TEXT,
    "ci_runs": [{"commit_sha": str, "verdict": _TEXT, "is_flaky": bool}],
}
_RECORD_SHAPE: Final[JsonObject] = {
    "schema_version": int,
    "run_id": str,
    "project_id": str,
    "branch": str,
    "base_branch": str,
    "base_commit": str,
    "state": str,
    "failure_code": _TEXT,
    "failure_reason": _TEXT,
    "is_rolled_back": bool,
    "ended_at": str,
    "budgets": {
        "token_cap": int,
        "tokens_used": int,
        "max_minor_issues_total": int,
        "minor_issues_count": int,
        "major_issues_count": int,
    },
    "promotion": {"eligible": bool, "reasons": [str], "warnings": [str]},
    "tiers": [_TIER_SHAPE],
    "phases": [_PHASE_SHAPE],
    "commits": [_COMMIT_SHAPE],
    "files": [{"path": str, "sha256": str}],
    "events": [_EVENT_SHAPE],
}


class RecordError(Exception):
    """A reason against a record after which there is nothing more to check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSubject:
    """What a record is said to be of. `base_branch` is where the branch is to go."""

    run_id: str
    branch: str
    base_branch: str


class Findings:
    """The reasons against a record, as they are found."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.warnings: list[str] = []

    def expect(self, condition: object, reason: str) -> bool:
        if not condition:
            self.reasons.append(reason)
        return bool(condition)


def read_record(
    findings: Findings, data: bytes, message: str, subject: RecordSubject
) -> JsonObject:
    """Return `run.json`, whose shape is as it must be. Raises RecordError."""
    try:
        record = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{RECORD} cannot be read: {error}") from None
    problem = shape_problem(record, _RECORD_SHAPE, RECORD)
    if problem:
        raise RecordError(problem)
    if record["schema_version"] != SCHEMA_VERSION:
        raise RecordError(
            f"{RECORD} is of version {record['schema_version']}, this checker reads"
            f" {SCHEMA_VERSION}: take the checker of the Autopack that made the record"
        )
    seals = record_seals(message)
    if findings.expect(
        len(seals) == 1, "the head of the branch is no record: something was committed after it"
    ):
        findings.expect(
            seals[0] == hashlib.sha256(data).hexdigest(),
            f"{RECORD} is not what the record's commit says: it was changed",
        )
    if not findings.expect(
        record["run_id"] == subject.run_id,
        f"the record is of run '{record['run_id']}', not of '{subject.run_id}'",
    ):
        raise RecordError("a record of another run says nothing of this one")
    findings.expect(
        record["branch"] == subject.branch,
        f"the record is of branch '{record['branch']}', not of '{subject.branch}'",
    )
    findings.expect(
        record["base_branch"] == subject.base_branch,
        f"the run started from '{record['base_branch']}', not from '{subject.base_branch}'",
    )
    return dict(record)


def parse_json(data: bytes) -> Any:
    """Read JSON that says everything once, in numbers of a sane size. Raises ValueError."""

    def members(pairs: list[tuple[str, Any]]) -> JsonObject:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it names a member twice")
        return found

    def integer(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise ValueError("it has a number of too many digits")
        return int(text)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    record = json.loads(
        data.decode("utf-8"), object_pairs_hook=members, parse_int=integer, parse_constant=refuse
    )
    canonical_json(record)  # half of a surrogate pair is no text, and 1e999 no number
    return record


def shape_problem(value: Any, shape: Any, place: str) -> str | None:
    """Say what is not as it must be; None: nothing."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} is no object"
        for name, inner in shape.items():
            if name not in value:
                return f"{place} has no '{name}'"
            problem = shape_problem(value[name], inner, f"{place}: {name}")
            if problem:
                return problem
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        for number, each in enumerate(value):
            problem = shape_problem(each, shape[0], f"{place}[{number}]")
            if problem:
                return problem
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        return f"{place} is {show(value)}, which is not of its kind"
    return None


def show(value: object) -> str:
    """Write a value of any size and content as a piece of one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def check_chain(findings: Findings, events: Iterable[JsonObject]) -> None:
    """Expect each event to be sealed by a hash over itself and the one before. (rules §1)"""
    previous, last_at = GENESIS_HASH, ""
    for number, event in enumerate(events, start=1):
        if not findings.expect(
            event["sequence"] == number, f"event {number} is missing, or out of its place"
        ):
            return
        document = {name: value for name, value in event.items() if name != "hash"}
        sealed = hashlib.sha256(canonical_json(document)).hexdigest()
        if not findings.expect(
            event["previous_hash"] == previous and event["hash"] == sealed,
            f"event {number} ({event['kind']}) was changed: the chain of hashes breaks there",
        ):
            return
        findings.expect(
            event["at"] >= last_at, f"event {number} lies before the one that it follows"
        )
        previous, last_at = sealed, event["at"]

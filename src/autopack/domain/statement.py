"""The in-toto statement of a finished run: provenance in the form of SLSA, in a DSSE envelope.

The statement is a function of the run's record alone, so the checker makes it again and compares.
It says who built, reviewed and judged what, for tools that read provenance and not our record.
(docs/promotion.md)

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .events import canonical_json
from .naming import patch_name, strategy_name
from .outcomes import CommitKind
from .record_text import JsonObject, RecordError, parse_json, shape_problem

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:autopack:build:run:v1"
BUILDER: Final = "urn:autopack:supervisor"
MAX_SIGNATURES: Final = 10
_ENVELOPE_SHAPE: Final = {
    "payload": str,
    "payloadType": str,
    "signatures": [{"keyid": str, "sig": str}],
}
_RUN: Final = ("run_id", "project_id", "base_branch", "run_scope", "safety_profile")
_PHASE: Final = (
    "phase_id",
    "name",
    "task_category",
    "state",
    "completed_by",
    "ci_profile",
    "verdict",
    "sandbox",
    "approved_by",
    "start_commit",
    "commit",
    "dependencies",
)


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of a statement: raw bytes, by the key with this fingerprint."""

    key_id: str
    value: bytes

    def document(self) -> dict[str, str]:
        """Return the signature as the envelope has it."""
        return {"keyid": self.key_id, "sig": base64.b64encode(self.value).decode()}


@dataclass(frozen=True, slots=True)
class Envelope:
    payload: bytes
    signatures: tuple[Signature, ...]


def statement_of(record: JsonObject) -> JsonObject:
    """Return the statement about the work that a record tells of.

    The subject is the last commit of the work, before the record's own. Raises LookupError and
    TypeError for a record of another shape.
    """
    work = record["commits"][-1] if record["commits"] else None
    digest = {"gitCommit": work["sha"] if work else record["base_commit"]}
    if work is not None:
        digest["gitTree"] = work["tree"]
    started = record["events"][0]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": record["branch"], "digest": digest}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    **{name: record.get(name) for name in _RUN},
                    "plan_sha256": started["data"].get("plan_sha256"),
                },
                "internalParameters": {"strategy_version": record.get("strategy_version")},
                "resolvedDependencies": [*_materials(record)],
            },
            "runDetails": {
                "builder": {"id": BUILDER},
                "metadata": {
                    "invocationId": record["run_id"],
                    "startedOn": started["at"],
                    "finishedOn": record["ended_at"],
                },
                "byproducts": [
                    {"name": "events", "digest": {"sha256": record["events"][-1]["hash"]}}
                ],
            },
            "autopack_phases": [_phase(record, phase) for phase in record["phases"]],
            "autopack_promotion": record["promotion"],
        },
    }


def _materials(record: JsonObject) -> Iterable[JsonObject]:
    """Yield what the work was made of: base, earlier runs, strategy and accepted patches."""
    yield {"name": record["base_branch"], "digest": {"gitCommit": record["base_commit"]}}
    for name, commit in (("continues", "continued_commit"), ("rebases", "rebased_commit")):
        if record.get(name) is not None:
            what = {"name": f"record of run {record[name]}"}
            yield {**what, "digest": {"gitCommit": record[commit]}}
    strategy = strategy_name(record.get("strategy_version"))
    for file in record["files"]:
        if file["path"] == strategy:
            yield {"name": strategy, "digest": {"sha256": file["sha256"]}}
    originals = {
        event["data"].get("commit"): event["data"]["original"]
        for event in record["events"]
        if "original" in event["data"]
    }
    for commit in record["commits"]:
        notes = {"commit": commit["sha"], "phase_id": commit["phase_id"]}
        if commit["patch_sha256"] is not None:
            yield {
                "name": patch_name(commit["patch_sha256"]),
                "digest": {"sha256": commit["patch_sha256"]},
                "annotations": notes,
            }
        elif commit["kind"] == CommitKind.REPLAY:
            original = originals[commit["sha"]]
            yield {
                "name": f"commit {original}",
                "digest": {"gitCommit": original},
                "annotations": notes,
            }


def _phase(record: JsonObject, phase: Mapping[str, Any]) -> JsonObject:
    events = [each for each in record["events"] if each["phase_id"] == phase["phase_id"]]
    return {
        **{name: phase.get(name) for name in _PHASE},
        "builders": _actors(events, "BuilderResultReceived", "status"),
        "auditors": _actors(events, "AuditorResultReceived", "recommendation"),
        # With all that a verdict says of itself: commit, sandbox, failing checks, evidence.
        "verdicts": [
            {"at": each["at"], "judge": each["actor"], **each["data"]}
            for each in events
            if each["kind"] == "CiVerdictReceived"
        ],
    }


def _actors(events: Sequence[JsonObject], kind: str, result: str) -> list[JsonObject]:
    return [
        {
            "actor": each["actor"],
            "model": each["data"].get("model"),
            result: each["data"].get(result),
        }
        for each in events
        if each["kind"] == kind
    ]


# The envelope


def signed_bytes(payload: bytes) -> bytes:
    """Return what a signature is over: DSSE's pre-authentication encoding of a payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def payload_of(record: JsonObject) -> bytes:
    return canonical_json(statement_of(record))


def write_envelope(payload: bytes, signatures: Sequence[Mapping[str, str]]) -> bytes:
    """Write `statement.json`; without a signature it only has a form that tools read."""
    document = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        # In one order: Postgres keeps none.
        "signatures": [{"keyid": each["keyid"], "sig": each["sig"]} for each in signatures],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def read_envelope(data: bytes) -> Envelope:
    """Read `statement.json` of a foreign record. Raises RecordError."""
    try:
        document = parse_json(data)
        problem = shape_problem(document, _ENVELOPE_SHAPE, "statement.json")
        if problem:
            raise RecordError(problem)
        if document["payloadType"] != PAYLOAD_TYPE:
            raise RecordError("statement.json has another payloadType")
        if len(document["signatures"]) > MAX_SIGNATURES:
            raise RecordError(f"statement.json has more than {MAX_SIGNATURES} signatures")
        payload = base64.b64decode(document["payload"], validate=True)
        signatures = tuple(
            Signature(each["keyid"], base64.b64decode(each["sig"], validate=True))
            for each in document["signatures"]
        )
    except (binascii.Error, RecursionError, ValueError) as error:
        raise RecordError(f"statement.json cannot be read: {error}") from None
    return Envelope(payload, signatures)

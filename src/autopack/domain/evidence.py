"""What CI measured beside the command on the commit: one entry a kind in a verdict. (rules §6.1)

How the entries come about is the subject of `evidence_rules`; here is their shape, and what a phase
needs for promotion.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .terms import EvidenceKind, EvidenceResult

MAX_EVIDENCE_CHECKS: Final = 20
MAX_EVIDENCE_TEXT: Final = 500
MAX_CHECK_NAME: Final = 160
_MAX_COUNTS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measurement of a verdict.

    `tree` and `base_tree` are git's ids of the tree that it was measured on, and of the one that it
    is compared with. `counts` are pairs in the order of their names. `checks` are the first names
    of those that matter; `checks_count` is how many there are.
    """

    kind: EvidenceKind
    result: EvidenceResult
    reason: str
    command: str | None = None
    tree: str | None = None
    base_tree: str | None = None
    counts: tuple[tuple[str, int], ...] = ()
    checks: tuple[str, ...] = ()
    checks_count: int = 0

    @property
    def text(self) -> str:
        """Say in one line what was measured and found."""
        return evidence_text(self.kind, self.result, self.reason)

    def document(self) -> dict[str, Any]:
        """Return the entry as it is stored, recorded and shown."""
        return {
            "kind": str(self.kind),
            "result": str(self.result),
            "reason": self.reason,
            "command": self.command,
            "tree": self.tree,
            "base_tree": self.base_tree,
            "counts": dict(self.counts),
            "checks": list(self.checks),
            "checks_count": self.checks_count,
        }

    @classmethod
    def read(cls, value: Any) -> Evidence:
        """Read an entry as `document` writes it. Raises TypeError, ValueError."""
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is no evidence")
        unknown = value.keys() - cls.__slots__
        if unknown:
            raise ValueError(f"evidence has no {sorted(unknown)[0]!r}")
        counts, checks = value.get("counts", {}), value.get("checks", [])
        if not isinstance(counts, Mapping) or len(counts) > _MAX_COUNTS:
            raise TypeError("the counts of evidence are an object")
        if not isinstance(checks, list) or len(checks) > MAX_EVIDENCE_CHECKS:
            raise TypeError("the checks of evidence are a short list")
        return cls(
            kind=EvidenceKind(_evidence_word(value.get("kind"))),
            result=EvidenceResult(_evidence_word(value.get("result"))),
            reason=_evidence_word(value.get("reason")),
            command=_evidence_word_or_none(value.get("command")),
            tree=_evidence_word_or_none(value.get("tree")),
            base_tree=_evidence_word_or_none(value.get("base_tree")),
            counts=counted(
                {_evidence_word(name): _evidence_count(count) for name, count in counts.items()}
            ),
            checks=tuple(_evidence_word(name) for name in checks),
            checks_count=_evidence_count(value.get("checks_count", 0)),
        )


def evidence_text(kind: EvidenceKind, result: EvidenceResult, reason: str) -> str:
    """Say in one line what was measured and found."""
    return f"{kind} {result.replace('_', ' ')}: {reason}"


def counted(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return counts in the one order in which an entry has them."""
    return tuple(sorted(counts.items()))


def _evidence_word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _evidence_word_or_none(value: Any) -> str | None:
    return None if value is None else _evidence_word(value)


def _evidence_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def is_refuted(evidence: Iterable[Evidence]) -> bool:
    """Return whether an entry forbids a green verdict. (rules §6.1)"""
    return any(each.result is EvidenceResult.FAILED for each in evidence)


def missing_evidence(
    required: Sequence[EvidenceKind], evidence: Sequence[Evidence]
) -> Iterator[str]:
    """Yield what a green verdict lacks of the evidence that its phase needs. (rules §8)"""
    found = {each.kind: each for each in evidence}
    for kind in required:
        entry = found.get(kind)
        if entry is None:
            yield f"{kind} is missing"
        elif entry.result in (EvidenceResult.FAILED, EvidenceResult.NOT_MEASURED):
            yield entry.text

"""The kinds of seeded faults, and the edit of a file that makes one. (rules §6.1)"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DEFAULT_FAULTS: Final = 5


class FaultOperator(StrEnum):
    """What a fault does to a line."""

    NEGATE_COMPARISON = "negate_comparison"
    NEGATE_CONDITION = "negate_condition"
    SWAP_LOGIC = "swap_logic"  # `and` and `or`
    CHANGE_CONSTANT = "change_constant"
    CHANGE_ARITHMETIC = "change_arithmetic"
    RETURN_NOTHING = "return_nothing"
    DROP_LINE = "drop_line"
    SWAP_ARGUMENTS = "swap_arguments"

    @property
    def is_weak(self) -> bool:
        """Whether such a fault often changes nothing, or breaks the build."""
        return self in (
            FaultOperator.CHANGE_ARITHMETIC,
            FaultOperator.DROP_LINE,
            FaultOperator.SWAP_ARGUMENTS,
        )


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes `start` to `end` of a file, without `end`, become `text`; `line` counts from 1."""

    line: int
    operator: FaultOperator
    start: int
    end: int
    text: bytes

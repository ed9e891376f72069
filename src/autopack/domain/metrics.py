"""Figures of budgets: what of a cap is used, and what is left."""

from __future__ import annotations

from decimal import Decimal
from typing import cast

from .money import ZERO_USD


def utilization(used: float | Decimal, cap: int | Decimal) -> float:
    """Return the used share of a cap, 0 to n, with four digits.

    A cap may be 0; it is then taken as 1, so that the result is always finite.
    """
    return round(float(used) / float(cap or 1), 4)


def left_of(cap: int | Decimal, used: float | Decimal) -> float | Decimal:
    """Return what is left of a cap: a number, or USD as a decimal; never below 0."""
    if isinstance(cap, Decimal):
        return max(ZERO_USD, cap - Decimal(used))
    return max(0, round(cap - cast("float", used), 2))


def is_passed(cap: int | Decimal, used: float | Decimal) -> bool:
    """Return whether more is used than a cap allows: reaching it exactly is allowed. (rules §3)"""
    return used > cap


def has_helped(reviewed: int, completed: int) -> bool | None:
    """Return whether a phase that the Auditor reviewed was completed; None: it reviewed none."""
    return completed > 0 if reviewed else None

"""Money: US dollars as exact decimals with six places. Never a float, so that sums are exact."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

ZERO_USD = Decimal("0.000000")
MAX_USD = Decimal(1_000_000_000)
_PLACE = Decimal("0.000001")
_MILLION = Decimal(1_000_000)


def usd(amount: Decimal | str | int) -> Decimal:
    """Round an amount to six places, half up."""
    return Decimal(amount).quantize(_PLACE, ROUND_HALF_UP)


def usd_text(amount: Decimal) -> str:
    """Return an amount as a decimal string with six places, the form of answers and records."""
    return f"{amount:.6f}"


def short_usd(amount: Decimal) -> str:
    """Return an amount for people: two places, or four where it is less than a dollar."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"


def measured_text(tokens_used: int, tokens_measured: int) -> str:
    """Say how many of the tokens a gateway counted; nothing where it counted none. (rules §3.1)"""
    if not tokens_measured:
        return ""
    return "measured" if tokens_measured >= tokens_used else f"{tokens_measured:,} measured"


def cost_at(
    price: Mapping[str, Any],
    *,
    tokens_used: int,
    input_tokens: int,
    output_tokens: int,
    cached_tokens: int,
) -> Decimal:
    """Price an attempt's tokens, in USD. `price`: USD per million `input`, `output`, `cached`.

    The three kinds do not overlap. Tokens of `tokens_used` beyond them have no known kind and are
    priced as input, since most tokens of an agent are input.
    """
    unknown = max(0, tokens_used - input_tokens - output_tokens - cached_tokens)
    per_input = Decimal(price["input"])
    per_cached = per_input if price.get("cached") is None else Decimal(price["cached"])
    total = (
        (input_tokens + unknown) * per_input
        + cached_tokens * per_cached
        + output_tokens * Decimal(price["output"])
    )
    return usd(total / _MILLION)

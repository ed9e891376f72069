"""The account of one agent's command: what it may spend, has reserved, and has spent.

Used by the gateway's event loop alone, except `spent` and `refusal`, which any thread may read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from ..domain.money import ZERO_USD, cost_at
from .wire import Asked, Usage


class AtCapError(Exception):
    """The budget is used up. The message says which cap was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a command has spent so far.

    `cost_usd` is the part that has prices; `unpriced` are the models that have none. `estimated`
    counts the requests whose usage the provider did not tell, because they were cut short.
    """

    requests: int = 0
    estimated: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = ZERO_USD
    model: str | None = None  # the one with the most tokens
    unpriced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a request in flight holds of the budget."""

    tokens: int
    cost: Decimal


class Account:
    """Reserves each request before it goes out, and books what it used.

    A request whose bounds fit into what is left goes out at once. One that may exceed it waits
    until no other is in flight, and then goes alone. So the cap is passed by one request at most,
    however many the agent sends at once.
    """

    def __init__(
        self,
        tokens: int,
        cost_usd: Decimal | None,
        prices: Mapping[str, Mapping[str, Any]],
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self.spent = Spent()
        self.refusal: str | None = None  # why the first request was refused at the cap
        self._token_cap = tokens
        self._cost_cap = cost_usd
        self._prices = prices
        self._on_refusal = on_refusal
        self._held = Reserved(0, ZERO_USD)
        self._in_flight = 0
        self._models: dict[str, int] = {}
        self._turn = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()

    async def reserve(self, asked: Asked) -> Reserved:
        """Reserve a request; wait where it must go alone. Raises AtCapError."""
        async with self._turn:
            while True:
                self._require_budget()
                bound = self._bound(asked)
                if self._in_flight == 0 or (bound is not None and self._fits(bound)):
                    break
                self._changed.clear()
                await self._changed.wait()
            # A request that may exceed what is left holds all of it, so no other goes beside it.
            held = Reserved(self._tokens_left, self._cost_left) if bound is None else bound
            self._in_flight += 1
            self._held = Reserved(self._held.tokens + held.tokens, self._held.cost + held.cost)
            return held

    def release(self, held: Reserved) -> None:
        """Give a reservation back whose request did not go out."""
        self._in_flight -= 1
        self._held = Reserved(self._held.tokens - held.tokens, self._held.cost - held.cost)
        self._changed.set()

    def book(
        self, held: Reserved, asked: Asked, usage: Usage, answered: str, *, is_estimate: bool
    ) -> None:
        """Replace a reservation by what the request used. `answered`: the model in the answer."""
        self._book(asked, usage, answered, is_estimate=is_estimate)
        self.release(held)

    def _book(self, asked: Asked, usage: Usage, answered: str, *, is_estimate: bool) -> None:
        model = asked.model if asked.model in self._prices else answered or asked.model
        spent = self.spent
        if usage.tokens:
            self._models[model] = self._models.get(model, 0) + usage.tokens
        price = self._prices.get(model)
        is_unpriced = price is None and usage.tokens > 0 and model not in spent.unpriced
        self.spent = replace(
            spent,
            requests=spent.requests + 1,
            estimated=spent.estimated + is_estimate,
            usage=spent.usage + usage,
            cost_usd=spent.cost_usd + self._cost(price, usage),
            model=max(self._models, key=self._models.__getitem__, default=None) or None,
            unpriced=(*spent.unpriced, model) if is_unpriced else spent.unpriced,
        )

    def _cost(self, price: Mapping[str, Any] | None, usage: Usage) -> Decimal:
        if price is None:
            return ZERO_USD
        return cost_at(
            price,
            tokens_used=usage.tokens,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
        )

    @property
    def _tokens_left(self) -> int:
        return self._token_cap - self.spent.usage.tokens - self._held.tokens

    @property
    def _cost_left(self) -> Decimal:
        cap = self._cost_cap
        return ZERO_USD if cap is None else cap - self.spent.cost_usd - self._held.cost

    def _bound(self, asked: Asked) -> Reserved | None:
        if asked.most_input is None:
            return None
        most = Usage(asked.most_input, asked.most_output)
        return Reserved(most.tokens, self._cost(self._prices.get(asked.model), most))

    def _fits(self, bound: Reserved) -> bool:
        has_money = self._cost_cap is None or bound.cost <= self._cost_left
        return has_money and bound.tokens <= self._tokens_left

    def _require_budget(self) -> None:
        spent = self.spent
        why = None
        if spent.usage.tokens >= self._token_cap:
            why = f"{spent.usage.tokens} of {self._token_cap} tokens"
        elif self._cost_cap is not None and spent.cost_usd >= self._cost_cap:
            why = f"{spent.cost_usd} of {self._cost_cap} USD"
        if why is None:
            return
        message = f"The budget of this task is used up: {why}. Do not try again."
        if self.refusal is None:
            self.refusal = message
            self._on_refusal()
        raise AtCapError(message)

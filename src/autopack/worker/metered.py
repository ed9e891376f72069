"""An agent's command behind the gateway: its account, its environment, its options.

(docs/worker.md, Measured spend)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from ..domain.listing import listed
from ..meter.providers import ProviderError, agent_variables, without_keys
from ..meter.wire import Provider
from ..views.work import WorkItemAnswer
from .agents import Agent

if TYPE_CHECKING:
    from ..meter.account import Account, Spent
    from ..meter.server import GatewayServer

Json = dict[str, Any]
# An agent that is refused at the cap may end by itself, and hand in what it has, for so long.
CAP_GRACE_SECONDS: Final = 30.0
# opencode reads settings from it, above those of its files.
_OPENCODE_VARIABLE: Final = "OPENCODE_CONFIG_CONTENT"
# Of opencode's providers: the end of the address, and whose variable has the key.
_OPENCODE: Final = {
    Provider.OPENAI: ("v1", "OPENAI"),
    Provider.ANTHROPIC: ("v1", "ANTHROPIC"),
    Provider.GOOGLE: ("v1beta", "GEMINI"),
}


@dataclass(frozen=True, slots=True)
class Metered:
    """One run of a command behind the gateway."""

    gateway: GatewayServer
    token: str
    account: Account

    def command(self, agent: Agent) -> list[str]:
        """Return the agent's command line; Codex has no variable for its model's address."""
        if agent.kind != "codex":
            return list(agent.command)
        return [agent.command[0], *_codex_options(self.gateway.url), *agent.command[1:]]

    def environment(self, inherited: Mapping[str, str], agent: Agent) -> dict[str, str]:
        """Return the environment of the agent: the gateway's address and token, no model's key."""
        providers = self.gateway.providers
        clean = without_keys(inherited, providers)
        ours = agent_variables(clean, providers, self.gateway.url, self.token)
        if agent.kind == "opencode":
            settings = _with_gateway(opencode_settings(clean), providers, self.gateway.url)
            ours[_OPENCODE_VARIABLE] = json.dumps(settings)
        return clean | ours

    def end(self) -> None:
        """Refuse further requests, and let what is in flight be booked."""
        self.gateway.close(self.token)

    @property
    def spent(self) -> Spent | None:
        """What went through the gateway so far; None where no request did."""
        spent = self.account.spent
        return spent if spent.requests else None


@contextmanager
def metering(
    gateway: GatewayServer | None, item: WorkItemAnswer, at_cap: Callable[[], None]
) -> Iterator[Metered | None]:
    """Open an account with what the item's lease may spend; None without a gateway.

    `at_cap` is called CAP_GRACE_SECONDS after the first request that was refused at the cap.
    """
    if gateway is None:
        yield None
        return
    assert item.lease is not None  # noqa: S101 - for the type checker: it was claimed
    timer = threading.Timer(CAP_GRACE_SECONDS, at_cap)
    timer.daemon = True
    token, account = gateway.open(
        # The phase's tokens that are left, and never more than the claim reserved of the run's:
        # an agent beside this one may spend what is not reserved.
        min(item.left.phase_tokens, item.lease.tokens_reserved),
        None if item.left.run_cost_usd is None else item.lease.cost_reserved_usd,
        {model: price.model_dump() for model, price in item.prices.items()},
        timer.start,
    )
    try:
        yield Metered(gateway, token, account)
    finally:
        gateway.close(token)
        timer.cancel()


def measured_report(report: Json, spent: Spent) -> Json:
    """Return a result with what the gateway measured in place of what the agent says."""
    usage = spent.usage
    return report | {
        "tokens_used": usage.tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens or None,  # some providers do not tell it
        "is_measured": True,
        "model": spent.model or report["model"],
        # A sum without the models that have no price would be taken for the whole cost.
        "cost_usd": None if spent.unpriced else str(spent.cost_usd),
    }


def spent_line(spent: Spent) -> str:
    """Say in one line what was measured, and what is not exact about it."""
    usage = spent.usage
    line = f"measured: {spent.requests} requests, {usage.tokens} tokens"
    if usage.reasoning_tokens:
        line += f" ({usage.reasoning_tokens} of them for reasoning)"
    line += f", {_money(spent.cost_usd, spent.unpriced)}"
    if spent.estimated:
        line += f"; {spent.estimated} of the requests were cut short and are estimated"
    return line


def _money(cost: Decimal, unpriced: Sequence[str]) -> str:
    if unpriced:
        names = [model or "a model whose name is not known" for model in unpriced]
        return f"cost unknown: the ruleset has no price of {listed(names, 3)}"
    return f"{cost} USD"


def _codex_options(url: str) -> list[str]:
    provider = (
        f'{{name="autopack", base_url="{url}/v1", wire_api="responses", env_key="OPENAI_API_KEY"}}'
    )
    return [
        *("-c", 'model_provider="autopack"'),
        *("-c", f"model_providers.autopack={provider}"),
    ]


def opencode_settings(environment: Mapping[str, str]) -> Json:
    """Return the settings that an operator gives opencode by its variable. Raises ProviderError."""
    text = environment.get(_OPENCODE_VARIABLE) or "{}"
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ProviderError(
            f"{_OPENCODE_VARIABLE} is not a JSON object: --meter adds the gateway's address to one"
        )
    return settings


def _with_gateway(settings: Json, providers: Mapping[Provider, object], url: str) -> Json:
    """Return opencode's settings with the gateway as the address and the key of each provider."""
    found = dict(_object(settings.get("provider")))
    for provider, (version, name) in _OPENCODE.items():
        if provider in providers:
            given = _object(found.get(str(provider)))
            ours = {"baseURL": f"{url}/{version}", "apiKey": f"{{env:{name}_API_KEY}}"}
            found[str(provider)] = given | {"options": _object(given.get("options")) | ours}
    return settings | {"provider": found}


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}

"""Where the models are: the providers' addresses and keys, from the worker's own environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from .wire import Provider

# Each is the key of a model, or selects another way to one that would not be measured.
KEY_VARIABLES: Final = (
    "OPENAI_API_KEY",
    "CODEX_API_KEY",
    "CODEX_ACCESS_TOKEN",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "ANTHROPIC_CUSTOM_HEADERS",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GOOGLE_GENAI_USE_GCA",
    "GOOGLE_GENAI_USE_VERTEXAI",
)


class ProviderError(Exception):
    """The environment names no provider, or an unusable one. The message is one line."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider's address, without a slash at the end, and the headers that prove the account."""

    base_url: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(value.removeprefix("Bearer ") for value in self.headers.values())


def providers_of(environment: Mapping[str, str]) -> dict[Provider, Upstream]:
    """Return the providers that have a key or an address. Raises ProviderError.

    As their clients read them: OPENAI_BASE_URL ends with `/v1`, ANTHROPIC_BASE_URL does not. An
    address without a key is that of a local server that asks for none.
    """
    found: dict[Provider, Upstream] = {}
    key = environment.get("OPENAI_API_KEY")
    url = environment.get("OPENAI_BASE_URL") or environment.get("OPENAI_API_BASE")
    if key or url:
        found[Provider.OPENAI] = Upstream(
            _address("OPENAI_BASE_URL", url or "https://api.openai.com/v1"),
            {"authorization": f"Bearer {key}"} if key else {},
        )
    key, token = environment.get("ANTHROPIC_API_KEY"), environment.get("ANTHROPIC_AUTH_TOKEN")
    url = environment.get("ANTHROPIC_BASE_URL")
    if key or token or url:
        headers = {"x-api-key": key} if key else {}
        if token:
            headers["authorization"] = f"Bearer {token}"
        found[Provider.ANTHROPIC] = Upstream(
            _address("ANTHROPIC_BASE_URL", url or "https://api.anthropic.com"), headers
        )
    key, url = environment.get("GEMINI_API_KEY"), environment.get("GOOGLE_GEMINI_BASE_URL")
    if key or url:
        found[Provider.GOOGLE] = Upstream(
            _address("GOOGLE_GEMINI_BASE_URL", url or "https://generativelanguage.googleapis.com"),
            {"x-goog-api-key": key} if key else {},
        )
    if not found:
        raise ProviderError(
            "--meter needs the key of a model in this command's environment: OPENAI_API_KEY, "
            "ANTHROPIC_API_KEY or GEMINI_API_KEY (docs/worker.md, Measured spend)"
        )
    return found


def without_keys(
    environment: Mapping[str, str], providers: Mapping[Provider, Upstream]
) -> dict[str, str]:
    """Return an environment without the models' keys, under whatever name they are in it."""
    secrets = [secret for each in providers.values() for secret in each.secrets if secret]
    return {
        name: value
        for name, value in environment.items()
        if name not in KEY_VARIABLES and not any(secret in value for secret in secrets)
    }


def agent_variables(
    environment: Mapping[str, str],
    providers: Mapping[Provider, Upstream],
    url: str,
    token: str,
) -> dict[str, str]:
    """Return the variables by which clients of the providers find the gateway."""
    ours: dict[str, str] = {}
    if Provider.OPENAI in providers:
        names = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
        ours |= dict.fromkeys(names, f"{url}/v1") | {"OPENAI_API_KEY": token}
    if Provider.ANTHROPIC in providers:
        names = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE")
        ours |= dict.fromkeys(names, url) | {"ANTHROPIC_API_KEY": token}
    if Provider.GOOGLE in providers:
        ours |= {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": token}
    # A proxy cannot reach the loopback address of this machine.
    for name in ("NO_PROXY", "no_proxy"):
        ours[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1")))
    return ours


def _address(name: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_usable = is_usable and not (parts.query or parts.fragment) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ProviderError(f"{name} is not the http(s) address of a model's API")
    return url.rstrip("/")

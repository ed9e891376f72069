"""Agents: the command of each, and how to read the tokens and cost in a known agent's JSON output.

A table, and one function for each format. Output in another format than expected is kept as plain
text: the figures are lost, the result is not. See docs/worker.md, Known agents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Agent:
    """A command, and the name under which runs record it.

    `kind` is its row in KNOWN_AGENTS and in the ruleset's table of messages; `account` labels whose
    limits it works under. `fallback` works while that account has no capacity.
    """

    name: str
    command: Sequence[str]
    kind: str | None = None
    account: str | None = None
    fallback: Agent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An agent's text and the usage that it reports; None for a figure that it does not report."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: Decimal | None = None
    model: str | None = None
    is_known: bool = True  # it was printed in the format of a known agent

    @property
    def tokens(self) -> int:
        kinds = (self.input_tokens, self.output_tokens, self.cached_tokens)
        return sum(kind or 0 for kind in kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAgent:
    """A command line for each role; the prompt is its standard input.

    `hides_failure`: it ends with exit code 0 when its model cannot be asked.
    """

    builder: tuple[str, ...]
    auditor: tuple[str, ...]
    read: Callable[[str], Said | None]
    hides_failure: bool = False


def read_output(agent: str | None, stdout: str, stderr: str = "") -> Said:
    """Read an agent's output; output in an unknown format is plain text.

    Gemini prints the JSON of an error to standard error.
    """
    known = KNOWN_AGENTS.get(agent or "")
    said = (known.read(stdout) or known.read(stderr)) if known else None
    return said or Said(text=stdout, is_known=False)


def is_agents_own_limit(messages: tuple[str, ...], stdout: str, stderr: str) -> str | None:
    """Return the line, among the last ones, that reports a limit of the agent; else None."""
    for output in (stderr, stdout):
        for line in [line.strip() for line in output.splitlines() if line.strip()][-LAST_LINES:]:
            if any(message.casefold() in line.casefold() for message in messages):
                return line
    return None


def _codex(stdout: str) -> Said | None:
    """Read `codex exec --json`: one event a line; input tokens include cached ones."""
    texts: list[str] = []
    totals = {"input": 0, "output": 0, "cached": 0}
    for event in _lines(stdout):
        match event.get("type"):
            case "item.completed":
                item = _object(event, "item")
                if item.get("type") == "agent_message":
                    texts.append(str(item.get("text", "")))
            case "turn.completed":
                usage = _object(event, "usage")
                cached = _count(usage, "cached_input_tokens")
                totals["input"] += max(0, _count(usage, "input_tokens") - cached)
                totals["cached"] += cached
                totals["output"] += _count(usage, "output_tokens")
            case "turn.failed":
                texts.append(str(_object(event, "error").get("message", "")))
            case "error":
                texts.append(str(event.get("message", "")))
    # The error that fails a turn is printed twice.
    return _said("\n".join(dict.fromkeys(texts)), totals) if texts or any(totals.values()) else None


def _claude(stdout: str) -> Said | None:
    """Read `claude -p --output-format json`: one object at the end."""
    result = next((event for event in reversed(list(_lines(stdout))) if "result" in event), None)
    if result is None:
        return None
    usage = _object(result, "usage")
    totals = {
        # Writing to the cache costs at least as much as uncached input.
        "input": _count(usage, "input_tokens") + _count(usage, "cache_creation_input_tokens"),
        "cached": _count(usage, "cache_read_input_tokens"),
        "output": _count(usage, "output_tokens"),
    }
    models = _object(result, "modelUsage")
    return _said(
        str(result["result"]),
        totals,
        cost=_money(result.get("total_cost_usd")),
        model=next(iter(models), None),
    )


def _opencode(stdout: str) -> Said | None:
    """Read `opencode run --format json`: one event a line, with the cost of each step."""
    texts: list[str] = []
    totals = {"input": 0, "output": 0, "cached": 0}
    cost = Decimal(0)
    for event in _lines(stdout):
        part = _object(event, "part")
        match event.get("type"):
            case "text":
                texts.append(str(part.get("text", "")))
            case "step_finish":
                tokens = _object(part, "tokens")
                cache = _object(tokens, "cache")
                totals["input"] += _count(tokens, "input") + _count(cache, "write")
                totals["cached"] += _count(cache, "read")
                totals["output"] += _count(tokens, "output") + _count(tokens, "reasoning")
                cost += _money(part.get("cost")) or 0
            case "error":
                error = _object(event, "error")
                data = _object(error, "data")
                status = f" {data['statusCode']}" if "statusCode" in data else ""
                texts.append(f"{error.get('name', 'error')}{status}: {data.get('message', '')}")
    return _said("\n".join(texts), totals, cost=cost or None) if texts or cost else None


def _gemini(stdout: str) -> Said | None:
    """Read `gemini --output-format json`: one object; prompt tokens include cached ones."""
    answer = _whole(stdout)
    if answer is None or not {"response", "error"} & answer.keys():
        return None
    totals = {"input": 0, "output": 0, "cached": 0}
    models = _object(_object(answer, "stats"), "models")
    for figures in models.values():
        tokens = _object(figures, "tokens") if isinstance(figures, dict) else {}
        cached = _count(tokens, "cached")
        totals["input"] += max(0, _count(tokens, "prompt") - cached) + _count(tokens, "tool")
        totals["cached"] += cached
        totals["output"] += _count(tokens, "candidates") + _count(tokens, "thoughts")
    error = _object(answer, "error").get("message")
    return _said(str(answer.get("response") or error or ""), totals, model=next(iter(models), None))


def _aider(stdout: str) -> Said | None:
    """Read aider's lines about tokens: `Tokens: 2.3k sent, 1k cache hit, 200 received. Cost: …`."""
    totals = {"input": 0, "output": 0, "cached": 0}
    cost: Decimal | None = None
    text: list[str] = []
    for line in stdout.splitlines():
        if not line.startswith("Tokens: "):
            text.append(line)
            continue
        for figure, kind in re.findall(
            r"([\d.,]+[kM]?) (sent|cache hit|cache write|received)", line
        ):
            place = {"received": "output", "cache hit": "cached"}.get(kind, "input")
            totals[place] += _rounded(figure)
        paid = re.search(r"Cost: \$([\d.]+) message", line)
        if paid and (amount := _money(paid[1])) is not None:
            cost = (cost or 0) + amount
    model = re.search(r"^(?:Main model|Model): (\S+)", stdout, re.MULTILINE)
    if not text or not (model or any(totals.values())):
        return None
    return _said("\n".join(text), totals, cost=cost, model=model[1] if model else None)


def _said(
    text: str, totals: Mapping[str, int], *, cost: Decimal | None = None, model: str | None = None
) -> Said:
    if not any(totals.values()):
        return Said(text=text, cost_usd=cost, model=model)
    return Said(
        text=text,
        input_tokens=totals["input"],
        output_tokens=totals["output"],
        cached_tokens=totals["cached"],
        cost_usd=cost,
        model=model,
    )


def _lines(stdout: str) -> Iterator[Json]:
    for line in stdout.splitlines():
        if line.startswith("{") and (event := _parsed(line)) is not None:
            yield event


def _whole(stdout: str) -> Json | None:
    """Read the last JSON object of an output that begins a line; other lines may come before it."""
    return _parsed(stdout[stdout.rfind("\n{") + 1 :])


def _parsed(text: str) -> Json | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(source: Mapping[str, Any], name: str) -> Json:
    value = source.get(name)
    return value if isinstance(value, dict) else {}


def _count(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _rounded(figure: str) -> int:
    factor = {"k": 1_000, "M": 1_000_000}.get(figure[-1], 1)
    try:
        return int(Decimal(figure.rstrip("kM").replace(",", "")) * factor)
    except InvalidOperation:
        return 0


def _money(value: object) -> Decimal | None:
    if not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 else None


LAST_LINES: Final = 10
KNOWN_AGENTS: Final[Mapping[str, KnownAgent]] = {
    "aider": KnownAgent(
        builder=(
            *("aider", "--yes-always", "--no-auto-commits", "--no-check-update", "--no-gitignore"),
            *("--no-pretty", "--no-stream", "--message-file", "/dev/stdin"),
        ),
        auditor=(
            *("aider", "--yes-always", "--no-auto-commits", "--no-check-update", "--no-gitignore"),
            *("--no-pretty", "--no-stream", "--chat-mode", "ask", "--message-file", "/dev/stdin"),
        ),
        read=_aider,
        hides_failure=True,
    ),
    "claude": KnownAgent(
        builder=(
            *("claude", "-p", "--output-format", "json", "--permission-mode", "acceptEdits"),
            *("--allowedTools", "Bash,Edit,Write"),
        ),
        auditor=("claude", "-p", "--output-format", "json", "--allowedTools", "Bash,Read"),
        read=_claude,
    ),
    "codex": KnownAgent(
        builder=("codex", "exec", "--json", "--sandbox", "workspace-write", "-"),
        auditor=("codex", "exec", "--json", "--sandbox", "workspace-write", "-"),
        read=_codex,
    ),
    "gemini": KnownAgent(
        builder=("gemini", "--output-format", "json", "--yolo", "--skip-trust"),
        auditor=("gemini", "--output-format", "json", "--yolo", "--skip-trust"),
        read=_gemini,
    ),
    "opencode": KnownAgent(
        builder=("opencode", "run", "--format", "json"),
        auditor=("opencode", "run", "--format", "json"),
        read=_opencode,
    ),
}

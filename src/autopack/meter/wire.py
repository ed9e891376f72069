"""The wire formats of OpenAI, Anthropic and Google, as far as spending needs them. No network here.

What a request may cost at most, what an answer says it cost, and errors in the provider's form.
Prompts and answers are read and forgotten: only numbers and the model's name leave this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

Json = dict[str, Any]

# The longest answer of today's models. It bounds a request that names no limit of its own.
MOST_OUTPUT: Final = 128_000
# For estimates alone, where a provider's usage is lost. Most text has more bytes a token.
BYTES_A_TOKEN: Final = 3
_END_OF_EVENT: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
# No request has so many tokens of a kind; a provider that tells more is not believed.
_MOST_COUNT: Final = 10**9
# What may be printed and recorded: no spaces, no controls, no marks that turn the text around.
_MODEL_NAME: Final = re.compile(r"[\w.:/@+~-]{1,200}", re.ASCII)


class RequestError(Exception):
    """A request that the gateway does not pass on. The message says why, in one line."""


class Provider(StrEnum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"


class Format(StrEnum):
    """The shape of a request that spends tokens, and of its answer."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"
    GENERATE = "generate"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by kind; none of the first three is part of another, as in docs/rules.md §3.1.

    `reasoning_tokens` are the part of `output_tokens` that the answer does not show.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens + self.cached_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for. `most_input` and `most_output` bound its tokens.

    `most_input` is None where the provider adds input that it stored earlier: that has no bound.
    `body` goes to the provider. `hides_usage`: the gateway asked for the usage, the client did not.
    """

    format: Format
    body: bytes
    model: str
    is_stream: bool
    most_input: int | None
    most_output: int
    hides_usage: bool = False

    def estimated(self, answer_bytes: int, known: Usage | None = None) -> Usage:
        """Return a usage that the provider did not tell, from sizes; `known` is a part of it."""
        output = max(known.output_tokens if known else 0, -(-answer_bytes // BYTES_A_TOKEN))
        if known is not None and known.input_tokens + known.cached_tokens:
            return Usage(known.input_tokens, output, known.cached_tokens)
        return Usage(-(-len(self.body) // BYTES_A_TOKEN), output)


def read_request(kind: Format, body: bytes, *, model: str = "", is_stream: bool = False) -> Asked:
    """Read a request that spends tokens, and ask for its usage. Raises RequestError.

    `model` and `is_stream` are those of the path, where Google's format has them. A token has at
    least one byte, so the size of the body bounds the tokens of its text.
    """
    try:
        return _read_request(kind, body, model, is_stream=is_stream)
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None


def _read_request(kind: Format, body: bytes, model: str, *, is_stream: bool) -> Asked:
    asked = json.loads(body, object_pairs_hook=_named_once)
    if not isinstance(asked, dict):
        raise RequestError("the body is not a JSON object")
    if asked.get("background"):
        raise RequestError("`background` is refused: its usage would come after the answer")
    if kind is not Format.GENERATE:
        is_stream, model = asked.get("stream") is True, asked.get("model", "")
    hides_usage = False
    if kind is Format.CHAT and is_stream:
        options = asked.get("stream_options")
        options = options if isinstance(options, dict) else {}
        if options.get("include_usage") is not True:
            hides_usage = True
            asked["stream_options"] = {**options, "include_usage": True}
            body = json.dumps(asked).encode()
    stored = ("previous_response_id", "conversation", "prompt", "cachedContent", "cached_content")
    return Asked(
        format=kind,
        body=body,
        model=_model_name(model),
        is_stream=is_stream,
        most_input=None if any(asked.get(name) for name in stored) else len(body),
        most_output=_most_output(kind, asked),
        hides_usage=hides_usage,
    )


def _named_once(pairs: list[tuple[str, Any]]) -> Json:
    """Return an object. Readers differ in which of two values of one name they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RequestError("an object in the body has one name twice")
    return found


def _most_output(kind: Format, asked: Json) -> int:
    """Return the bound of the output, from the limits that this format knows.

    A server ignores, or refuses, those of other formats.
    """
    if kind is Format.GENERATE:
        asked = _object(asked, "generationConfig")
    limits = [
        limit
        for name in _LIMITS[kind]
        if type(limit := asked.get(name)) is int and limit > 0  # True is an int, and no limit
    ]
    # So many answers, each up to the limit.
    answers = asked.get("candidateCount" if kind is Format.GENERATE else "n")
    number = answers if isinstance(answers, int) and answers > 1 else 1
    return max(limits, default=MOST_OUTPUT) * number


@dataclass(slots=True)
class Reading:
    """Reads the usage of one answer: the whole document, or the events of its stream.

    `usage` is None until it is known in full; `estimate` is the best figure at any time.
    """

    asked: Asked
    model: str = ""  # the name in the answer, which may have a date
    _told: Json = field(default_factory=dict)
    _is_told: bool = False
    _answer_bytes: int = 0

    @property
    def usage(self) -> Usage | None:
        return _usage(self.asked.format, self._told) if self._is_told else None

    def estimate(self) -> Usage:
        """Return the usage, estimated where the answer ended before it."""
        known = _usage(self.asked.format, self._told) if self._told else None
        return self.usage or self.asked.estimated(self._answer_bytes, known)

    def document(self, body: bytes) -> None:
        """Read an answer that is one document."""
        self._answer_bytes = len(body)
        answer = _parsed(body)
        self._model(answer)
        if self.asked.format is Format.GENERATE:
            self._tell_of_google(answer, is_last=True)
        else:
            self._tell(answer.get("usage"), is_last=True)

    def event(self, event: bytes) -> bool:
        """Read one event of a stream. Returns whether the client may see it."""
        answer = _parsed(_data(event))
        if not answer:
            return True
        match self.asked.format:
            case Format.CHAT:
                self._model(answer)
                choices = answer.get("choices")
                for choice in _objects(answer, "choices"):
                    self._answer_bytes += _letters(_object(choice, "delta"))
                usage = answer.get("usage")
                self._tell(usage, is_last=True)
                return not (self.asked.hides_usage and isinstance(usage, dict) and choices == [])
            case Format.RESPONSES:
                response = _object(answer, "response")
                self._model(response)
                self._answer_bytes += _letters(answer.get("delta"))
                self._tell(response.get("usage"), is_last=True)
            case Format.MESSAGES:
                message = _object(answer, "message")
                self._model(message)
                self._answer_bytes += _letters(answer.get("delta"))
                self._tell(message.get("usage"), is_last=False)
                self._tell(answer.get("usage"), is_last=True)  # totals, not differences
            case Format.GENERATE:
                candidates = _objects(answer, "candidates")
                self._answer_bytes += sum(_letters(each.get("content")) for each in candidates)
                is_last = any("finishReason" in each for each in candidates) or bool(
                    _object(answer, "promptFeedback")
                )
                self._tell_of_google(answer, is_last=is_last)  # totals so far
        return True

    def _tell_of_google(self, answer: Json, *, is_last: bool) -> None:
        self.model = _model_name(answer.get("modelVersion")) or self.model
        self._tell(answer.get("usageMetadata"), is_last=is_last)

    def _model(self, answer: Json) -> None:
        self.model = _model_name(answer.get("model")) or self.model

    def _tell(self, usage: object, *, is_last: bool) -> None:
        if isinstance(usage, dict) and usage:
            self._told |= {name: value for name, value in usage.items() if value is not None}
            self._is_told |= is_last


class Events:
    """Splits the bytes of a stream into its events, each with the empty line that ends it."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def split(self, part: bytes) -> list[bytes]:
        """Return the events that this part completes."""
        start = max(0, len(self._rest) - 3)  # an end may have begun in the part before
        self._rest += part
        events, begin = [], 0
        for found in _END_OF_EVENT.finditer(self._rest, start):
            events.append(bytes(self._rest[begin : found.end()]))
            begin = found.end()
        del self._rest[:begin]
        return events

    @property
    def size(self) -> int:
        """The bytes of the event that is not complete."""
        return len(self._rest)

    def rest(self) -> bytes:
        """Return what came after the last end of an event."""
        return bytes(self._rest)


def error_document(provider: Provider, status: int, message: str) -> Json:
    """Return an error in the provider's form. 429 is its rate limit, here the budget's end."""
    if provider is Provider.ANTHROPIC:
        kind = _ANTHROPIC_ERRORS.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}
    if provider is Provider.GOOGLE:
        return {"error": _google_error(status, message)}
    kind, code = _OPENAI_ERRORS.get(status, ("server_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_event(kind: Format, message: str) -> bytes:
    """Return an error as the last event of a stream that has begun."""
    provider = _PROVIDERS.get(kind, Provider.OPENAI)
    document = error_document(provider, 502, message)
    if kind is Format.RESPONSES:
        document = {"type": "error", "code": "server_error", "message": message, "param": None}
    name = "" if kind in (Format.CHAT, Format.GENERATE) else "event: error\n"
    return f"{name}data: {json.dumps(document)}\n\n".encode()


def _google_error(status: int, message: str) -> Json:
    """Return Google's error. Its clients try again at a 429 that does not name the day's quota."""
    found: Json = {
        "code": status,
        "message": message,
        "status": _GOOGLE_ERRORS.get(status, "INTERNAL"),
    }
    if status == 429:
        kind = "type.googleapis.com/google.rpc.QuotaFailure"
        violation = {"quotaId": "TokensOfTaskPerDay", "description": message}
        found["details"] = [{"@type": kind, "violations": [violation]}]
    return found


_PROVIDERS: Final = {Format.MESSAGES: Provider.ANTHROPIC, Format.GENERATE: Provider.GOOGLE}
_LIMITS: Final[Mapping[Format, tuple[str, ...]]] = {
    Format.CHAT: ("max_tokens", "max_completion_tokens"),
    Format.RESPONSES: ("max_output_tokens",),
    Format.MESSAGES: ("max_tokens",),
    Format.GENERATE: ("maxOutputTokens",),
}
_ANTHROPIC_ERRORS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
_GOOGLE_ERRORS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# OpenAI's clients stop at `insufficient_quota`, and try again at `rate_limit_exceeded`.
_OPENAI_ERRORS: Final = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "unknown_url"),
    413: ("invalid_request_error", None),
    415: ("invalid_request_error", None),
    429: ("insufficient_quota", "insufficient_quota"),
}


class _UntrueError(ValueError):
    """A usage has a value that is no number of tokens."""


def _usage(kind: Format, told: Mapping[str, Any]) -> Usage | None:
    """Return the usage that a provider told; None where it cannot be true.

    Every answer uses tokens, so none at all is not believed either.
    """
    try:
        usage = _counts(kind, told)
    except _UntrueError:
        return None
    return usage if usage.tokens else None


def _counts(kind: Format, told: Mapping[str, Any]) -> Usage:
    if kind is Format.MESSAGES:
        return Usage(
            # Writing to the cache costs at least as much as uncached input.
            _count(told, "input_tokens") + _count(told, "cache_creation_input_tokens"),
            _count(told, "output_tokens"),
            _count(told, "cache_read_input_tokens"),
        )
    if kind is Format.GENERATE:
        thoughts = _count(told, "thoughtsTokenCount")
        cached = _count(told, "cachedContentTokenCount")
        prompt = max(cached, _count(told, "promptTokenCount"))  # the cached ones are part of it
        return Usage(
            prompt - cached + _count(told, "toolUsePromptTokenCount"),
            _count(told, "candidatesTokenCount") + thoughts,
            cached,
            thoughts,
        )
    names = ("prompt", "completion") if kind is Format.CHAT else ("input", "output")
    inputs, outputs = (_count(told, f"{name}_tokens") for name in names)
    of_input, of_output = (_object(told, f"{name}_tokens_details") for name in names)
    cached = min(inputs, _count(of_input, "cached_tokens"))
    reasoning = min(outputs, _count(of_output, "reasoning_tokens"))
    return Usage(inputs - cached, outputs, cached, reasoning)


def _data(event: bytes) -> bytes:
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:].strip() for line in lines)


def _parsed(text: bytes) -> Json:
    if not text.lstrip().startswith(b"{"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _object(source: object, name: str) -> Json:
    value = source.get(name) if isinstance(source, dict) else None
    return value if isinstance(value, dict) else {}


def _objects(source: Json, name: str) -> list[Json]:
    value = source.get(name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _count(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < _MOST_COUNT:
        raise _UntrueError(name)
    return value


def _model_name(value: object) -> str:
    return value if isinstance(value, str) and _MODEL_NAME.fullmatch(value) else ""


def _letters(value: object) -> int:
    """Return the bytes of all texts in a part of an answer, however deep it is."""
    count, left = 0, [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            count += len(each.encode(errors="replace"))
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list):
            left += each
    return count

"""A stand-in for the servers of language models: real agents talk to it, and it follows a script.

It speaks the wire formats of the agents that tests/agents runs: OpenAI's Responses and Chat
Completions, Anthropic's Messages and Google's streamGenerateContent, each only as far as an agent
needs it. A script gets the names of the tools and the results so far, and returns the next turn.
Each turn costs USAGE, so that a test knows which sum an agent must report.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

Json = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens of one turn, by kind: none is part of another."""

    fresh: int = 1_000
    cached: int = 200
    output: int = 30


USAGE: Final = Usage()
MODEL: Final = "stand-in-1"


@dataclass(frozen=True)
class Say:
    """The model's last turn: a text, no tool."""

    text: str


@dataclass(frozen=True)
class Call:
    """A turn that calls one tool. `tool` is the end of its name, as agents add prefixes to it."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Refuse:
    """An error of the server: a status and a message."""

    status: int
    message: str


@dataclass(frozen=True)
class Situation:
    """What the model can see: the prompt's text, the tools, and the results of its calls."""

    prompt: str
    tools: Sequence[str]
    results: Sequence[str]


Turn = Say | Call | Refuse
Script = Callable[[Situation], Turn]


@dataclass
class ModelServer:
    """The server's address, and what it was asked."""

    url: str
    script: Script
    situations: list[Situation] = field(default_factory=list)
    turns: int = 0  # that were answered, each with USAGE
    unknown: list[str] = field(default_factory=list)  # paths that it does not serve

    def play(self, situation: Situation) -> Turn:
        self.situations.append(situation)
        turn = self.script(situation)
        self.turns += not isinstance(turn, Refuse)
        return turn


@contextmanager
def serve_model(script: Script) -> Iterator[ModelServer]:
    """Serve a script on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    model = ModelServer(f"http://127.0.0.1:{server.server_port}", script)
    server.model = model  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._model.unknown.append(f"GET {self.path}")
        self._send(404, {"error": {"message": "not served"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            raw = self._chunks()
        path = self.path.partition("?")[0]
        for ending, answer in _FORMATS.items():
            if re.search(ending, path):
                answer(self, json.loads(raw))
                return
        self._model.unknown.append(f"POST {self.path}")
        self._send(404, {"error": {"message": "not served"}})

    @property
    def _model(self) -> ModelServer:
        model: ModelServer = self.server.model  # type: ignore[attr-defined]
        return model

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, document: Json) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Sequence[tuple[str | None, Json]], end: str = "") -> None:
        lines = [
            (f"event: {name}\n" if name else "") + f"data: {json.dumps(event)}\n\n"
            for name, event in events
        ]
        body = ("".join(lines) + end).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _turn(self, situation: Situation, error: Callable[[Refuse], Json]) -> Say | Call | None:
        """Return the script's turn with the tool's full name; an error is sent, and None."""
        turn = self._model.play(situation)
        if isinstance(turn, Refuse):
            self._send(turn.status, error(turn))
            return None
        if isinstance(turn, Call):
            return Call(_full_name(turn.tool, situation.tools), turn.arguments)
        return turn

    def answer_responses(self, request: Json) -> None:
        """Answer OpenAI's Responses."""
        names, spaces = _responses_tools(request.get("tools", []))
        items = request["input"] if isinstance(request["input"], list) else []
        outputs = [item for item in items if item.get("type", "").endswith("_output")]
        situation = Situation(
            _texts([item for item in items if item.get("role") == "user"]),
            names,
            [_texts(item.get("output")) for item in outputs],
        )
        turn = self._turn(situation, _openai_error)
        if turn is None:
            return
        number = self._model.turns
        if isinstance(turn, Call):
            item: Json = {
                "type": "function_call",
                "id": f"fc_{number}",
                "call_id": f"call_{number}",
                "status": "completed",
                "name": turn.tool,
                "arguments": json.dumps(turn.arguments),
            }
            if turn.tool in spaces:
                item |= {"namespace": spaces[turn.tool]}
            begun, changes = _call_events(item)
        else:
            item = {
                "type": "message",
                "id": f"msg_{number}",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": turn.text, "annotations": []}],
            }
            begun, changes = _text_events(item, turn.text)
        answer = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 0,
            "model": MODEL,
            "status": "completed",
            "output": [item],
            "usage": {
                "input_tokens": USAGE.fresh + USAGE.cached,
                "input_tokens_details": {"cached_tokens": USAGE.cached},
                "output_tokens": USAGE.output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": USAGE.fresh + USAGE.cached + USAGE.output,
            },
        }
        events: list[tuple[str, Json]] = [
            (
                "response.created",
                {"response": answer | {"status": "in_progress", "output": [], "usage": None}},
            ),
            ("response.output_item.added", {"output_index": 0, "item": begun}),
            *changes,
            ("response.output_item.done", {"output_index": 0, "item": item}),
            ("response.completed", {"response": answer}),
        ]
        self._stream(
            [
                (name, {"type": name, "sequence_number": number, **event})
                for number, (name, event) in enumerate(events)
            ]
        )

    def answer_chat(self, request: Json) -> None:
        """Answer OpenAI's Chat Completions."""
        messages = request["messages"]
        situation = Situation(
            _texts([each for each in messages if each["role"] == "user"]),
            [tool["function"]["name"] for tool in request.get("tools") or []],
            [_texts(each["content"]) for each in messages if each["role"] == "tool"],
        )
        turn = self._turn(situation, _openai_error)
        if turn is None:
            return
        message: Json = {"role": "assistant", "content": None}
        if isinstance(turn, Call):
            function = {"name": turn.tool, "arguments": json.dumps(turn.arguments)}
            call = {"id": f"call_{self._model.turns}", "type": "function", "function": function}
            message["tool_calls"] = [call]
        else:
            message["content"] = turn.text
        usage = {
            "prompt_tokens": USAGE.fresh + USAGE.cached,
            "prompt_tokens_details": {"cached_tokens": USAGE.cached},
            "completion_tokens": USAGE.output,
            "total_tokens": USAGE.fresh + USAGE.cached + USAGE.output,
        }
        reason = "tool_calls" if isinstance(turn, Call) else "stop"
        common: Json = {"id": f"chat_{self._model.turns}", "created": 0, "model": MODEL}
        if not request.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            self._send(
                200, common | {"object": "chat.completion", "choices": [choice], "usage": usage}
            )
            return
        if "tool_calls" in message:
            message["tool_calls"][0]["index"] = 0
        common["object"] = "chat.completion.chunk"
        chunks: list[Json] = [
            {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {"choices": [], "usage": usage},
        ]
        self._stream([(None, common | chunk) for chunk in chunks], "data: [DONE]\n\n")

    def answer_messages(self, request: Json) -> None:
        """Answer Anthropic's Messages."""
        blocks = [
            block
            for message in request["messages"]
            if message["role"] == "user"
            for block in (
                message["content"]
                if isinstance(message["content"], list)
                else [{"type": "text", "text": message["content"]}]
            )
        ]
        situation = Situation(
            _texts([block for block in blocks if block["type"] == "text"]),
            [tool["name"] for tool in request.get("tools") or []],
            [_texts(block.get("content")) for block in blocks if block["type"] == "tool_result"],
        )
        turn = self._turn(situation, _anthropic_error)
        if turn is None:
            return
        if isinstance(turn, Call):
            block: Json = {
                "type": "tool_use",
                "id": f"toolu_{self._model.turns}",
                "name": turn.tool,
                "input": {},
            }
            whole: Json = {"input": dict(turn.arguments)}
            delta: Json = {"type": "input_json_delta", "partial_json": json.dumps(turn.arguments)}
        else:
            block = {"type": "text", "text": ""}
            whole = {"text": turn.text}
            delta = {"type": "text_delta", "text": turn.text}
        reason = "tool_use" if isinstance(turn, Call) else "end_turn"
        usage = {
            "input_tokens": USAGE.fresh,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": USAGE.cached,
            "output_tokens": USAGE.output,
        }
        message = {
            "id": f"msg_{self._model.turns}",
            "type": "message",
            "role": "assistant",
            "model": request.get("model", MODEL),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        if not request.get("stream"):
            self._send(200, message | {"content": [block | whole], "stop_reason": reason})
            return
        events: list[Json] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": None},
                "usage": {"output_tokens": USAGE.output},
            },
            {"type": "message_stop"},
        ]
        self._stream([(event["type"], event) for event in events])

    def answer_generate(self, request: Json) -> None:
        """Answer Google's generateContent, streamed or not."""
        parts = [
            part
            for content in request["contents"]
            if content.get("role") != "model"
            for part in content["parts"]
        ]
        declared = [
            function["name"]
            for tool in request.get("tools") or []
            for function in tool.get("functionDeclarations", [])
        ]
        situation = Situation(
            _texts([part for part in parts if "text" in part]),
            declared,
            [
                "\n".join(map(_texts, part["functionResponse"]["response"].values()))
                for part in parts
                if "functionResponse" in part
            ],
        )
        turn = self._turn(situation, _google_error)
        if turn is None:
            return
        part: Json = (
            {"functionCall": {"name": turn.tool, "args": dict(turn.arguments)}}
            if isinstance(turn, Call)
            else {"text": turn.text}
        )
        answer = {
            "candidates": [
                {"index": 0, "content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}
            ],
            "usageMetadata": {
                "promptTokenCount": USAGE.fresh + USAGE.cached,
                "cachedContentTokenCount": USAGE.cached,
                "candidatesTokenCount": USAGE.output,
                "totalTokenCount": USAGE.fresh + USAGE.cached + USAGE.output,
            },
            "modelVersion": MODEL,
        }
        if "stream" in self.path:
            self._stream([(None, answer)])
        else:
            self._send(200, answer)


_FORMATS: Final[Mapping[str, Callable[[_Handler, Json], None]]] = {
    r"/responses$": _Handler.answer_responses,
    r"/chat/completions$": _Handler.answer_chat,
    r"/messages$": _Handler.answer_messages,
    r":(stream)?[gG]enerateContent$": _Handler.answer_generate,
}


def _call_events(item: Json) -> tuple[Json, list[tuple[str, Json]]]:
    """Return a call of Responses as it begins, and the events that complete it."""
    place = {"item_id": item["id"], "output_index": 0}
    text = item["arguments"]
    return item | {"arguments": "", "status": "in_progress"}, [
        ("response.function_call_arguments.delta", place | {"delta": text}),
        ("response.function_call_arguments.done", place | {"arguments": text}),
    ]


def _text_events(item: Json, text: str) -> tuple[Json, list[tuple[str, Json]]]:
    """Return a message of Responses as it begins, and the events that complete it."""
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    (part,) = item["content"]
    return item | {"content": [], "status": "in_progress"}, [
        ("response.content_part.added", place | {"part": part | {"text": ""}}),
        ("response.output_text.delta", place | {"delta": text}),
        ("response.output_text.done", place | {"text": text}),
        ("response.content_part.done", place | {"part": part}),
    ]


def _full_name(tool: str, names: Sequence[str]) -> str:
    found = [name for name in names if name == tool] or [
        name for name in names if name.endswith(tool)
    ]
    assert found, f"no tool {tool} among {sorted(names)}"
    return found[0]


def _responses_tools(tools: Sequence[Json]) -> tuple[list[str], dict[str, str]]:
    """Return the tools' names, and the namespace of each that has one."""
    names: list[str] = []
    spaces: dict[str, str] = {}
    for tool in tools:
        if tool.get("type") == "namespace":
            for inner in tool.get("tools", []):
                names.append(inner["name"])
                spaces[inner["name"]] = tool["name"]
        elif "name" in tool:
            names.append(tool["name"])
    return names, spaces


def _texts(content: object) -> str:
    """Join all texts of any nested content."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(map(_texts, content))
    if isinstance(content, dict):
        return _texts(content.get("text", content.get("content", "")))
    return ""


def _openai_error(refuse: Refuse) -> Json:
    kind = "rate_limit_exceeded" if refuse.status == 429 else "server_error"
    return {"error": {"message": refuse.message, "type": kind, "code": kind}}


def _anthropic_error(refuse: Refuse) -> Json:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refuse.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": refuse.message}}


def _google_error(refuse: Refuse) -> Json:
    status = {401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}.get(refuse.status, "INTERNAL")
    return {"error": {"code": refuse.status, "message": refuse.message, "status": status}}

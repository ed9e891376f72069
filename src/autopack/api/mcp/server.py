"""The MCP server on the official SDK: tools, resources, prompts. Imported at the first request.

The SDK's upper layer (`MCPServer`) is not used: it accepts unknown arguments, and would turn a
refusal into a sentence.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ... import __version__, tracing
from ...domain.access import Caller, MissingRoleError
from ...domain.errors import AutopackError
from ...domain.values import Problems
from ...services import branches, runs
from ...services.context import AppContext
from ...services.replies import Answer
from ..errors import Problem, failure_document, invalid_document
from ..guard import caller_of
from ..reports import run_summary
from ..runs import list_runs
from ..turns import NoTurnError, Turns, run_of
from .prompts import PROMPTS, SERVER_INSTRUCTIONS
from .tools import TOOLS, GetRun, Tool

if TYPE_CHECKING:
    from ...tracing import Span

Context = ServerRequestContext[Any, Request]
ResultT = TypeVar("ResultT")

LISTED_RUNS = 50
RUN_RESOURCES = {
    "summary": ("application/json", "the run as a whole: budgets, issues, tiers, phases, timeline"),
    "diff": ("text/x-diff", "the difference of the run's branch, as a patch that git applies"),
}
_RESOURCE = re.compile(r"autopack://runs/([^/]+)/(summary|diff)\Z")


def make_manager(context: AppContext, turns: Turns) -> StreamableHTTPSessionManager:
    """Serve a context by Streamable HTTP without sessions: requests do not depend on each other."""
    calls = _Calls(context, turns)
    server = Server(
        "autopack",
        version=__version__,
        title="Autopack Supervisor",
        instructions=SERVER_INSTRUCTIONS,
        get_tool_input_schema=calls.input_schema,
        on_list_tools=calls.list_tools,
        on_call_tool=calls.call_tool,
        on_list_resources=calls.list_resources,
        on_list_resource_templates=_list_resource_templates,
        on_read_resource=calls.read_resource,
        on_list_prompts=_list_prompts,
        on_get_prompt=calls.get_prompt,
    )
    return StreamableHTTPSessionManager(
        server,
        json_response=True,
        stateless=True,
        # AccessMiddleware has checked Host, Origin and size already, for every path.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=context.settings.max_body_bytes,
    )


def _caller(context: Context) -> Caller:
    """Return who sent the message: its HTTP request went through AccessMiddleware."""
    assert context.request is not None  # noqa: S101 - every message comes by HTTP
    return caller_of(context.request.scope)


class _Calls:
    """The handlers that need the context; use cases block, so they run in threads."""

    def __init__(self, context: AppContext, turns: Turns) -> None:
        self.context = context
        self.turns = turns
        self.tools = {name: _described(name, tool) for name, tool in TOOLS.items()}

    def input_schema(self, name: str) -> dict[str, Any] | None:
        """Return a tool's schema, so that the SDK does not list all tools for each call."""
        return self.tools[name].input_schema if name in self.tools else None

    async def list_tools(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=list(self.tools.values()))

    async def call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = TOOLS.get(params.name)
        if tool is None:
            raise _invalid(f"there is no tool {params.name[:100]!r}", {"allowed": list(TOOLS)})
        arguments = params.arguments or {}
        run_id = None if tool.is_read_only else run_of(arguments, None)
        caller = _caller(context)
        # The SDK's task is not that of the HTTP request, so the trace is handed over.
        parent = context.request.scope.get("traceparent") if context.request else None
        with tracing.span(f"tools/call {params.name}", parent=parent) as span:
            try:
                async with self.turns.take(run_id):
                    result = await run_in_threadpool(self._call, caller, tool, arguments, span)
            except NoTurnError as error:
                result = _result(failure_document(error), is_error=True)
            if span is not None and result.is_error and result.structured_content:
                span.set_attribute("error.type", result.structured_content["code"])
        return result

    def _call(
        self, caller: Caller, tool: Tool, arguments: dict[str, Any], span: Span | None
    ) -> types.CallToolResult:
        try:
            acting = caller.acting(tool.operation)
        except MissingRoleError as error:
            return _result(failure_document(error), is_error=True)
        try:
            call = tool.call.model_validate(arguments, context=Problems())
        except ValidationError as error:
            return _result(invalid_document(error.errors(), tool.call), is_error=True)
        if span is not None:
            for name in {"run_id", "phase_id"} & call.model_fields_set:
                span.set_attribute(f"autopack.{name}", getattr(call, name))
        try:
            given = tool.run(self.context.for_caller(acting), call)
            body = given.body if isinstance(given, Answer) else given
            document = tool.answer.model_validate(body).model_dump(mode="json")
        except Exception as error:
            is_repeat = isinstance(error, AutopackError) and error.is_repeat
            return _result(failure_document(error), is_repeat=is_repeat, is_error=True)
        return _result(document, is_repeat=isinstance(given, Answer) and given.is_repeat)

    async def list_resources(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        cursor = params.cursor if params else None
        page = await _in_thread(lambda: list_runs(self.context, limit=LISTED_RUNS, cursor=cursor))
        return types.ListResourcesResult(
            next_cursor=page.next_cursor,
            resources=[
                types.Resource(
                    uri=f"autopack://runs/{run.run_id}/{name}",
                    name=f"{run.run_id} {name}",
                    description=f"Run '{run.run_id}' ({run.state}): {meaning}",
                    mime_type=mime_type,
                )
                for run in page.runs
                for name, (mime_type, meaning) in RUN_RESOURCES.items()
            ],
        )

    async def read_resource(
        self, context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        content = await _in_thread(lambda: self._read(params.uri))
        return types.ReadResourceResult(contents=[content])

    def _read(self, uri: str) -> types.TextResourceContents | types.BlobResourceContents:
        match = _RESOURCE.match(uri)
        if match is None:
            raise _invalid(
                f"there is no resource {uri[:200]!r}",
                {"allowed": [f"autopack://runs/{{run_id}}/{name}" for name in RUN_RESOURCES]},
            )
        run_id, name = _run_id({"run_id": match[1]}), match[2]
        mime_type, _ = RUN_RESOURCES[name]
        if name == "summary":
            text = run_summary(self.context, run_id).model_dump_json()
            return types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
        diff = branches.diff(self.context, run_id, None)
        try:
            return types.TextResourceContents(uri=uri, mime_type=mime_type, text=diff.decode())
        except UnicodeDecodeError:
            blob = base64.b64encode(diff).decode()
            return types.BlobResourceContents(uri=uri, mime_type=mime_type, blob=blob)

    async def get_prompt(
        self, context: Context, params: types.GetPromptRequestParams
    ) -> types.GetPromptResult:
        prompt = PROMPTS.get(params.name)
        if prompt is None:
            raise _invalid(f"there is no prompt {params.name[:100]!r}", {"allowed": list(PROMPTS)})
        run_id = await _in_thread(lambda: self._known_run(params.arguments or {}))
        text = types.TextContent(text=prompt.text.format(run_id=run_id))
        return types.GetPromptResult(
            description=prompt.description,
            messages=[types.PromptMessage(role="user", content=text)],
        )

    def _known_run(self, arguments: dict[str, str]) -> str:
        return runs.get_run(self.context, _run_id(arguments)).run_id


async def _list_resource_templates(
    context: Context, params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult(
        resource_templates=[
            types.ResourceTemplate(
                uri_template=f"autopack://runs/{{run_id}}/{name}",
                name=f"run {name}",
                description=meaning.capitalize(),
                mime_type=mime_type,
            )
            for name, (mime_type, meaning) in RUN_RESOURCES.items()
        ]
    )


async def _list_prompts(
    context: Context, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    run_id = types.PromptArgument(name="run_id", description="The run to work on.", required=True)
    return types.ListPromptsResult(
        prompts=[
            types.Prompt(name=name, description=prompt.description, arguments=[run_id])
            for name, prompt in PROMPTS.items()
        ]
    )


def _described(name: str, tool: Tool) -> types.Tool:
    # Some clients validate an error's content by the schema too, so the schema allows a problem.
    either: Any = tool.answer | Problem
    return types.Tool(
        name=name,
        title=name.replace("_", " ").capitalize(),
        description=tool.description,
        input_schema=tool.call.model_json_schema(),
        output_schema={"type": "object", **TypeAdapter(either).json_schema(mode="serialization")},
        annotations=types.ToolAnnotations(
            read_only_hint=tool.is_read_only,
            destructive_hint=False,
            open_world_hint=False,
        ),
    )


def _result(
    document: dict[str, Any], *, is_repeat: bool = False, is_error: bool = False
) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(text=json.dumps(document, ensure_ascii=False))],
        structured_content=document,
        is_error=is_error,
        meta={"idempotency_replayed": True} if is_repeat else None,
    )


async def _in_thread(use_case: Callable[[], ResultT]) -> ResultT:
    """Run a blocking use case. A refusal becomes a protocol error with the problem as data."""
    try:
        return await run_in_threadpool(use_case)
    except MCPError:
        raise
    except Exception as error:
        problem = failure_document(error)
        is_server_error = problem["status"] >= 500
        code = types.INTERNAL_ERROR if is_server_error else types.INVALID_PARAMS
        raise MCPError(code, problem["detail"], problem) from None


def _run_id(arguments: dict[str, str]) -> str:
    try:
        return GetRun.model_validate(arguments).run_id
    except ValidationError as error:
        problem = invalid_document(error.errors(), GetRun)
        raise _invalid(problem["detail"], problem) from None


def _invalid(detail: str, data: dict[str, Any]) -> MCPError:
    return MCPError(types.INVALID_PARAMS, detail, data)

"""A request to ``/v1/responses`` as the body of a chat completion, for providers that have only those.

Invariant: pure; what a chat completion cannot do is refused by name where it would change the answer. Parameters that
neither wire knows pass, as they do in a chat completion. Not here: what is refused for every provider (``check``).
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.translate.responses.items import CUSTOM_INPUT, to_messages
from meterhouse.translate.responses.shape import ResponsesFormat, ResponsesRequest, ResponsesTool

Fields = dict[str, Any]

_SAME = ("model", "temperature", "top_p", "service_tier", "user", "safety_identifier", "prompt_cache_key")
"""Parameters of one meaning and one name on both wires."""
_OWN = frozenset(ResponsesRequest.__struct_fields__) | {
    "access_programs",
    "context_management",
    "conversation",
    "image",
    "previous_response_id",
    "prompt",
    "prompt_cache_retention",
}
_CALLERS_MODES = (None, "standard")
_NULL = b"null"
_MAX_NAME = 64
"""A chat completion's functions have shorter names."""


def to_chat(request: ResponsesRequest, fields: Mapping[str, Raw]) -> bytes:
    """Return the body of the chat completion.

    Args:
        request: checked.
        fields: as they came, of which those that only a provider knows pass.

    Raises:
        Malformed: It asks for what no chat completion can do.
    """
    if request.moderation is not None:
        raise _unsupported("moderation", "'moderation' is not supported by this model.", "unsupported_parameter")
    out: Fields = {name: raw for name, raw in fields.items() if name not in _OWN and bytes(raw) != _NULL}
    for name in _SAME:
        if (value := getattr(request, name)) is not None:
            out[name] = value
    out["messages"] = to_messages(request)
    if request.max_output_tokens is not None:
        out["max_completion_tokens"] = request.max_output_tokens
    out |= _logprobs(request) | _text(request) | _reasoning(request) | _tools(request)
    out["stream"] = bool(request.stream)
    if request.stream:
        out["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(out)


def custom_tools(request: ResponsesRequest) -> frozenset[str]:
    """Return the names of the custom tools, whose calls are told apart from those of functions by them."""
    return frozenset(tool.name for tool in request.tools or () if tool.type == "custom" and tool.name)


def wants_logprobs(request: ResponsesRequest) -> bool:
    """Whether the answer's text shall come with the probabilities of its tokens."""
    return "message.output_text.logprobs" in (request.include or ()) or bool(request.top_logprobs)


def _logprobs(request: ResponsesRequest) -> Fields:
    if not wants_logprobs(request):
        return {}
    top = {"top_logprobs": request.top_logprobs} if request.top_logprobs else {}
    return {"logprobs": True, **top}


def _text(request: ResponsesRequest) -> Fields:
    if request.text is None:
        return {}
    out: Fields = {}
    if request.text.verbosity is not None:
        out["verbosity"] = request.text.verbosity
    form = request.text.format
    if form is not None and form.type == "json_object":
        out["response_format"] = {"type": "json_object"}
    elif form is not None and form.type == "json_schema":
        out["response_format"] = {"type": "json_schema", "json_schema": _schema(form)}
    elif form is not None and form.type != "text":
        text = "'text.format.type' must be text, json_object or json_schema."
        raise _unsupported("text.format.type", text)
    return out


def _schema(form: ResponsesFormat) -> Fields:
    for name in ("name", "schema"):
        if getattr(form, name) is None:
            param = f"text.format.{name}"
            raise Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    given = {"name": form.name, "description": form.description, "schema": form.schema, "strict": form.strict}
    return {name: value for name, value in given.items() if value is not None}


def _reasoning(request: ResponsesRequest) -> Fields:
    if request.reasoning is None:
        return {}
    if request.reasoning.mode not in _CALLERS_MODES:
        text = f"'reasoning.mode' cannot be '{request.reasoning.mode}' for this model."
        raise _unsupported("reasoning.mode", text)
    return {"reasoning_effort": request.reasoning.effort} if request.reasoning.effort is not None else {}


def _tools(request: ResponsesRequest) -> Fields:
    if not request.tools:
        return {}
    tools = list(enumerate(request.tools))
    choice: Any = request.tool_choice
    if isinstance(choice, dict):
        if choice["type"] == "allowed_tools":
            allowed = {tool["name"] for tool in choice["tools"]}
            tools = [(index, tool) for index, tool in tools if tool.name in allowed]
            choice = choice["mode"]
        else:
            choice = {"type": "function", "function": {"name": choice["name"]}}
    if not tools:
        raise _unsupported("tool_choice.tools", "'tool_choice' allows none of the tools that were sent.")
    out: Fields = {"tools": [_tool(tool, f"tools[{index}]") for index, tool in tools]}
    if choice is not None:
        out["tool_choice"] = choice
    if request.parallel_tool_calls is not None:
        out["parallel_tool_calls"] = request.parallel_tool_calls
    return out


def _tool(tool: ResponsesTool, param: str) -> Fields:
    if len(tool.name or "") > _MAX_NAME:
        text = f"'{param}.name' must have at most {_MAX_NAME} characters for this model."
        raise _unsupported(f"{param}.name", text)
    function: Fields = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.type == "custom":
        if tool.format is not None and tool.format.get("type") != "text":
            text = f"'{param}.format' must be text for this model: no grammar can be enforced."
            raise _unsupported(f"{param}.format", text)
        function["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_INPUT: {"type": "string"}},
            "required": [CUSTOM_INPUT],
            "additionalProperties": False,
        }
        return {"type": "function", "function": function}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _unsupported(param: str, text: str, code: str = "unsupported_value") -> Malformed:
    return Malformed(text, param=param, code=code)

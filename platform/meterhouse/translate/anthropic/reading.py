"""A client's ``/v1/messages`` request, checked, and as OpenAI's chat request.

Everything is held to a list of what is known: whatever names something that Anthropic stores, has Anthropic run, or
charges beside the tokens is refused, for all tenants share the operator's account there. What only Anthropic can be
told is remembered (``only_anthropic``), and is a refusal where another provider would answer.

Invariant: pure. Not here: the parts of messages (``blocks``), the answer (``writing``).
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from meterhouse.errors import Malformed
from meterhouse.translate.anthropic.blocks import Block, Telling, Turn, tell_system, tell_turn
from meterhouse.translate.anthropic.caching import refuse_long_caching

Fields = dict[str, Raw]

_STORED = ("container", "diagnostics", "fallback_credit_token", "mcp_servers", "thread")
_CLIENT_TOOLS = ("bash_", "text_editor_", "memory_", "computer_", "browser_toolset_")
"""Tools whose schema only Anthropic's models know, and that the client runs. All others are run by Anthropic."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TIERS = {"auto": "auto", "standard_only": "default"}
_EFFORT_BY_BUDGET = ((10_000, "high"), (5_000, "medium"), (0, "low"))
_PLAIN_SCHEMA = "answer"
_MOST_STOPS = 4
_LONGEST_NAME = 64
"""Both are OpenAI's; Anthropic takes more of either."""


class _Tool(msgspec.Struct):
    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: list[str] | None = None


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: Annotated[int, Meta(ge=1_024)] | None = None


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _Output(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Edit(msgspec.Struct):
    type: str


class _ContextManagement(msgspec.Struct):
    edits: list[_Edit] = field(default_factory=list)


class _Request(msgspec.Struct, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[Turn], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    system: str | list[Block] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    metadata: _Metadata | None = None
    output_config: _Output | None = None
    output_format: _Format | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    inference_geo: Literal["global"] | None = None
    context_management: _ContextManagement | None = None


_KNOWN = frozenset({*_Request.__struct_fields__, "cache_control"})

_REQUESTS = msgspec.json.Decoder(_Request)
_FIELDS = msgspec.json.Decoder(Fields)


@dataclass(frozen=True, slots=True)
class MessagesAsked:
    """A request in both shapes."""

    body: bytes
    """OpenAI's."""
    fields: Fields
    """The request as it came, one level deep, without what was null."""
    user_id: str | None
    only_anthropic: Malformed | None
    """Why it cannot be told to any other provider."""
    untold_bytes: int
    """Text of it that is not in ``body`` and that Anthropic may count: signatures, hidden thoughts."""


def read_request(body: bytes, *, needs_bound: bool = True) -> MessagesAsked:
    """Check a request and tell it in OpenAI's shape.

    Args:
        body: the request.
        needs_bound: whether ``max_tokens`` must be there; it is not where tokens are only counted.

    Raises:
        Malformed: it is no request, or asks for what nobody is given here.
    """
    try:
        fields = {name: raw for name, raw in _FIELDS.decode(body).items() if bytes(raw) != b"null"}
        request = _REQUESTS.decode(body)
        whole = msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise Malformed("The request body is nested too deeply.", code="invalid_json") from None
    _check(fields, request, needs_bound=needs_bound)
    refuse_long_caching(whole)
    telling = Telling()
    out = _tell(request, telling)
    # Of a tool, Anthropic reads more than others are told (examples of its input).
    told_bytes = len(msgspec.json.encode(out.get("tools", [])))
    telling.untold_bytes += max(0, len(fields.get("tools", b"")) - told_bytes)
    return MessagesAsked(
        body=msgspec.json.encode(out),
        fields=fields,
        user_id=request.metadata.user_id if request.metadata is not None else None,
        only_anthropic=telling.only_anthropic,
        untold_bytes=telling.untold_bytes,
    )


def signed_messages(messages: Raw) -> Raw:
    """Return messages without the thoughts that Anthropic did not sign, and without turns of nothing else.

    It refuses those of other providers. Messages that have none are returned as they are, byte for byte.
    """
    if b'"thinking"' not in bytes(messages):
        return messages
    kept: list[dict[str, Any]] = []
    has_unsigned = False
    for turn in msgspec.json.decode(messages, type=list[dict[str, Any]]):
        content = turn.get("content")
        if isinstance(content, list):
            signed = [block for block in content if block.get("type") != "thinking" or block.get("signature")]
            has_unsigned |= len(signed) < len(content)
            content = signed
        if content:
            kept.append({**turn, "content": content})
    return Raw(msgspec.json.encode(kept)) if has_unsigned else messages


def _invalid(text: str) -> Malformed:
    what, found, place = text.partition(" - at `$")
    path = place.rstrip("`").lstrip(".") if found else ""
    return Malformed(f"{path}: {what}" if path else what, param=path or None, code="invalid_value")


def _check(fields: Fields, request: _Request, *, needs_bound: bool) -> None:
    for name in _STORED:
        if name in fields:
            raise Malformed(
                f"'{name}' names what is stored at a provider or reached from it, which is not supported.",
                param=name,
                code="unsupported_parameter",
            )
    if unknown := sorted(fields.keys() - _KNOWN):
        name = unknown[0][:64]
        raise Malformed(f"{name}: Extra inputs are not permitted.", param=name, code="unsupported_parameter")
    if needs_bound and request.max_tokens is None:
        raise Malformed("max_tokens: Field required.", param="max_tokens", code="missing_required_parameter")
    for index, tool in enumerate(request.tools or ()):
        _check_tool(tool, index)
    for edit in request.context_management.edits if request.context_management is not None else ():
        if not edit.type.startswith("clear_"):
            raise Malformed(
                "Of context_management only edits that clear are supported.",
                param="context_management.edits",
                code="unsupported_value",
            )


def _check_tool(tool: _Tool, index: int) -> None:
    param = f"tools[{index}]"
    if tool.type not in {None, "custom"} and not (tool.type or "").startswith(_CLIENT_TOOLS):
        raise Malformed(
            "Tools that Anthropic runs (web search, code execution and the like) are not supported: they cost money"
            " of their own, or work with what is stored there.",
            param=f"{param}.type",
            code="unsupported_value",
        )
    if tool.type in {None, "custom"} and (not tool.name or tool.input_schema is None):
        name = "input_schema" if tool.name else "name"
        raise Malformed(f"{param}.{name}: Field required.", param=f"{param}.{name}", code="missing_required_parameter")
    if tool.allowed_callers is not None and tool.allowed_callers != ["direct"]:
        raise Malformed("Only 'direct' may call a tool here.", param=f"{param}.allowed_callers")


def _tell(request: _Request, telling: Telling) -> dict[str, Any]:
    messages = [*tell_system(request.system, telling)]
    for index, turn in enumerate(request.messages):
        messages += tell_turn(turn, index, telling)
    out: dict[str, Any] = {"model": request.model, "messages": messages}
    for name in ("max_tokens", "temperature", "top_p", "top_k"):
        if (value := getattr(request, name)) is not None:
            out[name] = value
    _tell_stops(out, request.stop_sequences or [], telling)
    if request.stream:
        out["stream"] = True
        out["stream_options"] = {"include_usage": True}
    if request.metadata is not None and request.metadata.user_id:
        out["user"] = request.metadata.user_id
    if request.service_tier is not None:
        out["service_tier"] = _TIERS[request.service_tier]
    if request.tools:
        out["tools"] = [_tell_tool(tool, index, telling) for index, tool in enumerate(request.tools)]
        _tell_choice(out, request.tool_choice)
    _tell_thinking(out, request)
    form = request.output_config.format if request.output_config is not None else None
    if (form := form or request.output_format) is not None:
        schema = {"name": _PLAIN_SCHEMA, "schema": form.schema, "strict": True}
        out["response_format"] = {"type": "json_schema", "json_schema": schema}
    return out


def _tell_stops(out: dict[str, Any], stops: list[str], telling: Telling) -> None:
    if stops:
        out["stop"] = stops[:_MOST_STOPS]
    if len(stops) > _MOST_STOPS:
        telling.leave_to_anthropic(f"This model takes at most {_MOST_STOPS} stop sequences.", "stop_sequences")


def _tell_tool(tool: _Tool, index: int, telling: Telling) -> dict[str, Any]:
    if tool.type not in {None, "custom"}:
        telling.leave_to_anthropic("This model does not know Anthropic's own tools.", f"tools[{index}].type")
        return {"type": tool.type, "name": tool.name}
    if len(tool.name) > _LONGEST_NAME:
        telling.leave_to_anthropic(f"This model's tools have names of at most {_LONGEST_NAME} characters.", "tools")
        telling.untold_bytes += len(tool.name) - _LONGEST_NAME
    function: dict[str, Any] = {"name": tool.name[:_LONGEST_NAME], "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tell_choice(out: dict[str, Any], choice: _ToolChoice | None) -> None:
    if choice is None:
        return
    if choice.type == "tool":
        if not choice.name:
            raise Malformed("tool_choice.name: Field required.", param="tool_choice.name")
        out["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        out["tool_choice"] = _CHOICES[choice.type]
    if choice.disable_parallel_tool_use:
        out["parallel_tool_calls"] = False


def _tell_thinking(out: dict[str, Any], request: _Request) -> None:
    """Set an effort where one was asked for; that nothing is to be thought has no word that every provider takes."""
    effort: str | None = request.output_config.effort if request.output_config is not None else None
    thinking = request.thinking
    if effort is None and thinking is not None and thinking.type == "enabled":
        budget = thinking.budget_tokens or 0
        effort = next(word for least, word in _EFFORT_BY_BUDGET if budget >= least)
    if effort is not None and (thinking is None or thinking.type != "disabled"):
        out["reasoning_effort"] = effort

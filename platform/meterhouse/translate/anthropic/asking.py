"""OpenAI's chat request as the body of Anthropic's ``/v1/messages``.

Only what is known is built, so that no unknown field can ask Anthropic for something that costs money or is stored
there. Invariant: pure; what Anthropic cannot do is refused by name, what would not change the answer is left out. Not
here: the messages (``turns``), the answer (``hearing``).
"""

from typing import Any

import msgspec

from meterhouse.errors import Malformed
from meterhouse.translate.anthropic.caching import refuse_long_caching
from meterhouse.translate.anthropic.turns import ChatMessage, to_turns

BUDGETS = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384, "xhigh": 24_576, "max": 32_768}
"""Tokens to think with, for the models that take a number of them and no effort."""
LEAST_BUDGET = 1_024
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_NO_SCHEMA = {"type": "object", "properties": {}}
_TIERS = {"auto": "auto", "default": "standard_only"}
_REFUSED = (
    "audio",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "moderation",
    "top_logprobs",
    "web_search_options",
    "frequency_penalty",
    "presence_penalty",
)
"""What would change the answer, and has no counterpart; their empty values mean nothing and are left out."""


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _Function | None = None
    cache_control: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    """What is read of a request; OpenAI's names, and those of Anthropic's that clients send beside them."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    n: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    thinking: dict[str, Any] | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    cache_control: dict[str, Any] | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    moderation: Any = None
    top_logprobs: Any = None
    web_search_options: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None


_REQUESTS = msgspec.json.Decoder(_Request)


def to_messages_request(body: bytes, *, upstream_model: str, default_max_tokens: int, thinks_by_budget: bool) -> bytes:
    """Return the body for ``/v1/messages``.

    Args:
        body: a chat completion request.
        upstream_model: the name of the model there.
        default_max_tokens: Anthropic wants a bound; this one where none was asked for.
        thinks_by_budget: whether the model is told to think by a number of tokens, as those up to Claude 4.5 are, and
            not by an effort.

    Raises:
        Malformed: it asks for what Anthropic cannot do, or is no chat request.
    """
    try:
        request = _REQUESTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The request is not a chat request: {error}") from error
    _check(request)
    system, turns = to_turns(request.messages)
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    max_tokens = asked if asked is not None else default_max_tokens
    out: dict[str, Any] = {"model": upstream_model, "max_tokens": max_tokens, "messages": turns}
    if system:
        out["system"] = system
    _set_options(out, request)
    _think(out, request, max_tokens, thinks_by_budget=thinks_by_budget)
    if (form := _format(request.response_format)) is not None:
        out.setdefault("output_config", {})["format"] = form
    refuse_long_caching(out)
    return msgspec.json.encode(out)


def _set_options(out: dict[str, Any], request: _Request) -> None:
    for name in ("temperature", "top_p", "top_k", "stream", "cache_control"):
        if (value := getattr(request, name)) is not None:
            out[name] = value
    if request.stop:
        out["stop_sequences"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if (user := request.safety_identifier or request.user) is not None:
        out["metadata"] = {"user_id": user}
    if request.service_tier is not None:
        out["service_tier"] = _TIERS[request.service_tier]
    if request.tools:
        out["tools"] = [_tool(tool, index) for index, tool in enumerate(request.tools)]
        if (choice := _tool_choice(request)) is not None:
            out["tool_choice"] = choice


def _check(request: _Request) -> None:
    for name in _REFUSED:
        if getattr(request, name):
            raise _unsupported(f"'{name}' is not supported by this model.", name, "unsupported_parameter")
    if request.n is not None and request.n != 1:
        raise _unsupported("This model gives one choice; n must be 1.", "n")
    if request.temperature is not None and request.temperature > 1:
        raise _unsupported("This model takes a temperature from 0 to 1.", "temperature")
    if request.verbosity not in {None, "medium"}:
        raise _unsupported("'verbosity' is not supported by this model.", "verbosity", "unsupported_parameter")
    if request.modalities not in (None, ["text"]):
        raise _unsupported("This model answers in text alone.", "modalities")
    if request.service_tier is not None and request.service_tier not in _TIERS:
        raise _unsupported("This model's service_tier is auto or default.", "service_tier")


def _tool(tool: _Tool, index: int) -> dict[str, Any]:
    function = tool.function
    if tool.type != "function" or function is None:
        raise _unsupported("This model knows only tools of type function.", f"tools[{index}].type")
    out: dict[str, Any] = {"name": function.name, "input_schema": function.parameters or _NO_SCHEMA}
    if function.description is not None:
        out["description"] = function.description
    if function.strict:
        out["strict"] = True
    if (mark := tool.cache_control or function.cache_control) is not None:
        out["cache_control"] = mark
    return out


def _tool_choice(request: _Request) -> dict[str, Any] | None:
    choice = request.tool_choice
    alone = {"disable_parallel_tool_use": True} if request.parallel_tool_calls is False else {}
    if choice == "none":
        return {"type": "none"}
    if choice in (None, "auto"):
        return {"type": "auto", **alone} if alone or choice is not None else None
    if choice == "required":
        return {"type": "any", **alone}
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            return {"type": "tool", "name": name, **alone}
    raise _unsupported("This model's tool_choice is none, auto, required, or one function.", "tool_choice")


def _think(out: dict[str, Any], request: _Request, max_tokens: int, *, thinks_by_budget: bool) -> None:
    """Set how much is thought: Anthropic's own ``thinking`` as it is, else what ``reasoning_effort`` comes to."""
    effort = request.reasoning_effort
    if request.thinking is not None:
        out["thinking"] = request.thinking
    elif effort == "none":
        out["thinking"] = {"type": "disabled"}
    elif effort in BUDGETS and thinks_by_budget:
        budget = min(BUDGETS[effort], max_tokens - 1)
        if budget >= LEAST_BUDGET:
            out["thinking"] = {"type": "enabled", "budget_tokens": budget}
    elif effort in _EFFORTS:
        # Newer models do not show their thoughts unless asked to.
        out["thinking"] = {"type": "adaptive", "display": "summarized"}
    elif effort is not None:
        raise _unsupported("'reasoning_effort' has no such value for this model.", "reasoning_effort")
    if effort in _EFFORTS and not thinks_by_budget:
        out["output_config"] = {"effort": _EFFORTS[effort]}


def _format(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = response_format.get("type") if response_format is not None else "text"
    if response_format is None or kind == "text":
        return None
    wrapper = response_format.get("json_schema")
    if kind == "json_schema" and isinstance(wrapper, dict) and isinstance(wrapper.get("schema"), dict):
        return {"type": "json_schema", "schema": wrapper["schema"]}
    raise _unsupported("This model's response_format is text, or json_schema with a schema.", "response_format")


def _unsupported(text: str, param: str, code: str = "unsupported_value") -> Malformed:
    return Malformed(text, param=param, code=code)

"""What ``/v1/responses`` refuses whoever answers, before any call: a 400 that names the parameter.

All tenants share the operator's account at a provider, so nothing that names an object stored there passes (design.md
8). Tools that run at the provider are refused too: what they cost stands in no usage, so no budget could hold it.
"""

from collections.abc import Collection

import msgspec

from meterhouse.errors import Malformed
from meterhouse.translate.responses.shape import ResponsesItem, ResponsesPart, ResponsesRequest

CALLERS_TOOLS = frozenset({"function", "custom"})
"""What runs at the caller."""
ITEMS = frozenset(
    {"message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning"}
)
INCLUDES = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "input_image", "input_file", "input_audio"})
_STORED_FIELDS = ("previous_response_id", "conversation", "prompt", "thread_id", "file_ids", "vector_store_ids")
_ACCOUNT_FIELDS = ("access_programs", "context_management")
_CHAT_FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "functions": "tools",
    "function_call": "tool_choice",
    "logprobs": "include",
}
_CHAT_ONLY = ("n", "audio", "modalities", "prediction", "web_search_options")


def check(request: ResponsesRequest, given: Collection[str]) -> None:
    """Refuse what no provider may get; ``given`` names the fields of the body that are not null.

    Raises:
        Malformed: With ``param`` and a code.
    """
    for name in _STORED_FIELDS:
        if name in given:
            raise _stored(name)
    for name in _ACCOUNT_FIELDS:
        if name in given:
            raise Malformed(f"'{name}' is not supported. Leave it out.", param=name, code="unsupported_parameter")
    _check_names(given)
    _check_options(request)
    _check_tools(request)
    if isinstance(request.input, list):
        if not request.input:
            raise Malformed("'input' is empty. Send at least one item.", param="input")
        for index, item in enumerate(request.input):
            _check_item(item, f"input[{index}]")


def _check_names(given: Collection[str]) -> None:
    """Refuse parameters of chat completions: passed on, they would mean something else than what was read here."""
    for name, own in _CHAT_FIELDS.items():
        if name in given:
            text = f"Unsupported parameter: '{name}'. In the Responses API this is '{own}'."
            raise Malformed(text, param=name, code="unsupported_parameter")
    for name in _CHAT_ONLY:
        if name in given:
            text = f"Unsupported parameter: '{name}'. The Responses API has no such parameter."
            raise Malformed(text, param=name, code="unsupported_parameter")


def _check_options(request: ResponsesRequest) -> None:
    if request.background:
        raise Malformed(
            "'background' is not supported, because responses are not stored here. Leave it out, and stream.",
            param="background",
            code="unsupported_parameter",
        )
    if request.stream_options is not None and not request.stream:
        raise Malformed("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    for index, name in enumerate(request.include or ()):
        if name not in INCLUDES:
            param = f"include[{index}]"
            raise Malformed(f"Invalid value for '{param}': '{name}'.", param=param)
    if request.prompt_cache_options is not None and request.prompt_cache_options.comparison_response_id:
        raise _stored("prompt_cache_options.comparison_response_id")


def _check_tools(request: ResponsesRequest) -> None:
    for index, tool in enumerate(request.tools or ()):
        param = f"tools[{index}]"
        if tool.type not in CALLERS_TOOLS:
            raise _hosted(f"{param}.type", tool.type)
        if tool.name is None:
            raise _missing(f"{param}.name")
    choice = request.tool_choice
    if isinstance(choice, str) and choice not in {"none", "auto", "required"}:
        raise Malformed("'tool_choice' must be 'none', 'auto', 'required' or an object.", param="tool_choice")
    if isinstance(choice, dict):
        kind = _kind_of(choice)
        if kind == "allowed_tools":
            _check_allowed(choice)
        elif kind not in CALLERS_TOOLS:
            raise _hosted("tool_choice.type", kind)
        elif not isinstance(choice.get("name"), str):
            raise _missing("tool_choice.name")


def _check_allowed(choice: dict[str, object]) -> None:
    mode = choice.get("mode")
    if not isinstance(mode, str) or mode not in {"auto", "required"}:
        raise Malformed("'tool_choice.mode' must be 'auto' or 'required'.", param="tool_choice.mode")
    tools = choice.get("tools")
    if not isinstance(tools, list) or not tools:
        raise _missing("tool_choice.tools")
    for index, tool in enumerate(tools):
        param = f"tool_choice.tools[{index}]"
        kind = _kind_of(tool)
        if kind not in CALLERS_TOOLS:
            raise _hosted(f"{param}.type", kind)
        if not isinstance(tool.get("name"), str):
            raise _missing(f"{param}.name")


def _kind_of(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


def _check_item(item: ResponsesItem, param: str) -> None:
    kind = item.kind
    if kind == "item_reference":
        raise _stored(param)
    if kind not in ITEMS:
        raise Malformed(
            f"Items of type '{kind}' are not supported: send messages, function calls, custom tool calls, their "
            "outputs, and reasoning.",
            param=f"{param}.type",
            code="unsupported_value",
        )
    if kind == "message":
        if item.role is None:
            raise _missing(f"{param}.role")
        if item.content is None:
            raise _missing(f"{param}.content")
    elif kind != "reasoning":
        _check_call(item, param)
    if kind != "reasoning":
        for path, part in parts_of(item, param):
            _check_part(part, path)


def _check_call(item: ResponsesItem, param: str) -> None:
    if not item.call_id:
        raise _missing(f"{param}.call_id")
    wanted = {"function_call": ("name", "arguments"), "custom_tool_call": ("name", "input")}
    for name in wanted.get(item.kind, ("output",)):
        value = getattr(item, name)
        if value is None:
            raise _missing(f"{param}.{name}")
        if not isinstance(value, str) and name != "output":
            text = f"Invalid value for '{param}.{name}': expected a string."
            raise Malformed(text, param=f"{param}.{name}", code="invalid_type")
    if item.kind.endswith("_output") and not isinstance(item.output, (str, list)):
        text = f"Invalid value for '{param}.output': expected a string or a list of parts."
        raise Malformed(text, param=f"{param}.output", code="invalid_type")


def parts_of(item: ResponsesItem, param: str) -> list[tuple[str, ResponsesPart]]:
    """Return the parts of a message or of a tool's output, each with its path; none where it is one text.

    Raises:
        Malformed: An output has parts that are none.
    """
    name, found = ("output", item.output) if item.kind.endswith("_output") else ("content", item.content)
    if not isinstance(found, list):
        return []
    if name == "output":
        try:
            found = msgspec.convert(found, list[ResponsesPart])
        except msgspec.ValidationError as error:
            text = f"Invalid value for '{param}.output': {error}."
            raise Malformed(text, param=f"{param}.output", code="invalid_type") from None
    return [(f"{param}.{name}[{index}]", part) for index, part in enumerate(found)]


def _check_part(part: ResponsesPart, param: str) -> None:
    if part.file_id:
        raise _stored(f"{param}.file_id")
    if not part.type:
        raise _missing(f"{param}.type")
    if part.type not in _PARTS:
        text = f"Parts of type '{part.type}' are not supported."
        raise Malformed(text, param=f"{param}.type", code="unsupported_value")


def _stored(param: str) -> Malformed:
    return Malformed(
        f"'{param}' names an object that is stored at a provider, which is not supported: send the content itself.",
        param=param,
        code="unsupported_parameter",
    )


def _hosted(param: str, kind: object) -> Malformed:
    return Malformed(
        f"Tools of type '{kind}' are not supported: they run at the provider. Use tools of the types function and "
        "custom, and run them yourself.",
        param=param,
        code="unsupported_value",
    )


def _missing(param: str) -> Malformed:
    return Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")

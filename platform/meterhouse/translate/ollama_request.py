"""OpenAI's chat request as the body of Ollama's native ``/api/chat`` (wire.md 3.1).

Invariant: pure; what Ollama cannot do is refused by name and never dropped in silence. Not here: the answer
(``ollama_chat``), the ranges of parameters.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from meterhouse.errors import Malformed
from meterhouse.translate.call_arguments import read_arguments

_THINK = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "repeat_last_n",
)
"""Options that shape the text. Those that size the server (num_ctx, num_gpu, ...) are its operator's alone."""


class _Function(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct):
    function: _Function | None = None
    id: str = ""


class _Url(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Url | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class _Request(msgspec.Struct):
    """What is read of a request; OpenAI's names, and the common extras of local servers."""

    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


_REQUESTS = msgspec.json.Decoder(_Request)


def to_ollama_request(body: bytes, *, upstream_model: str, is_streamed: bool, default_max_tokens: int) -> bytes:
    """Return the body for ``/api/chat``.

    Raises:
        Malformed: it asks for what Ollama cannot do, or is no chat request.
    """
    try:
        request = _REQUESTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The request is not a chat request: {error}") from error
    if request.n is not None and request.n != 1:
        raise Malformed("This model gives one choice; n must be 1.", param="n", code="unsupported_value")
    out: dict[str, Any] = {
        "model": upstream_model,
        "messages": list(_messages(request.messages)),
        "stream": is_streamed,
        "options": _options(request, default_max_tokens),
    }
    tools = _tools(request)
    if tools:
        out["tools"] = tools
    form = _format(request.response_format)
    if form is not None:
        out["format"] = form
    think = _THINK.get(request.reasoning_effort) if request.reasoning_effort is not None else request.think
    if think is not None:
        out["think"] = think
    if request.logprobs:
        out["logprobs"] = True
        if request.top_logprobs is not None:
            out["top_logprobs"] = request.top_logprobs
    return msgspec.json.encode(out)


def _options(request: _Request, default_max_tokens: int) -> dict[str, Any]:
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    options: dict[str, Any] = {"num_predict": asked if asked is not None else default_max_tokens}
    for name in _SAMPLING:
        value = getattr(request, name)
        if value is not None:
            options[name] = value
    if request.repetition_penalty is not None:
        options.setdefault("repeat_penalty", request.repetition_penalty)
    if request.stop:
        options["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    return options


def _tools(request: _Request) -> list[dict[str, Any]]:
    tools = request.tools or []
    for tool in tools:
        if tool.get("type") != "function":
            raise Malformed("This model knows only tools of type function.", param="tools", code="unsupported_value")
    choice = request.tool_choice
    if choice == "none":
        return []
    if choice in (None, "auto"):
        return tools
    raise Malformed(
        "This model decides itself whether it calls a tool: tool_choice must be auto or none.",
        param="tool_choice",
        code="unsupported_value",
    )


def _format(response_format: dict[str, Any] | None) -> Any:
    kind = response_format.get("type") if response_format is not None else "text"
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return "json"
    wrapper = response_format.get("json_schema")
    if kind == "json_schema" and isinstance(wrapper, dict):
        schema = wrapper.get("schema")
        return schema if isinstance(schema, dict) else "json"
    raise Malformed("response_format must be text, json_object or json_schema.", param="response_format")


def _messages(messages: list[_Message]) -> Iterator[dict[str, Any]]:
    names: dict[str, str] = {}
    for position, message in enumerate(messages):
        text, images = _content(message.content, position)
        role = "system" if message.role == "developer" else "tool" if message.role == "function" else message.role
        out: dict[str, Any] = {"role": role, "content": text}
        if images:
            out["images"] = images
        if message.reasoning_content:
            out["thinking"] = message.reasoning_content
        if message.tool_calls:
            out["tool_calls"] = [_call(call, index, position) for index, call in enumerate(message.tool_calls)]
            names.update({call.id: call.function.name for call in message.tool_calls if call.function is not None})
        if role == "tool":
            name = names.get(message.tool_call_id or "", message.name)
            if name is not None:
                out["tool_name"] = name
            if message.tool_call_id is not None:
                out["tool_call_id"] = message.tool_call_id
        yield out


def _content(content: str | list[_Part] | None, position: int) -> tuple[str, list[str]]:
    if content is None or isinstance(content, str):
        return content or "", []
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        if part.type == "text" and part.text is not None:
            texts.append(part.text)
        elif part.type == "refusal" and part.refusal is not None:
            texts.append(part.refusal)
        elif part.type == "image_url" and part.image_url is not None:
            images.append(_image(part.image_url.url, position))
        else:
            raise Malformed(
                f"This model does not read parts of type {part.type[:40]!r}.", param=f"messages[{position}].content"
            )
    return "\n".join(texts), images


def _image(url: str, position: int) -> str:
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise Malformed(
            "This model reads images only as data: URLs in base64; an address is not fetched.",
            param=f"messages[{position}].content",
            code="invalid_image_url",
        )
    return data


def _call(call: _Call, index: int, position: int) -> dict[str, Any]:
    arguments = read_arguments(call.function.arguments if call.function else None, position, index)
    assert call.function is not None
    return {"id": call.id, "function": {"index": index, "name": call.function.name, "arguments": arguments}}

"""How large the input of a request to ``/v1/responses`` is, before any tokenizer has seen it.

Text is measured as it stands in the body: JSON spells no character in fewer bytes than UTF-8, so what is held is never
too little. What images, sound and files hold is no text and is left out of that; they are counted.
"""

from collections.abc import Iterator, Mapping

from msgspec import Raw

from meterhouse.request import InputSize
from meterhouse.translate.responses.check import parts_of
from meterhouse.translate.responses.shape import ResponsesItem, ResponsesPart, ResponsesRequest

_TEXTLESS = frozenset(
    {
        "background",
        "include",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)
"""Fields that no prompt is made of; all others are counted, those that nobody knows too."""


def measure(request: ResponsesRequest, fields: Mapping[str, Raw]) -> InputSize:
    """Count what can reach the prompt."""
    text_bytes = sum(len(raw) for name, raw in fields.items() if name not in _TEXTLESS)
    items = request.input if isinstance(request.input, list) else [None]
    images = unbounded = 0
    for part in _all_parts(request):
        image, others = part.image_url or "", (part.file_data, part.input_audio.data if part.input_audio else None)
        text_bytes -= len(image) + sum(len(data) for data in others if data)
        images += part.type == "input_image"
        unbounded += part.type in {"input_file", "input_audio"}
    return InputSize(text_bytes, len(items) + (request.instructions is not None), images, unbounded)


def larger(one: InputSize, other: InputSize) -> InputSize:
    """Return what is the most by either measure: a request may go out in either form."""
    return InputSize(
        max(one.text_bytes, other.text_bytes),
        max(one.messages, other.messages),
        max(one.images, other.images),
        max(one.unbounded_parts, other.unbounded_parts),
    )


def texts_of(request: ResponsesRequest) -> Iterator[str]:
    """Yield the texts of the prompt, for counting where nobody reports a usage."""
    if request.instructions:
        yield request.instructions
    if isinstance(request.input, str):
        yield request.input
        return
    for item in request.input:
        yield from _texts_of(item)


def _texts_of(item: ResponsesItem) -> Iterator[str]:
    for value in (item.content, item.name, item.arguments, item.input, item.output):
        if isinstance(value, str):
            yield value
    shown = item.content if item.kind == "reasoning" and isinstance(item.content, list) else item.summary or ()
    for part in (*(part for _, part in parts_of(item, "")), *(shown if item.kind == "reasoning" else ())):
        text = part.text or part.refusal
        if text:
            yield text


def _all_parts(request: ResponsesRequest) -> Iterator[ResponsesPart]:
    for item in request.input if isinstance(request.input, list) else ():
        for _, part in parts_of(item, ""):
            yield part

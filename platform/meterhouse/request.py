"""A chat completion request as it is checked, and what is known of a running request so far.

``ChatRequest`` checks types and the ranges that OpenAI defines (wire.md 1.2); unknown fields pass because the body
is forwarded from its own raw fields, never rebuilt from this struct. ``Tally`` is the one mutable object of a
request: attempts, usage, outcome. Nothing here does I/O.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from meterhouse.errors import GatewayError
from meterhouse.identity import Principal
from meterhouse.message import Message, PlainMessage
from meterhouse.metering import Reservation
from meterhouse.money import Price
from meterhouse.usage import Outcome, Usage, UsageRecord

Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenCount = Annotated[int, Meta(ge=1, le=2**31)]
Name64 = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
MetadataValue = Annotated[str, Meta(max_length=512)]
StopText = Annotated[str, Meta(max_length=256)]


class StreamOptions(msgspec.Struct):
    """What a streamed answer carries besides its chunks."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(msgspec.Struct):
    """A named schema that the answer must satisfy."""

    name: Name64
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """The shape of the answer."""

    type: str
    json_schema: JsonSchema | None = None


class FunctionTool(msgspec.Struct):
    """A function that the model may call."""

    name: Name64
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that the model may call."""

    type: str
    function: FunctionTool | None = None
    custom: dict[str, Any] | None = None


class ChatRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Meta(max_length=5_000)]
    audio: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    frequency_penalty: Penalty | None = None
    function_call: str | dict[str, Any] | None = None
    functions: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1_024)] | None = None
    logprobs: bool | None = None
    max_completion_tokens: TokenCount | None = None
    max_tokens: TokenCount | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], MetadataValue], Meta(max_length=16)] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    moderation: dict[str, Any] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    presence_penalty: Penalty | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    service_tier: Annotated[str, Meta(max_length=32)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: Annotated[list[Tool], Meta(max_length=10_000)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: dict[str, Any] | None = None

    @property
    def asked_output_tokens(self) -> int | None:
        """The bound of the answer that the client asked for, per choice."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed answer's usage chunk was asked for."""
        return bool(self.stream_options and self.stream_options.include_usage)


class PlainRequest(ChatRequest, kw_only=True):
    """A request whose messages have no fields but known ones, as nearly all: nobody has to look for others in them."""

    messages: Annotated[list[PlainMessage], Meta(max_length=5_000)]  # type: ignore[assignment]  # they are Messages


KNOWN_FIELDS = frozenset(ChatRequest.__struct_fields__)

_TEXT_FIELDS = frozenset({"audio", "function_call", "functions", "prediction"}) | frozenset(
    {"response_format", "tool_choice", "tools", "web_search_options"}
)
"""Known fields besides the messages whose text becomes a part of the prompt; unknown ones are counted as if it did."""

_TEXTLESS_FIELDS = KNOWN_FIELDS - _TEXT_FIELDS

_MEASURED_FIELDS = frozenset(Message.__struct_fields__) - {"audio"}
"""Fields of a message that are measured one by one, or cannot hold text; all others are counted as they came."""

_KNOWN_PARTS = frozenset({"text", "refusal", "image_url", "input_audio", "file"})

_messages_decoder = msgspec.json.Decoder(list[dict[str, Raw]])


class InputSize(msgspec.Struct, frozen=True):
    """How large a request's input is, before any tokenizer has seen it."""

    text_bytes: int
    messages: int
    images: int
    unbounded_parts: int
    """Audio, file and unknown parts: nothing bounds their tokens."""
    tokens: int = 0
    """Input that came as tokens already."""


def measure(request: ChatRequest, fields: dict[str, Raw]) -> InputSize:
    """Count the UTF-8 bytes of all text that can reach the prompt: messages, tools, schemas, unknown fields."""
    text_bytes = images = unbounded = 0
    if not fields.keys() <= _TEXTLESS_FIELDS:
        text_bytes = sum(len(fields[name]) for name in fields.keys() - _TEXTLESS_FIELDS)
    has_other_fields = not isinstance(request, PlainRequest)
    messages = request.messages
    for message in messages:
        content = message.content
        if isinstance(content, str):
            # One text and nothing beside it is what most messages are: for those no function is called.
            text_bytes += len(content) if content.isascii() else utf8_length(content)
        elif content is not None:
            texts = 0
            for part in content:
                texts += part.text is not None or part.refusal is not None
                text_bytes += _length(part.text) + _length(part.refusal)
                images += part.image_url is not None
                is_unknown = part.type not in _KNOWN_PARTS
                unbounded += is_unknown or part.input_audio is not None or part.file is not None
            # Some servers want one text: its parts are joined with a line's end between them.
            text_bytes += max(0, texts - 1)
        if (
            message.tool_calls is not None
            or message.tool_call_id is not None
            or message.name is not None
            or message.reasoning_content is not None
            or message.reasoning is not None
            or message.refusal is not None
            or message.function_call is not None
        ):
            text_bytes += _side_text_bytes(message)
        if message.audio is not None:
            has_other_fields = True
    if has_other_fields:
        text_bytes += _other_text_bytes(fields["messages"])
    return InputSize(text_bytes, len(messages), images, unbounded)


def utf8_length(text: str) -> int:
    """Return the length of a text in UTF-8 bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _length(text: str | None) -> int:
    return utf8_length(text) if text else 0


def _other_text_bytes(messages: Raw) -> int:
    """Count what messages have under names that are not measured one by one."""
    total = 0
    for row in _messages_decoder.decode(messages):
        for name in row.keys() - _MEASURED_FIELDS:
            total += len(row[name])
    return total


def _side_text_bytes(message: Message) -> int:
    total = 0
    texts = (message.name, message.refusal, message.tool_call_id, message.reasoning_content, message.reasoning)
    for text in texts:
        if text:
            total += utf8_length(text)
    if message.function_call is not None:
        total += _length(message.function_call.name) + _length(message.function_call.arguments)
    for call in message.tool_calls or ():
        total += _length(call.id)
        if call.function is not None:
            total += _length(call.function.name) + _length(call.function.arguments)
        if call.custom is not None:
            total += _length(call.custom.name) + _length(call.custom.input)
    return total


BYTES_PER_TOKEN = 4
"""Of English, at least; what an answer is estimated by that nobody counts."""


class Attempt(msgspec.Struct):
    """One try at one deployment. Times are monotonic nanoseconds."""

    number: int
    provider: str
    deployment: str
    upstream_model: str
    price: Price | None
    started_ns: int
    request_units: int = 1
    """How often the price of a request is charged: what was asked for, or what came of it."""
    span_id: str = ""
    """Of its span, where the provider was told of the trace."""
    first_event_ns: int | None = None
    ended_ns: int | None = None
    outcome: Outcome | None = None
    error: GatewayError | None = None
    served_model: str = ""
    finish_reasons: list[str] = []
    service_tier: str = ""
    reported: Usage | None = None
    """The last usage that the provider sent and that can be believed."""
    partial: Usage | None = None
    """What was ``reported`` before more text came: a running count, on top of which the rest is counted."""
    is_suspect: bool = False
    known_input_tokens: int | None = None
    known_output_tokens: int | None = None
    """A part that the provider did report where the other is missing (Ollama leaves counts of zero out)."""
    counted: Usage | None = None
    """What we counted, where the provider reported nothing or not all."""
    is_countable: bool = True
    """False once audio was sent: it can be neither counted nor seen."""
    output_events: int = 0
    output_bytes: int = 0
    """Both since the last usage that the provider reported."""
    text: list[str] = []
    """What came, for counting; dropped as soon as the provider reports."""

    @property
    def output_tokens_estimate(self) -> int:
        """Output tokens so far without a tokenizer: one per data event or ``BYTES_PER_TOKEN``, whichever is more."""
        known_tokens = self.partial.output_tokens if self.partial is not None else 0
        return known_tokens + max(self.output_events, -(-self.output_bytes // BYTES_PER_TOKEN))


class Tally(msgspec.Struct):
    """What is known so far of one request; ``ledger.settler`` turns it into records exactly once."""

    request_id: str
    principal: Principal
    model: str
    operation: str
    is_streamed: bool
    reservation: Reservation
    input_tokens_estimate: int
    """Text bytes / 3: charged as the input where nobody reports or counts it."""
    held_input_tokens: int
    """What the input cannot exceed: charged where it can be neither reported nor counted."""
    is_input_countable: bool
    """False with images, audio or files in the request."""
    trace_id: str
    started_ns: int
    asked_ns: int
    """When the meter was asked; ``admitted_ns`` is when it had answered."""
    admitted_ns: int
    attempts: list[Attempt] = []
    is_traced: bool = False
    """Whether the trace is sampled, as far as that is known at the start."""
    checkpointed_tokens: int = 0
    settled_ns: int | None = None
    records: tuple[UsageRecord, ...] = ()
    """What the ledger was told; empty until the request is settled."""

    @property
    def attempt(self) -> Attempt:
        """The attempt that is running, or ran last."""
        return self.attempts[-1]

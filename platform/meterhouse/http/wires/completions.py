"""``POST /v1/completions``, the legacy wire (wire.md 1.9): passed through, or over chat completions."""

from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from meterhouse.asked import Asked, ask_chat
from meterhouse.errors import Malformed
from meterhouse.http.body import parse_chat, read_object
from meterhouse.http.intake import MAX_TOKEN_VALUES
from meterhouse.http.outlet import Dialect
from meterhouse.http.passage import Passage
from meterhouse.http.passing import choose_passage
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope
from meterhouse.http.wires.embeddings import Prompts, read_prompts
from meterhouse.http.wires.passed_completions import PassedCompletions
from meterhouse.providers.provider import Provider
from meterhouse.request import InputSize, Penalty, StreamOptions, utf8_length
from meterhouse.translate.completions import DEFAULT_MAX_TOKENS, CompletionDialect, to_chat

MAX_PROMPTS = 128
_CHAT_FIELDS = {
    "messages": "prompt",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "top_logprobs": "logprobs",
}
"""What a chat calls otherwise than this wire does."""
_CHAT_ONLY = (
    *("audio", "continue_final_message", "function_call", "functions", "modalities", "moderation"),
    *("parallel_tool_calls", "prediction", "tool_choice", "tools", "web_search_options"),
)
_NULL = b"null"


class CompletionRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/completions``. ``prompt``: a text, texts, the tokens of one, or those of several."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt: Raw
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    presence_penalty: Penalty | None = None
    seed: int | None = None
    service_tier: Annotated[str, Meta(max_length=32)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None


_request_decoder = msgspec.json.Decoder(CompletionRequest)
_KNOWN = frozenset(CompletionRequest.__struct_fields__)
_LONG_FIELDS = frozenset({"prompt", "suffix"})


class CompletionsWire:
    """OpenAI's legacy completions."""

    path = "/v1/completions"
    operation = "text_completion"
    most_values = MAX_TOKEN_VALUES
    passage: Passage | None = None
    envelope: Envelope = OPENAI_ENVELOPE

    def __init__(self) -> None:
        self._passed = PassedCompletions()

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a request, and put it as a chat too where a chat can say it."""
        fields, request = read_object(body, _request_decoder, _LONG_FIELDS)
        _check_names(fields)
        prompts = read_prompts(fields["prompt"], "prompt", MAX_PROMPTS)
        _check(request)
        written = max(request.n or 1, request.best_of or 1)
        asked = Asked(
            model=request.model,
            size=_measure(fields, prompts),
            is_streamed=bool(request.stream),
            choices=written * prompts.count,
            output_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
            service_tier=request.service_tier,
            input_name="prompt",
            fields=fields,
            texts=prompts.texts,
        )
        try:
            chat = to_chat(fields, prompts.texts, choices=request.n or 1, best_of=request.best_of or 1)
            asked.chat = ask_chat(parse_chat(chat)).chat
        except Malformed as error:
            asked.chat_refusal = error
        return asked

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:
        """Return the wire's own passage, or that over chat."""
        return choose_passage(self._passed, asked, provider)

    def open_dialect(self, asked: Asked) -> Dialect | None:
        """Return what writes completions."""
        echo = asked.texts[0] if bytes(asked.fields.get("echo", Raw(b"false"))) == b"true" else ""
        return CompletionDialect(echo, self.envelope.event)


def _check_names(fields: Mapping[str, Raw]) -> None:
    """Refuse parameters of chat completions: a chat would obey them, although what is held knows nothing of them."""
    for name, raw in fields.items():
        if (name not in _CHAT_FIELDS and name not in _CHAT_ONLY) or bytes(raw) == _NULL:
            continue
        own = _CHAT_FIELDS.get(name)
        hint = f"Here it is '{own}'." if own else "Use /v1/chat/completions for it."
        text = f"Unsupported parameter: '{name}' is one of chat completions. {hint}"
        raise Malformed(text, param=name, code="unsupported_parameter")


def _check(request: CompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise Malformed("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise Malformed("'best_of' must not be below 'n'.", param="best_of")
    if request.best_of is not None and request.best_of > 1 and request.stream:
        raise Malformed("'best_of' cannot be streamed.", param="best_of")


def _measure(fields: dict[str, Raw], prompts: Prompts) -> InputSize:
    """Count what can reach the prompt: the prompts, the suffix, and fields that nobody knows."""
    text_bytes = sum(map(utf8_length, prompts.texts))
    text_bytes += sum(len(raw) for name, raw in fields.items() if name not in _KNOWN or name == "suffix")
    return InputSize(text_bytes, prompts.count, 0, 0, prompts.tokens)

"""The request's body: read within a bound, checked, and edited for one deployment.

A body is decoded one level deep with raw values and re-encoded, so a megabyte of messages is never rebuilt. What names
an object stored upstream is refused, because all tenants share the operator's account there (design.md 8).
"""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

import msgspec
from msgspec import Raw
from starlette.types import Receive

from meterhouse.asked import Asked, ParsedBody
from meterhouse.errors import BodyTooSlow, Malformed
from meterhouse.http.adapt import OnDropped, adapt, adapt_parameters, text_of_raw
from meterhouse.http.guard import ClientGone
from meterhouse.providers.catalog import is_hidden_thinker
from meterhouse.providers.provider import Deployment, Provider
from meterhouse.request import KNOWN_FIELDS, ChatRequest, PlainRequest
from meterhouse.translate.spelling import refuse_spellings, refuse_spellings_in_messages
from meterhouse.translate.tool_text import GRAMMARS
from meterhouse.translate.tool_text.prompt import Prompt, render_prompt

Checked = TypeVar("Checked", bound=msgspec.Struct)

_request_decoder = msgspec.json.Decoder(ChatRequest)
_plain_decoder: msgspec.json.Decoder[ChatRequest] = msgspec.json.Decoder(PlainRequest)
_fields_decoder = msgspec.json.Decoder(dict[str, Raw])
_options_decoder = msgspec.json.Decoder(dict[str, object])
_raws_decoder = msgspec.json.Decoder(list[Raw] | None)
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")
_CONTENT_ROLES = frozenset({"developer", "system", "user", "tool"})
_TENANT_FIELDS = ("user", "safety_identifier", "prompt_cache_key")
_MAX_TENANT_VALUE = 64
_STORED_FIELDS = ("previous_response_id", "conversation", "thread_id", "file_ids", "vector_store_ids")
_STORED_NAMES = frozenset(_STORED_FIELDS)
MAX_FIELD_BYTES = 65_536
"""Of a schema, a grammar, or whatever else is not what the model reads: servers compile such before they answer."""
_LONG_FIELDS = frozenset({"messages", "tools", "functions", "prediction"})
_OUR_BOUNDS = frozenset({"max_completion_tokens", "max_tokens"})
_BOUNDS = _OUR_BOUNDS | {
    *("max_length", "max_new_tokens", "max_output_tokens", "max_tokens_to_sample", "n_predict", "num_predict")
}
"""What servers call the bound of an answer; where one reads two names, ours need not win."""
_STORED_TOOLS = frozenset({"file_search", "code_interpreter", "mcp"})
_CHECKED_OPTIONS = frozenset({"audio", "stream_options", "tool_choice", "tools", "top_logprobs"})
"""What ``_check_options`` looks at: most requests have none of it."""
_NO_STREAM = (b"false", b"null")
BODY_SECONDS = 120
IS_WHOLE = "meterhouse.is_whole"
"""In the scope of a request whose body the server has received to its end."""


async def read_body(receive: Receive) -> bytes:
    """Read the whole body in time; its length is bounded by the middleware.

    Raises:
        ClientGone: The client left while it sent.
        BodyTooSlow: It took more than two minutes.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await read_pieces(receive)
    except TimeoutError:
        raise BodyTooSlow(f"The request body did not arrive within {BODY_SECONDS} seconds. Send it again.") from None


async def read_pieces(receive: Receive) -> bytes:
    """Read the whole body, however long that takes: for one that the server has to its end (``IS_WHOLE``).

    Raises:
        ClientGone: The client left while it sent.
    """
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return b"".join((*pieces, piece)) if pieces else piece
        pieces.append(piece)


def read_object(
    body: bytes, decoder: msgspec.json.Decoder[Checked], long_fields: frozenset[str]
) -> tuple[dict[str, Raw], Checked]:
    """Decode a JSON body: one level deep, and checked; ``long_fields`` are what the model reads, however long.

    Raises:
        Malformed: With ``param`` and a code as OpenAI names them; also where it names an object stored upstream, a
            known field in other letters, or another field is longer than ``MAX_FIELD_BYTES``.
    """
    try:
        fields = _fields_decoder.decode(body)
        request = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise Malformed("The request body is nested too deeply.", code="invalid_json") from None
    refuse_spellings(fields, request.__struct_fields__, _STORED_NAMES, spared=_BOUNDS)
    if not _STORED_NAMES.isdisjoint(fields):
        for name in _STORED_FIELDS:
            if name in fields and bytes(fields[name]) != b"null":
                raise stored(name)
    if len(body) > MAX_FIELD_BYTES:
        check_lengths(fields, long_fields, request.__struct_fields__)
    return fields, request


def refuse_stream(fields: Mapping[str, Raw]) -> None:
    """Refuse ``stream`` on a wire whose answers are whole; raises Malformed."""
    if bytes(fields.get("stream", Raw(b"false"))) not in _NO_STREAM:
        raise Malformed("'stream' is not supported here.", param="stream", code="unsupported_parameter")


def parse_chat(body: bytes) -> ParsedBody:
    """Check a chat completion request (wire.md 1.2); raises Malformed as ``read_object``."""
    try:
        fields, request = read_object(body, _plain_decoder, _LONG_FIELDS)
    except Malformed:  # nothing may be wrong but that messages have other fields beside
        fields, request = read_object(body, _request_decoder, _LONG_FIELDS)
        refuse_spellings_in_messages(fields["messages"])
    _check_messages(request)
    if not _CHECKED_OPTIONS.isdisjoint(fields):
        _check_options(request)
    return ParsedBody(request, fields, _stream_options(fields) if request.stream_options else {}, len(body))


def check_lengths(fields: Mapping[str, Raw], long_fields: frozenset[str], known: Collection[str]) -> None:
    """Refuse a field, or one of several tools, that is longer than ``MAX_FIELD_BYTES``.

    Args:
        fields: of a body.
        long_fields: what the model reads, however long; of tools each has the bound.
        known: fields whose names an error may say.

    Raises:
        Malformed: With the name of a known field.
    """
    for name, raw in fields.items():
        if len(raw) > MAX_FIELD_BYTES and name not in long_fields:
            raise _too_long(name if name in known else None)
    for name in ("tools", "functions"):
        if name in fields and len(fields[name]) > MAX_FIELD_BYTES:
            for index, tool in enumerate(_raws_decoder.decode(fields[name]) or ()):
                if len(tool) > MAX_FIELD_BYTES:
                    raise _too_long(f"{name}[{index}]")


def _too_long(param: str | None) -> Malformed:
    what = f"'{param}'" if param else "A parameter"
    return Malformed(f"{what} is longer than {MAX_FIELD_BYTES} bytes. Send less.", param=param)


def _stream_options(fields: dict[str, Raw]) -> dict[str, object]:
    try:
        options = _options_decoder.decode(fields["stream_options"])
    except msgspec.DecodeError as error:
        text = f"The request body is not valid JSON: {error}."
        raise Malformed(text, param="stream_options", code="invalid_json") from None
    return options


def _invalid(text: str) -> Malformed:
    missing = _MISSING.search(text)
    place = _PATH.search(text)
    path = place["path"] if place else ""
    if missing is not None:
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    what = text[: place.start()] if place else text
    if not path:
        return Malformed(f"The request body must be a JSON object. {what}.", code="invalid_type")
    code = "invalid_type" if ", got `" in what else "invalid_value"
    return Malformed(f"Invalid value for '{path}': {what[0].lower()}{what[1:]}.", param=path, code=code)


def _check_messages(request: ChatRequest) -> None:
    messages = request.messages
    if not messages:
        raise Malformed("Invalid request: 'messages' is empty. Send at least one message.", param="messages")
    for index, message in enumerate(messages):
        if message.content is None and message.role in _CONTENT_ROLES:
            param = f"messages[{index}].content"
            raise Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
        if message.role == "tool" and not message.tool_call_id:
            param = f"messages[{index}].tool_call_id"
            raise Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
        if message.audio is not None and message.audio.id:
            raise stored(f"messages[{index}].audio.id")
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if part.file is not None and part.file.file_id:
                    raise stored(f"messages[{index}].content[{number}].file.file_id")


def _check_last(request: ChatRequest) -> None:
    last = request.messages[-1]
    is_prefix = last.prefix or last.partial or request.continue_final_message
    if last.role == "assistant" and not is_prefix:
        raise Malformed(
            "Invalid request: the last message is from the assistant. End with a user or tool message, "
            'or declare it a prefix with "prefix": true.',
            param="messages",
        )


def _check_options(request: ChatRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise Malformed("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise Malformed("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    if isinstance(request.tool_choice, str) and request.tool_choice not in {"none", "auto", "required"}:
        raise Malformed("'tool_choice' must be 'none', 'auto', 'required' or an object.", param="tool_choice")
    if request.audio is not None and isinstance(request.audio.get("voice"), dict):
        raise stored("audio.voice")
    for index, tool in enumerate(request.tools or ()):
        if tool.type in _STORED_TOOLS:
            raise stored(f"tools[{index}]")
        if tool.type == "function" and tool.function is None:
            param = f"tools[{index}].function"
            raise Malformed(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def stored(param: str) -> Malformed:
    """Return the error for a parameter that names an object stored upstream."""
    return Malformed(
        f"'{param}' names an object that is stored at a provider, which is not supported: send the content itself.",
        param=param,
        code="unsupported_parameter",
    )


def render_tools(parsed: ParsedBody, provider: Provider) -> Prompt:
    """Return a request's messages with its tools told in them, for a provider that must not get ``tools``."""
    assert provider.tool_call_format is not None
    tools = parsed.fields["tools"] if parsed.request.tools else None
    choice = parsed.request.tool_choice
    return render_prompt(parsed.fields["messages"], tools, choice, GRAMMARS[provider.tool_call_format])


class Recipient(msgspec.Struct, frozen=True):
    """Who gets a body, and what is decided about it."""

    deployment: Deployment
    organization_id: str
    allowance_tokens: int | None
    """What an answer may have at most, per choice; None: nothing is clamped."""


class BodyEditor:
    """Makes the body that goes to a deployment; ``secret`` keys the digest that separates tenants upstream."""

    def __init__(self, secret: bytes, on_dropped: OnDropped) -> None:
        self._secret = secret
        self._on_dropped = on_dropped
        self._encoder = msgspec.json.Encoder(enc_hook=dict)

    def edit(self, parsed: ParsedBody, recipient: Recipient) -> bytes:
        """Return the upstream body of a chat completion: model, bound, usage and quirks of the provider's row.

        Raises:
            Malformed: The provider's row refuses a parameter, or how the messages end.
        """
        deployment = recipient.deployment
        provider = deployment.provider
        request = parsed.request
        fields: dict[str, object] = dict(parsed.fields)
        has_defaults = provider.body_defaults or provider.unstreamed_body_defaults or deployment.model.body_defaults
        if has_defaults or parsed.defaulted:
            self._fill(fields, parsed, deployment)
        if not provider.ruled_parameters.isdisjoint(fields):
            adapt(fields, request, deployment, self._on_dropped)
        if provider.refuses_assistant_last:
            _check_last(request)
        if provider.renders_tools:
            fields["messages"] = render_tools(parsed, provider).messages
        fields["model"] = deployment.upstream_model
        self._bound(fields, request, recipient)
        if request.user or request.safety_identifier or request.prompt_cache_key:
            self._separate_tenants(fields, request, recipient.organization_id)
        if request.store is not None and "store" in fields:
            fields["store"] = False
        if request.stream and provider.sends_include_usage:
            options = dict(parsed.stream_options)
            options["include_usage"] = True
            if provider.sends_continuous_usage:
                options["continuous_usage_stats"] = True
            fields["stream_options"] = options
        elif "stream_options" in fields:
            del fields["stream_options"]
        return self._encoder.encode(fields)

    def edit_passed(self, asked: Asked, recipient: Recipient, bound_field: str | None) -> dict[str, object]:
        """Return the fields of a body that is passed through: model, bound, tenants apart, the row's parameters.

        ``bound_field`` is what the wire calls the bound of an answer; None: it has none. ``encode`` makes bytes of it.

        Raises:
            Malformed: The provider's row refuses a parameter.
        """
        fields: dict[str, object] = dict(asked.fields)
        adapt_parameters(fields, asked.model, recipient.deployment, self._on_dropped)
        fields["model"] = recipient.deployment.upstream_model
        if bound_field is not None:
            self._drop_bounds(fields, bound_field, recipient.deployment)
            bound, allowance = asked.output_tokens, recipient.allowance_tokens
            if allowance is not None:
                bound = min(bound or allowance, allowance)
            if bound is not None:
                fields[bound_field] = bound
        for name in _TENANT_FIELDS:
            value = text_of_raw(fields.get(name))
            if value:
                fields[name] = self.separate(value, recipient.organization_id)
        return fields

    def encode(self, fields: Mapping[str, object]) -> bytes:
        """Return a body of fields, raw ones as they are."""
        return self._encoder.encode(fields)

    def separate(self, value: str, organization_id: str) -> str:
        """Return what a provider may group by under a name that no other tenant can have."""
        digest = hmac.new(self._secret, organization_id.encode(), hashlib.sha256).hexdigest()[:16]
        text = f"mh-{digest}-{value}"
        if len(text) <= _MAX_TENANT_VALUE:
            return text
        return f"mh-{digest}-{hashlib.sha256(value.encode()).hexdigest()[:32]}"

    def _fill(self, fields: dict[str, object], parsed: ParsedBody, deployment: Deployment) -> None:
        """Set what the rows send when the caller sent nothing, and take back a default that the model would refuse."""
        provider = deployment.provider
        if parsed.defaulted and is_hidden_thinker(provider, deployment.upstream_model):
            for name in parsed.defaulted:
                fields.pop(name, None)
        unstreamed = {} if parsed.request.stream else provider.unstreamed_body_defaults
        for defaults in (deployment.model.body_defaults, provider.body_defaults, unstreamed):
            for name, value in defaults.items():
                if name not in fields:
                    fields[name] = Raw(self._encoder.encode(value))

    def _drop_bounds(self, fields: dict[str, object], kept: str, deployment: Deployment) -> None:
        """Leave out every other name of the answer's bound, in any case: servers written in Go read all the same."""
        for name in [name for name in fields if name != kept and name.casefold() in _BOUNDS]:
            del fields[name]
            if name not in _OUR_BOUNDS:
                self._on_dropped(deployment, name.casefold())

    def _bound(self, fields: dict[str, object], request: ChatRequest, recipient: Recipient) -> None:
        """Put the answer's bound, clamped to the allowance, under the name that the provider reads, and no other."""
        if fields.keys() <= KNOWN_FIELDS:
            fields.pop("max_completion_tokens", None)
            fields.pop("max_tokens", None)
        else:
            self._drop_bounds(fields, "", recipient.deployment)
        provider, allowance_tokens = recipient.deployment.provider, recipient.allowance_tokens
        bound = request.max_completion_tokens or request.max_tokens or provider.default_max_tokens
        if allowance_tokens is not None and (not bound or allowance_tokens < bound):
            bound = allowance_tokens
        if bound is not None:
            fields[provider.max_tokens_field] = bound

    def _separate_tenants(self, fields: dict[str, object], request: ChatRequest, organization_id: str) -> None:
        """Prefix what a provider may group by, so that no tenant can meet another's cache or abuse record."""
        for name in _TENANT_FIELDS:
            value = getattr(request, name)
            if value and name in fields:
                fields[name] = self.separate(value, organization_id)

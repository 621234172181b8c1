"""Makes a body fit what a provider's row says that it accepts: parameters, their names and values, messages.

Invariant: what would change the answer is refused by name; what would not is left out, and ``on_dropped`` is told. The
messages are rebuilt only where a rule of the row applies to one of them. Not here: the bound of the answer, the model,
tenants (``body``).
"""

from collections.abc import Callable

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed
from meterhouse.message import Message
from meterhouse.providers.provider import Deployment, Provider
from meterhouse.request import ChatRequest

Fields = dict[str, object]
OnDropped = Callable[[Deployment, str], None]

_UNSET = frozenset({b"null", b"false", b"[]", b"{}"})
_BLANK = Raw(b'" "')
_messages_decoder = msgspec.json.Decoder(list[dict[str, Raw]])
_text_decoder = msgspec.json.Decoder(str)


def adapt(fields: Fields, request: ChatRequest, deployment: Deployment, on_dropped: OnDropped) -> None:
    """Change the fields of a chat completion request, one level deep, to what the deployment accepts.

    There is nothing to do where no field is among the row's ``ruled_parameters``.

    Raises:
        Malformed: It has a parameter, or a value of one, that the provider cannot honour.
    """
    row = deployment.provider
    adapt_parameters(fields, request.model, deployment, on_dropped)
    # Messages with the tools told in them are made anew afterwards.
    if "messages" in row.ruled_parameters and not row.renders_tools and _needs_other_messages(fields, request, row):
        _adapt_messages(fields, request, deployment, on_dropped)


def adapt_parameters(fields: Fields, model: str, deployment: Deployment, on_dropped: OnDropped) -> None:
    """Change the parameters of a body of any wire to what the deployment accepts; ``model`` is the asked name.

    Raises:
        Malformed: as ``adapt``.
    """
    row = deployment.provider
    # Each step is asked for first: most rows need few of them, and every request comes by here.
    if not row.denied_parameters.isdisjoint(fields):
        _deny(fields, model, row)
    dropped = row.dropped_parameters
    if row.model_rules:
        dropped |= row.rule_of(deployment.upstream_model).dropped_parameters
    if not dropped.isdisjoint(fields):
        for name in sorted(dropped & fields.keys()):
            del fields[name]
            on_dropped(deployment, name)
    if row.denied_values or row.value_renames:
        _spell_values(fields, model, row)
    for old, new in row.renames.items():
        if old in fields:
            fields[new] = fields.pop(old)


def _deny(fields: Fields, model: str, row: Provider) -> None:
    for name in sorted(row.denied_parameters & fields.keys()):
        if not _is_unset(fields[name]):
            text = f"'{name}' is not supported by '{model}'."
            raise Malformed(text, param=name, code="unsupported_parameter")
        del fields[name]


def _is_unset(value: object) -> bool:
    return isinstance(value, Raw) and bytes(value) in _UNSET


def _spell_values(fields: Fields, model: str, row: Provider) -> None:
    for name in row.denied_values.keys() | row.value_renames.keys():
        value = text_of_raw(fields.get(name))
        if value is None:
            continue
        if value in row.denied_values.get(name, ()):
            text = f"'{name}' cannot be '{value}' for '{model}'."
            raise Malformed(text, param=name, code="unsupported_value")
        fields[name] = row.value_renames.get(name, {}).get(value, value)


def text_of_raw(value: object) -> str | None:
    """Return the text that a raw field holds; None where it is no text."""
    if not isinstance(value, Raw) or not bytes(value).startswith(b'"'):
        return None
    return _text_decoder.decode(value)


def _needs_other_messages(fields: Fields, request: ChatRequest, row: Provider) -> bool:
    """Whether a rule of the row applies to any message; almost always none does."""
    names = row.dropped_message_fields
    for message in request.messages:
        for name in names:
            if getattr(message, name, None) is not None:
                return True
        if row.flattens_text_parts and _is_all_text(message):
            return True
        if row.reasoning_replay != "keep" and _lacks_reasoning(message, fields, row):
            return True
    return False


def _is_all_text(message: Message) -> bool:
    parts = message.content
    return isinstance(parts, list) and bool(parts) and all(part.type == "text" for part in parts)


def _lacks_reasoning(message: Message, fields: Fields, row: Provider) -> bool:
    """Whether the provider would refuse a message of the assistant because no reasoning came back with it."""
    if row.reasoning_replay not in {"fill", "fill_for_calls"} or message.role != "assistant":
        return False
    if message.reasoning_content or b'"disabled"' in bytes(_raw(fields.get("thinking"))):
        return False
    return row.reasoning_replay == "fill" or bool(message.tool_calls)


def _raw(value: object) -> Raw:
    return value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))


def _adapt_messages(fields: Fields, request: ChatRequest, deployment: Deployment, on_dropped: OnDropped) -> None:
    row = deployment.provider
    messages = _messages_decoder.decode(_raw(fields["messages"]))
    names = row.dropped_message_fields
    for message, seen in zip(messages, request.messages, strict=True):
        for name in sorted(names & message.keys()):
            del message[name]
            on_dropped(deployment, f"messages[].{name}")
        if row.flattens_text_parts and _is_all_text(seen):
            assert isinstance(seen.content, list)
            text = "\n".join(part.text or "" for part in seen.content)
            message["content"] = Raw(msgspec.json.encode(text))
        if _lacks_reasoning(seen, fields, row):
            # What the model thought is gone; both providers were seen to take a blank for it.
            replayed = seen.reasoning
            message["reasoning_content"] = Raw(msgspec.json.encode(replayed)) if replayed else _BLANK
    fields["messages"] = messages

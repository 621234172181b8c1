"""The course of an answer: what is said in which order, when it pauses, and where it breaks.

One course for streams and one for whole bodies; a plan decides everything about them. The counts that a usage object
reports come from what was emitted, so that the log and an honest provider agree.
Not here: the faults themselves (faults), the plan's names (plan).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fakes import faults
from fakes.anthropic_wire import AnthropicWire
from fakes.completions_wire import CompletionsWire
from fakes.endpoints import ENDPOINTS
from fakes.exchange import Exchange, Note, Over
from fakes.plan import Plan
from fakes.responses_upstream import ResponsesWire
from fakes.wires import ALONE, ON_FINISH, OllamaWire, OpenAiWire, encode, make_usage
from fakes.words import word

Script = Callable[[Exchange], Awaitable[None]]
AnyWire = OpenAiWire | OllamaWire | ResponsesWire | AnthropicWire


def open_wire(x: Exchange) -> AnyWire:
    """Choose the wire by the path that was asked for."""
    body = {"model": "", **x.request.body}
    if x.request.path.endswith("/responses"):
        return ResponsesWire(x.plan, body, x.number)
    if x.request.is_anthropic:
        return AnthropicWire(x.plan, body, x.number)
    if x.request.path == "/v1/completions":
        return CompletionsWire(x.plan, body, x.number)
    return OllamaWire(x.plan, body) if x.request.is_ollama else OpenAiWire(x.plan, body, x.number)


async def answer(x: Exchange) -> None:
    """Answer as the plan says."""
    wire = open_wire(x)
    await reach(x, wire, "start")
    await x.pause(x.plan.head_ms)
    if x.plan.status:
        await faults.refuse(x)
    elif x.plan.special in faults.SPECIALS:
        await faults.SPECIALS[x.plan.special](x)
    elif x.request.path in ENDPOINTS:
        await ENDPOINTS[x.request.path](x)
    elif x.plan.special == "stream-for-json" or (x.request.is_streamed and x.plan.special != "json-for-stream"):
        await stream(x, wire)
    else:
        await whole(x, wire)


async def reach(x: Exchange, wire: AnyWire, point: str) -> None:
    """Arrive at a point of the course: wait at a gate that is there, suffer a fault that is there."""
    if x.plan.gate == point:
        await x.hold(point)
    if x.plan.fault and x.plan.at == point:
        await faults.FAULTS[x.plan.fault](x, wire)
        if x.plan.fault not in faults.GO_ON:
            raise Over


async def stream(x: Exchange, wire: AnyWire) -> None:
    """Stream an answer."""
    plan = x.plan
    await x.head(200, {"content-type": plan.content_type or wire.content_type, "cache-control": "no-cache"})
    await faults.send_comments(x)
    await reach(x, wire, "head")
    await x.pause(plan.first_ms)
    for event in wire.open():
        await x.emit(event)
    pace_ms = plan.duration_ms / plan.tokens if plan.duration_ms else plan.pace_ms
    count = 0
    async for choice, delta, kind, is_token in speak(wire, plan):
        if is_token:
            await reach(x, wire, str(count))
            await x.pause(pace_ms if count else 0)
            count += 1
            usage = running_usage(x, wire, 1)
            await x.token(wire.token(choice, delta, usage), kind, *usage_note(usage, "running"))
        else:
            await x.emit(wire.token(choice, delta, None))
        await faults.send_comments(x)
    await reach(x, wire, str(count))
    await finish(x, wire, "length" if is_limited(wire, plan) and plan.finish != "none" else plan.finish)
    await reach(x, wire, "finish")
    await send_usage_alone(x, wire)
    await reach(x, wire, "usage")
    if plan.done and wire.done():
        await x.emit(wire.done(), ("done", {}))
    await x.flush()
    await reach(x, wire, "done")
    await x.end()


def is_limited(wire: AnyWire, plan: Plan) -> bool:
    """Whether max_tokens ends the answer before its time."""
    return wire.limit is not None and (plan.tokens < 0 or plan.tokens + plan.reasoning > wire.limit)


async def speak(wire: AnyWire, plan: Plan) -> AsyncIterator[tuple[int, dict[str, Any], str, bool]]:
    """Yield (choice, delta, kind, whether it is a token) of all choices in turn, within the limit per choice."""
    index = 0
    text_tokens = plan.tokens + plan.reasoning if plan.tokens >= 0 else None
    while (text_tokens is None or index < text_tokens) and (wire.limit is None or index < wire.limit):
        for choice in range(wire.choices):
            if index < plan.reasoning:
                name = "thinking" if isinstance(wire, OllamaWire) else plan.field
                yield choice, {name: word(wire.marker, index, choice)}, "reasoning", True
            elif plan.calls:
                for delta, is_token in call_deltas(wire, plan, index, choice):
                    yield choice, delta, "tool", is_token
            elif plan.refusal:
                yield choice, {"refusal": word(wire.marker, index - plan.reasoning, choice)}, "refusal", True
            else:
                yield choice, {"content": word(wire.marker, index - plan.reasoning, choice)}, "text", True
        index += 1


def call_deltas(wire: AnyWire, plan: Plan, index: int, choice: int) -> list[tuple[dict[str, Any], bool]]:
    """Make the deltas of one step of the tool calls: the arguments are ``{"text": "<words>"}`` in fragments."""
    first, last = index == plan.reasoning, index == plan.reasoning + plan.tokens - 1
    spoken = word(wire.marker, index - plan.reasoning, choice)
    if isinstance(wire, OllamaWire):
        if not last:
            return [({}, True)]
        arguments = {"text": "".join(word(wire.marker, step) for step in range(plan.tokens))}
        calls = [
            {"function": {"index": call, "name": f"tool_{call}", "arguments": arguments}} for call in range(plan.calls)
        ]
        return [({"tool_calls": calls}, True)]
    deltas: list[tuple[dict[str, Any], bool]] = []
    for call in range(plan.calls):
        row: dict[str, Any] = {"index": call}
        name = {"id": f"call_{choice}_{call}", "type": "function"}
        if first:
            opened = row | name | {"function": {"name": f"tool_{call}", "arguments": ""}}
            deltas.append(({"tool_calls": [opened]}, False))
        if plan.ids == "empty":
            row |= {"id": "", "type": "function"}
        elif plan.ids == "every":
            row |= name
        fragment = ('{"text":"' if first else "") + spoken + ('"}' if last else "")
        deltas.append(({"tool_calls": [row | {"function": {"arguments": fragment}}]}, True))
    return deltas


async def finish(x: Exchange, wire: AnyWire, reason: str) -> None:
    """End every choice; the usage that goes with the end is on the last one."""
    if reason == "none":
        return
    for choice in range(wire.choices):
        is_last = choice == wire.choices - 1
        usage = usage_on_finish(x, wire) if is_last else None
        notes = [("finish", {"reason": reason}), *usage_note(usage, "finish")] if is_last else []
        await x.emit(wire.finish(choice, reason, usage), *notes)


def running_usage(x: Exchange, wire: AnyWire, added: int) -> dict[str, Any] | None:
    """Make the usage on a token's chunk, where the plan puts one there."""
    count = x.output_tokens + added
    if x.plan.usage.startswith("running") or (x.plan.usage == "early" and count == 1):
        return make_usage("true", wire.prompt_tokens, count)
    return None


def usage_on_finish(x: Exchange, wire: AnyWire) -> dict[str, Any] | None:
    """Make the usage on the chunk with the finish_reason."""
    usage = x.plan.usage
    if isinstance(wire, OllamaWire):
        kind = usage if usage in {"zero", "huge", "negative"} else "true"
        return None if usage == "none" else make_usage(kind, wire.prompt_tokens, x.output_tokens)
    if isinstance(wire, AnthropicWire):
        return None if usage == "none" else true_usage(x, wire)
    if usage in ON_FINISH | {"kimi", "groq"}:
        return true_usage(x, wire)
    return None


def true_usage(x: Exchange, wire: AnyWire) -> dict[str, Any]:
    """Make the usage as the plan words it, from what was emitted."""
    reasoning = min(x.plan.reasoning * wire.choices, x.output_tokens)
    return make_usage(x.plan.usage, wire.prompt_tokens, x.output_tokens, reasoning)


async def send_usage_alone(x: Exchange, wire: AnyWire) -> None:
    """Send the usage that comes with choices []."""
    kind = x.plan.usage
    if isinstance(wire, OllamaWire | AnthropicWire) or not (kind in ALONE or (kind == "choices" and wire.wants_usage)):
        return
    usage = make_usage("zero", 0, 0) if kind == "zero-copy" else true_usage(x, wire)
    await x.emit(wire.alone(usage), *usage_note(usage, "alone"))


def usage_note(usage: dict[str, Any] | None, where: str) -> list[Note]:
    """Make the note of a usage that goes out inside another event."""
    return [("usage", {"usage": usage, "where": where})] if usage else []


async def whole(x: Exchange, wire: AnyWire) -> None:
    """Answer with one body; the same faults break it where they can."""
    plan = x.plan
    if plan.tokens < 0 and wire.limit is None:
        await x.forever()
    await x.pause(plan.first_ms + (plan.duration_ms or plan.pace_ms * max(plan.tokens, 0)))
    if plan.gate not in {"", "start"}:
        await x.hold(plan.gate)
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": None} for _ in range(wire.choices)]
    async for choice, delta, _, is_token in speak(wire, plan):
        add_delta(messages[choice], delta)
        x.output_tokens += is_token
    reason = "length" if is_limited(wire, plan) else plan.finish
    usage = None if plan.usage == "none" else true_usage(x, wire)
    body = wire.body(messages, None if reason == "none" else reason, usage)
    if plan.fault and plan.at != "start":
        await faults.break_body(x, body)
    notes: list[Note] = [("token", {"kind": "body", "count": x.output_tokens}), ("finish", {"reason": reason})]
    await send_body(x, body, [*notes, *usage_note(usage, "body")])


async def send_body(x: Exchange, body: bytes, notes: list[Note]) -> None:
    """Send a body with its length, or chunked after the empty lines by which DeepSeek keeps a connection alive."""
    content_type = x.plan.content_type or "application/json"
    if x.plan.comment or x.plan.gzip:
        await x.head(200, {"content-type": content_type})
        for _ in range(x.plan.comments if x.plan.comment else 0):
            await x.emit(b"\n")
            await x.flush()
        await x.emit(body, *notes)
        await x.end()
        return
    await x.whole(200, content_type, body, None, *notes)


def add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Put a delta into the whole message."""
    for key, value in delta.items():
        if key == "tool_calls":
            for call in value:
                add_call(message.setdefault("tool_calls", []), call)
        else:
            message[key] = (message.get(key) or "") + value


def add_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """Put a fragment of a tool call into the whole list."""
    index = call.get("index", call["function"].get("index"))
    if index == len(calls):
        calls.append({key: value for key, value in call.items() if key != "index"})
        return
    calls[index]["function"]["arguments"] += call["function"]["arguments"]


def list_models(names: list[str], *, is_ollama: bool) -> bytes:
    """Encode the list of scripts as the models that this provider serves."""
    if is_ollama:
        details = {"format": "gguf", "family": "fake", "parameter_size": "1B", "quantization_level": "Q4_0"}
        rows = [{"name": name, "model": name, "size": 1, "digest": "0", "details": details} for name in names]
        return encode({"models": rows})
    return encode(
        {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in names],
        }
    )

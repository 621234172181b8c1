"""How an answer goes wrong: faults in mid-answer, answers that are none, refusals by status.

A fault happens at one point of the course; after those in ``GO_ON`` the answer continues as if nothing had happened,
so that a reader who overlooks one does not fail for another reason.
Not here: where a fault is placed (plan), the course of a good answer (scripts).
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from fakes.anthropic_wire import AnthropicWire
from fakes.exchange import Exchange, Over
from fakes.wires import OllamaWire, OpenAiWire, encode
from fakes.words import word

AnyWire = OpenAiWire | OllamaWire | AnthropicWire
LONG_LINE_BYTES = 10_000_000
BOMB_MEGABYTES = 100
TICK_MS = 50
HTML = b"<!doctype html><html><head><title>Fake edge</title></head><body><h1>It broke</h1></body></html>"
GO_ON = frozenset({"stall", "not-json", "bad-utf8", "nul", "long-line"})


async def send_comments(x: Exchange) -> None:
    """Send the plan's comments; Ollama's lines know none."""
    if x.plan.comment and not x.request.is_ollama:
        for _ in range(x.plan.comments):
            await x.emit(f": {x.plan.comment}\n\n".encode())


async def stall(x: Exchange, wire: AnyWire) -> None:
    """Say nothing for a while, or for ever."""
    if not x.plan.stall_ms:
        await x.forever()
    await x.pause(x.plan.stall_ms)


async def only_comments(x: Exchange, wire: AnyWire) -> None:
    """Keep the connection alive without ever saying anything."""
    while True:
        await x.emit(b"\n" if isinstance(wire, OllamaWire) else f": {x.plan.comment}\n\n".encode())
        await x.pause(TICK_MS)


async def trickle(x: Exchange, wire: AnyWire) -> None:
    """Send token after token, one byte at a time, without an end."""
    await x.flush()
    while True:
        for byte in next_event(x, wire):
            await x.write(x.frame(bytes([byte])))
            await x.pause(x.plan.pace_ms or TICK_MS)
        await x.token(b"", "text")


def next_event(x: Exchange, wire: AnyWire) -> bytes:
    """Encode the token that would come now."""
    return wire.token(0, {"content": word(wire.marker, x.output_tokens)}, None)


async def reset(x: Exchange, wire: AnyWire) -> None:
    """RST between two events."""
    await x.reset()


async def half_reset(x: Exchange, wire: AnyWire) -> None:
    """RST in the middle of an event."""
    await x.half(next_event(x, wire))
    await x.reset()


async def close(x: Exchange, wire: AnyWire) -> None:
    """FIN without the end of the body."""
    await x.close()


async def eof(x: Exchange, wire: AnyWire) -> None:
    """End the body cleanly, too early."""
    await x.end()


async def half_eof(x: Exchange, wire: AnyWire) -> None:
    """End the body cleanly in the middle of an event."""
    await x.half(next_event(x, wire))
    await x.end()


async def done(x: Exchange, wire: AnyWire) -> None:
    """Send the terminal event without a finish_reason."""
    await x.emit(wire.done(), ("done", {}))
    await x.end()


async def empty_delta(x: Exchange, wire: AnyWire) -> None:
    """Fail as Ollama's /v1 does: an empty delta, then the end of the body."""
    await x.emit(wire.token(0, {"content": ""}, None))
    await x.end()


def error(shape: str) -> Callable[[Exchange, AnyWire], Awaitable[None]]:
    """Make the fault of an error event in this shape; vLLM's (``done``) is followed by [DONE]."""

    async def send(x: Exchange, wire: AnyWire) -> None:
        await x.emit(wire.error("the fake model failed", shape=shape), ("error", {"shape": shape}))
        if shape == "done":
            await x.emit(wire.done(), ("done", {}))
        await x.end()

    return send


def garbage(make: Callable[[], bytes]) -> Callable[[Exchange, AnyWire], Awaitable[None]]:
    """Make the fault of one event with this data."""

    async def send(x: Exchange, wire: AnyWire) -> None:
        data = make()
        prefix, suffix = (b"", b"\n") if isinstance(wire, OllamaWire) else (b"data: ", b"\n\n")
        await x.emit(prefix + data + suffix, ("garbage", {"sent_bytes": len(data)}))

    return send


GARBAGE: dict[str, Callable[[], bytes]] = {
    "not-json": lambda: b'{"choices": [{"index": 0, "delta": ',
    "bad-utf8": lambda: b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3("},"finish_reason":null}]}',
    "nul": lambda: b'{"choices":[{"index":0,"delta":{"content":"a\x00b"},"finish_reason":null}]}',
    "long-line": lambda: (
        b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * LONG_LINE_BYTES + b'"},"finish_reason":null}]}'
    ),
}

FAULTS: dict[str, Callable[[Exchange, AnyWire], Awaitable[None]]] = {
    "stall": stall,
    "comments": only_comments,
    "trickle": trickle,
    "reset": reset,
    "half-reset": half_reset,
    "close": close,
    "eof": eof,
    "half-eof": half_eof,
    "done": done,
    "empty-delta": empty_delta,
    "error": error("envelope"),
    "error-done": error("done"),
    "error-event": error("event"),
    "error-flat": error("flat"),
    "error-chunk": error("chunk"),
} | {name: garbage(make) for name, make in GARBAGE.items()}


async def break_body(x: Exchange, body: bytes) -> None:
    """Break an answer that is one body: half of it, none of it, or something else. A stall that ends lets it pass."""
    fault = x.plan.fault
    if fault == "stall" and x.plan.stall_ms:
        await x.pause(x.plan.stall_ms)
        return
    if fault == "comments":
        await x.head(200, {"content-type": "application/json"})
        await only_comments(x, OllamaWire(x.plan, x.request.body))
    if fault.startswith("error"):
        failure = {"message": "the fake model failed", "type": "server_error", "param": None, "code": None}
        data = encode(failure if fault == "error-flat" else {"error": failure})
        await x.whole(200, "application/json", data, None, ("error", {"shape": fault}))
    elif fault in GARBAGE:
        await x.whole(200, "application/json", GARBAGE[fault]())
    else:
        await half_body(x, body)
    raise Over


async def half_body(x: Exchange, body: bytes) -> None:
    """Send the head with the whole length and half of the body, then stop in the fault's way."""
    await x.head(200, {"content-type": "application/json"}, length=len(body))
    if x.plan.fault == "trickle":
        for byte in body[:-1]:
            await x.write(bytes([byte]))
            await x.pause(x.plan.pace_ms or TICK_MS)
        await x.forever()
    await x.half(body)
    if x.plan.fault == "stall":
        await x.forever()
    if x.plan.fault in {"reset", "half-reset"}:
        await x.reset()
    await x.close()


async def refuse(x: Exchange) -> None:
    """Answer with an error status, in the plan's shape."""
    plan = x.plan
    # OpenAI repeats the key in the text of its 401; what must not reach a tenant.
    message = f"Fake failure {plan.status}. Credential: {x.request.headers.get('authorization', 'none')}"
    kind = "server_error" if plan.status >= 500 else "invalid_request_error"
    code = plan.code or None
    failure: dict[str, Any] = {"message": message, "type": plan.code or kind, "param": None, "code": code}
    bodies: dict[str, Any] = {
        "envelope": {"error": failure},
        "flat": failure,
        "list": [{"error": {"code": plan.status, "message": message, "status": "FAILED_PRECONDITION"}}],
        "detail": {"detail": [{"loc": ["body", "seed"], "msg": message, "type": "extra_forbidden"}]},
        "anthropic": {"type": "error", "error": {"type": kind, "message": message}},
    }
    content_type, body = "application/json", b""
    if plan.shape == "html":
        content_type, body = "text/html", HTML
    elif plan.shape == "text":
        content_type, body = "text/plain", message.encode()
    elif plan.shape != "empty":
        body = encode({"error": message} if x.request.is_ollama else bodies[plan.shape])
    headers = {"retry-after": plan.retry_after} if plan.retry_after else {}
    await x.whole(plan.status, content_type, body, headers, ("error", {"shape": plan.shape}))


async def garbage_http(x: Exchange) -> None:
    """Answer with bytes that are not HTTP."""
    await x.write(b"\x16\x03\x01\x02\x00 this is not HTTP\r\n\r\n")
    await x.close()


async def html_200(x: Exchange) -> None:
    """Answer 200 with a page."""
    await x.whole(200, "text/html; charset=utf-8", HTML)


async def bomb(x: Exchange) -> None:
    """Answer with 100 KB that unpack to 100 MB of blanks."""
    # It takes a second, in which other answers go on.
    body = await asyncio.to_thread(_pack_bomb)
    content_type = "text/event-stream" if x.request.is_streamed else "application/json"
    await x.whole(200, content_type, body, {"content-encoding": "gzip"})


def _pack_bomb() -> bytes:
    deflate = zlib.compressobj(wbits=31)
    megabyte = b" " * 1_000_000
    return b"".join(deflate.compress(megabyte) for _ in range(BOMB_MEGABYTES)) + deflate.flush()


async def redirect(x: Exchange) -> None:
    """Send the client elsewhere, with its credential."""
    await x.whole(302, "text/plain", b"", {"location": "http://127.0.0.1:9/v1/chat/completions"})


SPECIALS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "garbage-http": garbage_http,
    "html-200": html_200,
    "bomb": bomb,
    "redirect": redirect,
}

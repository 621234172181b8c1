"""No prompt, no answer and no secret is anywhere but where it belongs."""

import json
from pathlib import Path

from api.asking import CREDENTIAL_CANARY
from api.live.watcher import Watcher
from api.telemetry.broken import broken_routes
from api.telemetry.collector import Collector
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from fakes.wires import encode
from fakes.words import message_text

PROMPT = "prompt-canary-71f3"
ANSWER = "answer-canary-52c9"
WRONG_KEY = "sk-mh-dev-wrong-key-canary-0000000000"


async def say(exchange: Exchange) -> None:
    """Answer with the canary."""
    wire = scripts.open_wire(exchange)
    if exchange.request.is_streamed:
        await exchange.head(200, {"content-type": "text/event-stream"})
        await exchange.token(wire.token(0, {"content": ANSWER, "reasoning_content": ANSWER}, None), "text")
        await exchange.emit(wire.finish(0, "stop", None))
        await exchange.emit(wire.done())
        await exchange.end()
        return
    await exchange.whole(200, "application/json", wire.body([{"role": "assistant", "content": ANSWER}], "stop", None))


async def echo(exchange: Exchange) -> None:
    """Refuse the request and quote all of it, as some providers do."""
    said = message_text(exchange.request.body["messages"][0])
    message = f"Could not understand {said!r} of {exchange.request.headers['authorization']}"
    await exchange.whole(
        422, "application/json", encode({"error": {"message": message, "type": "invalid_request_error"}})
    )


async def break_off(exchange: Exchange) -> None:
    """Speak no HTTP in the middle of an answer."""
    await exchange.head(200, {"content-type": "text/event-stream"})
    await exchange.token(scripts.open_wire(exchange).token(0, {"content": ANSWER}, None), "text")
    await exchange.flush()
    await exchange.write(f"{ANSWER} is no length\r\n".encode())
    await exchange.close()


async def answer_garbage(exchange: Exchange) -> None:
    """Speak no HTTP at all."""
    await exchange.write(f"{ANSWER} {ANSWER}\r\n{ANSWER}\r\n\r\n".encode())
    await exchange.close()


async def send_half_json(exchange: Exchange) -> None:
    """Stream what is no JSON."""
    await exchange.head(200, {"content-type": "text/event-stream"})
    await exchange.token(scripts.open_wire(exchange).token(0, {"content": ANSWER}, None), "text")
    await exchange.emit(f'data: {{"choices": {ANSWER}\n\n'.encode())
    await exchange.end()


SCRIPTS = {"say": say, "echo": echo, "break-off": break_off, "no-http": answer_garbage, "half-json": send_half_json}
MESSAGES = [
    {"role": "system", "content": PROMPT},
    {"role": "user", "content": [{"type": "text", "text": f"{PROMPT} and more"}], "name": PROMPT},
]
BROKEN = [
    {"messages": [{"role": PROMPT, "content": PROMPT}]},
    {"messages": MESSAGES, "temperature": PROMPT},
    {"messages": MESSAGES, "tool_choice": PROMPT},
    {"messages": PROMPT},
]


def ask_everything(gateway: Gateway) -> list[bytes]:
    """Send canaries down every path; returns the bodies of the errors."""
    errors = []
    for name in [*SCRIPTS, "error-500", "reset", "error-mid", "usage-missing", "infinite?tokens=4"]:
        for stream in (True, False):
            tools = [{"type": "function", "function": {"name": "f", "description": PROMPT}}]
            status, _, body = gateway.chat(f"fake/{name}", messages=MESSAGES, stream=stream, tools=tools, user=PROMPT)
            if status != 200 and name != "echo":
                errors.append(body)
    for fields in BROKEN:
        status, _, _ = gateway.chat("fake/say", **fields)
        assert status == 400
    body = json.dumps({"model": "fake/say", "messages": MESSAGES}).encode()
    assert gateway.request("POST", "/v1/chat/completions", body[:-5])[0] == 400
    for key in (WRONG_KEY, gateway.key[:-1] + ("a" if gateway.key[-1] != "a" else "b")):
        status, _, answer = gateway.chat("fake/say", key=key, messages=MESSAGES)
        assert status == 401
        errors.append(answer)
    status, _, answer = gateway.request("GET", "/admin/keys", key=gateway.key)
    assert status in {401, 403}
    errors.append(answer)
    gateway.settle()
    return errors


def holders(data: Path, canary: str) -> list[str]:
    return [path.name for path in data.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


def test_no_canary_is_found_in_log_metrics_traces_journal_ledger_or_errors(
    up: FakeUpstream, collector: Collector, tmp_path: Path
) -> None:
    for name, script in SCRIPTS.items():
        up.script(name, script)
    settings = {
        "METERHOUSE_OTLP_ENDPOINT": collector.endpoint,
        "METERHOUSE_TRACE_RATIO": "1",
        "METERHOUSE_LOG_LEVEL": "debug",
        "METERHOUSE_IDLE_TIMEOUT_SECONDS": "1",
    }
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url, **settings)) as gateway:
        with Watcher(gateway.url, "/admin/live", gateway.admin_key) as watcher:
            errors = ask_everything(gateway)
            watcher.wait_for(lambda events: sum(event["type"] == "request.finished" for event in events) > 15)
        told = b"".join(watcher.lines)
        metrics = gateway.request("GET", "/metrics", key="")[2]
        keys = [gateway.key, gateway.admin_key, gateway.key[-24:], gateway.admin_key[-24:]]
    log = gateway.log_path.read_bytes()
    assert log.count(b"request.finished") > 20
    assert len(collector.raw) > 0
    for canary in (PROMPT, ANSWER, CREDENTIAL_CANARY, WRONG_KEY, *keys):
        needle = canary.encode()
        assert needle not in log, [line for line in log.splitlines() if needle in line]
        assert needle not in metrics
        assert needle not in told
        assert not [raw for raw in collector.raw if needle in raw]
        assert not [body for body in errors if needle in body]
        # The keys of the first start are kept for the developer, readable by the owner only.
        assert set(holders(gateway.data, canary)) <= ({"dev.env"} if canary in keys else set())
    assert (gateway.data / "dev.env").stat().st_mode & 0o077 == 0


def test_a_provider_that_quotes_the_request_gives_no_secret_to_the_caller(gateway: Gateway, up: FakeUpstream) -> None:
    up.script("echo", echo)
    status, _, body = gateway.chat("fake/echo", messages=MESSAGES)
    assert status == 422
    assert CREDENTIAL_CANARY.encode() not in body


def test_a_crash_shows_no_prompt(up: FakeUpstream, tmp_path: Path) -> None:
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url)) as gateway, broken_routes(gateway):
        status, _, body = gateway.chat("fake/normal", messages=MESSAGES)
    assert status == 500
    assert PROMPT.encode() not in body
    assert b"ZeroDivisionError" in gateway.log_path.read_bytes()
    assert PROMPT.encode() not in gateway.log_path.read_bytes()

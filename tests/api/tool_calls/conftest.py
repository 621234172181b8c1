"""A provider that says what it is told to, behind deployments with every tool call format."""

from collections.abc import Iterator
from typing import Any

import pytest

from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from fakes.words import message_text
from meterhouse.providers.tool_text import TOOL_CALL_FORMATS

SAY = "say:"


class Sayer:
    """The script ``say``: the answer is the text behind ``say:`` in the last message, ``tokens`` characters a chunk.

    The bodies that it was sent are kept, newest last.
    """

    def __init__(self, up: FakeUpstream) -> None:
        self.bodies: list[dict[str, Any]] = []
        up.script("say", self._run)

    async def _run(self, exchange: Exchange) -> None:
        body = exchange.request.body
        self.bodies.append(body)
        said = [message_text(message) for message in body["messages"]]
        text = next((one.partition(SAY)[2] for one in reversed(said) if SAY in one), "")
        wire, plan = scripts.open_wire(exchange), exchange.plan
        if not exchange.request.is_streamed:
            exchange.output_tokens = -(-len(text) // plan.tokens)
            usage = None if plan.usage == "none" else scripts.true_usage(exchange, wire)
            body_out = wire.body([{"role": "assistant", "content": text}], plan.finish, usage)
            await exchange.whole(200, "application/json", body_out)
            return
        await exchange.head(200, {"content-type": wire.content_type})
        for event in wire.open():
            await exchange.emit(event)
        for number, begin in enumerate(range(0, len(text), plan.tokens)):
            await scripts.reach(exchange, wire, str(number))
            await exchange.pause(plan.pace_ms)
            usage = scripts.running_usage(exchange, wire, 1)
            event = wire.token(0, {"content": text[begin : begin + plan.tokens]}, usage)
            await exchange.token(event, "text")
        await scripts.finish(exchange, wire, plan.finish)
        await scripts.send_usage_alone(exchange, wire)
        await exchange.emit(wire.done())
        await exchange.end()


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def sayer(up: FakeUpstream) -> Sayer:
    return Sayer(up)


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, sayer: Sayer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Providers: one per format by its name, ``plain`` without, ``told`` (tools in the prompt), ``kept`` (withheld)."""
    environment: dict[str, str] = {}
    for name in (*TOOL_CALL_FORMATS, "plain", "told", "kept"):
        environment |= provider_environment(name, up.base_url)
    for name in TOOL_CALL_FORMATS:
        environment[f"METERHOUSE_PROVIDER_{name.upper()}_TOOL_CALL_FORMAT"] = name
    environment |= {
        "METERHOUSE_PROVIDER_TOLD_TOOL_CALL_FORMAT": "hermes",
        "METERHOUSE_PROVIDER_TOLD_TOOLS": "prompt",
        "METERHOUSE_PROVIDER_KEPT_TOOL_CALL_FORMAT": "hermes",
        "METERHOUSE_PROVIDER_KEPT_TOOLS": "withhold",
        "METERHOUSE_PROVIDER_OLLAMA_BASE_URL": up.ollama_url,
        "METERHOUSE_PROVIDER_OLLAMA_TOOL_CALL_FORMAT": "say?tokens=3=glm4",
    }
    with Gateway(tmp_path_factory.mktemp("tools") / "data", environment) as running:
        yield running

"""Searches the text of answers for tool calls: of requests with tools, from deployments that have a format for them.

The provider's own bytes are what is counted and billed (``relay``, ``whole``); only what goes to the client changes.
What is held back here was counted and is covered by the hold, so that it can be let go whenever the answer ends.
"""

from dataclasses import replace

import msgspec

from meterhouse.errors import GatewayError
from meterhouse.http.body import ParsedBody, render_tools
from meterhouse.http.call import Call
from meterhouse.http.chunk import Chunk
from meterhouse.http.relay import StreamRelay
from meterhouse.http.sse import frame
from meterhouse.ids import public_request_id
from meterhouse.providers.provider import Deployment, Route
from meterhouse.request import ChatRequest, InputSize
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.metrics import Metrics
from meterhouse.translate.tool_text import GRAMMARS
from meterhouse.translate.tool_text.answer import ToolTextAnswer, Waiting, texts_of
from meterhouse.translate.tool_text.parser import PARSED
from meterhouse.translate.tool_text.tools import Tools
from meterhouse.usage import Outcome, Usage


def find_tool_text(request: ChatRequest, deployment: Deployment) -> ToolTextAnswer | None:
    """Return what rewrites a deployment's answer to a request; None where it stays as it is."""
    name = deployment.provider.tool_call_format
    if name is None:
        return None
    grammar = GRAMMARS[name]
    wants_calls = bool(request.tools) and request.tool_choice != "none"
    tools = Tools(
        {
            tool.function.name: tool.function.parameters
            for tool in (request.tools if wants_calls else None) or ()
            if tool.function is not None
        }
    )
    return ToolTextAnswer(grammar, tools) if grammar.trims or any(tools.names) else None


def report(call: Call, found: ToolTextAnswer, metrics: Metrics) -> None:
    """Count what was found in an answer, and log what was no call; no word of it gets there."""
    results = found.results
    if not results:
        return
    attempt = call.tally.attempt
    metrics.observe_tool_texts(attempt.provider, results)
    failures = {reason: count for reason, count in results.items() if reason != PARSED}
    if failures:
        get_logger().warning(
            Event.TOOL_CALL_NOT_PARSED,
            request_id=public_request_id(call.tally.request_id),
            deployment=attempt.deployment,
            format=call.deployment.provider.tool_call_format if call.deployment is not None else None,
            **failures,
        )


def with_rendered_tools(size: InputSize, parsed: ParsedBody, route: Route) -> InputSize:
    """Add to an input's size what telling the model of its tools adds, for the deployment where that is most."""
    rendering = [row.provider for row in route.deployments if row.provider.renders_tools]
    if not rendering:
        return size
    added_bytes = max(render_tools(parsed, provider).added_bytes for provider in rendering)
    return replace(size, text_bytes=size.text_bytes + added_bytes)


class ToolTextRelay(StreamRelay):
    """Relays an answer whose text may hold tool calls. ``search`` must be called before ``run``."""

    _found: ToolTextAnswer
    _metrics: Metrics
    _waiting: Waiting

    def search(self, found: ToolTextAnswer, metrics: Metrics) -> "ToolTextRelay":
        """Say what rewrites the answer; returns the relay."""
        self._found = found
        self._metrics = metrics
        self._waiting = []
        return self

    async def run(self) -> None:
        """Forward the answer as ``StreamRelay.run`` does; what is held back goes out before a failure is told."""
        try:
            await super().run()
        except GatewayError:
            await self._call.outlet.write_if_any(self._waiting_frames())
            raise
        finally:
            report(self._call, self._found, self._metrics)

    def end(self, usage: Usage) -> bytes:
        """Return what is sent after the barrier; of an answer that was cut also what was held back until then."""
        end = super().end(usage)
        return self._waiting_frames() + end if self._attempt.outcome is Outcome.CUT else end

    def _compose(self, payload: bytes, chunk: Chunk) -> bytes:
        compose = super()._compose
        return b"".join([compose(row, chunk) for row in self._found.rewrite_chunk(payload)])

    async def _is_held(self) -> bool:
        is_held = await super()._is_held()
        if is_held:
            # A read that is not covered is not forwarded: then what waited before it is what may still be told.
            self._waiting = self._found.waiting()
        return is_held

    def _waiting_frames(self) -> bytes:
        head = self._chunk_head()
        rows = [
            {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
            for index, text in texts_of(self._waiting).items()
        ]
        return b"".join(frame(msgspec.json.encode(head | {"choices": [row]})) for row in rows)

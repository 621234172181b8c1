"""Searches the text of answers for tool calls: of requests with tools, from deployments that have a format for them.

Here is what concerns the request, the log and the metrics. Not here: where the answer is rewritten (``rewriting``).
"""

import msgspec
from msgspec import Raw, structs

from meterhouse.asked import Asked
from meterhouse.http.body import render_tools
from meterhouse.http.call import Call
from meterhouse.ids import public_request_id
from meterhouse.providers.provider import Deployment, Route
from meterhouse.request import InputSize
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.metrics import Metrics
from meterhouse.translate.tool_text import GRAMMARS
from meterhouse.translate.tool_text.answer import ToolTextAnswer
from meterhouse.translate.tool_text.parser import PARSED
from meterhouse.translate.tool_text.tools import Tools


def find_tool_text(call: Call) -> ToolTextAnswer | None:
    """Return what rewrites the answer of the deployment that answers; None where it stays as it is."""
    assert call.deployment is not None
    name = call.deployment.provider.tool_call_format
    if name is None:
        return None
    _log_parameters(call, call.deployment)
    assert call.asked.chat is not None
    request, grammar = call.asked.chat.request, GRAMMARS[name]
    wants_calls = bool(request.tools) and request.tool_choice != "none"
    tools = Tools(
        {
            tool.function.name: tool.function.parameters
            for tool in (request.tools if wants_calls else None) or ()
            if tool.function is not None
        }
    )
    return ToolTextAnswer(grammar, tools) if grammar.trims or any(tools.names) else None


def _log_parameters(call: Call, deployment: Deployment) -> None:
    """Say with which parameters a local model answers: numbers and words of our own, nothing that a caller wrote."""
    assert call.asked.chat is not None
    request, fields = call.asked.chat.request, call.asked.chat.fields
    choice = request.tool_choice
    get_logger().debug(
        Event.GENERATION_STARTED,
        request_id=public_request_id(call.tally.request_id),
        deployment=deployment.id,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.asked_output_tokens or deployment.provider.default_max_tokens,
        repetition_penalty=_number(fields.get("repetition_penalty")),
        tools=len(request.tools or ()),
        tool_choice=choice if isinstance(choice, str | None) else "named",
        stream=call.tally.is_streamed,
    )


def _number(raw: Raw | None) -> float | None:
    try:
        return msgspec.json.decode(raw, type=float) if raw is not None else None
    except msgspec.DecodeError:
        return None


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


def with_rendered_tools(asked: Asked, route: Route) -> InputSize:
    """Return an input's size with what telling the model of its tools adds, for the deployment where that is most."""
    size, parsed = asked.size, asked.chat
    rendering = [row.provider for row in route.deployments if row.provider.renders_tools]
    if not rendering or parsed is None:
        return size
    added_bytes = max(render_tools(parsed, provider).added_bytes for provider in rendering)
    return structs.replace(size, text_bytes=size.text_bytes + added_bytes)

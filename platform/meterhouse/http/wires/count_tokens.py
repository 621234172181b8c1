"""Anthropic's ``POST /v1/messages/count_tokens``: asked of Anthropic, counted here for every other model.

Asked of a provider it takes the inference path, so keys, limits and records hold for it; it costs nothing and is
recorded so. Counted here it reaches nobody, and is one request under the key's limits and in the ledger all the same.
That count is of OpenAI's vocabulary, or an estimate by length for a long prompt and while another count is under way.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec
from starlette.types import Message, Receive, Scope, Send

from meterhouse.asked import Asked
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.call import Call
from meterhouse.http.client_origin import check_origin
from meterhouse.http.exchange import Exchange, exchange_of
from meterhouse.http.inference import InferenceParts, permit
from meterhouse.http.intake import MAX_VALUES, take_body
from meterhouse.http.middleware import credential_of, header
from meterhouse.http.outlet import Dialect
from meterhouse.http.passage import Passage
from meterhouse.http.respond import Envelope, send_whole
from meterhouse.http.shedding import Slot
from meterhouse.http.tokens import COUNT_SECONDS
from meterhouse.http.wires.messages import MESSAGES, MESSAGES_ENVELOPE, MessagesEndpoint, ask_messages, read_versions
from meterhouse.http.wires.passed_messages import PassedMessages
from meterhouse.limits.demand import estimate_input_tokens
from meterhouse.metering import Demand, Refusal, Reservation
from meterhouse.money import PossiblePrices
from meterhouse.providers.provider import Provider, Route
from meterhouse.request import Attempt, InputSize, Tally
from meterhouse.translate.anthropic.reading import read_request
from meterhouse.usage import Outcome, Usage

_SUFFIX = "/count_tokens"
COUNT_TOKENS = MESSAGES + _SUFFIX
COUNTED_BYTES = 32_768
"""A longer prompt is estimated: an answer that must be billed waits for the same thread."""
_FIELDS = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")

_NOTHING = InputSize(0, 0, 0, 0)
_FREE = PossiblePrices(())
"""What is held of tokens and money for a count."""


class PassedCount(PassedMessages):
    """Passes a count through."""

    bound_field = None

    def path(self, provider: Provider) -> str:
        """Return the path below that of messages."""
        return super().path(provider) + _SUFFIX

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:
        """Leave out what is no part of the prompt: it is refused there."""
        super().adapt(fields, recipient, editor)
        for name in fields.keys() - set(_FIELDS):
            del fields[name]

    def note_whole(self, call: Call, fields: dict[str, msgspec.Raw]) -> None:
        """Note that nothing was used."""
        super().note_whole(call, fields)
        call.tally.attempt.reported = Usage()

    def note_text(self, fields: dict[str, msgspec.Raw], attempt: Attempt) -> None:
        """Note none: a count says nothing."""


PASSED_COUNT = PassedCount(MESSAGES_ENVELOPE)


class CountTokensWire:
    """A request for messages without an answer."""

    path = COUNT_TOKENS
    operation = "count_tokens"
    most_values = MAX_VALUES
    passage: Passage | None = None
    envelope: Envelope = MESSAGES_ENVELOPE

    def read(self, body: bytes, content_type: str, default_model: Callable[[], str]) -> Asked:  # noqa: ARG002 - the protocol's own signature
        """Check a request; nothing is written for it."""
        asked = ask_messages(read_request(body, needs_bound=False))
        asked.output_tokens, asked.is_streamed = 0, False
        asked.request_units = 0  # a price of requests is one of answers
        return asked

    def find_passage(self, asked: Asked, provider: Provider) -> Passage | None:  # noqa: ARG002 - the protocol's own signature
        """Pass it through to Anthropic: of others that have messages, not all count."""
        return PASSED_COUNT if provider.wire == "anthropic" else None

    def open_dialect(self, asked: Asked) -> Dialect | None:  # noqa: ARG002 - the protocol's own signature
        """Return none."""
        return None


class CountTokensEndpoint(MessagesEndpoint):
    """The endpoint: the inference path where a provider counts, else a count of ours."""

    def __init__(self, parts: InferenceParts, wire: CountTokensWire) -> None:
        super().__init__(parts, wire)
        self._counting = asyncio.Semaphore(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        parts, wire = self._parts, self._wire
        exchange = exchange_of(scope)
        exchange.route = wire.path
        with Slot(parts.slots) as slot:
            principal = await parts.keyring.verify(credential_of(scope), exchange.address)
            exchange.principal = principal
            check_origin(principal, header(scope, b"origin"))
            slot.assign(principal.organization_id)
            body, asked = await take_body(
                scope, receive, lambda body: (body, wire.read(body, "", str)), wire.most_values
            )
            exchange.model = asked.model
            route = parts.routes.resolve(asked.model, parts.clock.now_ms())
            permit(principal, asked.model, route)
            if not any(wire.find_passage(asked, row.provider) is not None for row in route.deployments):
                asked.headers = read_versions(scope)
                tokens = await self._count_here(exchange, asked, route)
                await send_whole(send, [], msgspec.json.encode({"input_tokens": tokens}))
                return
        # The slot that was given back a moment ago is still free.
        await super().__call__(scope, _again(body, receive), send)

    def _demand(
        self,
        exchange: Exchange,
        asked: Asked,
        size: InputSize,  # noqa: ARG002 - the path's own signature
        route: Route,
        prices: PossiblePrices,  # noqa: ARG002 - the path's own signature
    ) -> Demand:
        """Return what a count may use: one request, whatever is counted and whoever counts it."""
        return super()._demand(exchange, asked, _NOTHING, route, _FREE)

    def _hold(
        self,
        exchange: Exchange,
        demand: Demand,
        size: InputSize,  # noqa: ARG002 - the path's own signature
        reserved: Reservation | Refusal,
        asked_ns: int,
    ) -> Tally:
        """Return the tally of a count: one that is left before it is answered has used nothing either."""
        return super()._hold(exchange, demand, _NOTHING, reserved, asked_ns)

    async def _count_here(self, exchange: Exchange, asked: Asked, route: Route) -> int:
        """Count what was asked, as a request that uses nothing; returns when its record is durable.

        Raises:
            Malformed: It can be told to Anthropic alone, whom nobody asks here.
            GatewayError: A limit refuses it, or it cannot be recorded.
        """
        if asked.chat is None:
            assert asked.chat_refusal is not None
            raise asked.chat_refusal
        asked.service_tier = None
        demand = self._demand(exchange, asked, asked.size, route, _FREE)
        asked_ns = time.monotonic_ns()
        tally = self._hold(exchange, demand, asked.size, await self._parts.meter.reserve(demand), asked_ns)
        attempt = Attempt(1, provider="", deployment="", upstream_model="", price=None, started_ns=tally.admitted_ns)
        attempt.reported = Usage()
        tally.attempts.append(attempt)
        try:
            tokens = await self._count(asked)
            attempt.outcome = Outcome.COMPLETED
        finally:
            attempt.ended_ns = time.monotonic_ns()
            position = self._parts.settler.settle(tally)
        await self._parts.journal.barrier(position)
        self._parts.meter.send_settled()
        return tokens

    async def _count(self, asked: Asked) -> int:
        assert asked.chat is not None
        if asked.size.text_bytes > COUNTED_BYTES or self._counting.locked():
            return estimate_input_tokens(asked.size)
        async with self._counting:
            try:
                async with asyncio.timeout(COUNT_SECONDS):
                    return await self._parts.counter.count_input(asked.chat)
            except TimeoutError:
                return estimate_input_tokens(asked.size)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read once more, then what comes after it."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def give() -> Message:
        nonlocal message
        given, message = message, None
        return given if given is not None else await receive()

    return give

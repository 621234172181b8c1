"""Opens a provider's answer: one attempt at a time, over to the next deployment until the first data event.

Each attempt leaves an INTENT in the journal before anything of it is sent, and an outcome in the tally. What the caller
is to blame for is never retried; extra attempts come out of a retry budget.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from meterhouse.asked import Asked
from meterhouse.errors import Malformed, UpstreamAccount, UpstreamDown, UpstreamError, UpstreamRefused
from meterhouse.http import intake
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.call import Call
from meterhouse.http.passage import OpenAnswer, Passage, WholeBody
from meterhouse.http.sse import DONE
from meterhouse.http.wire import UPSTREAM_WIRES
from meterhouse.ids import IdSource
from meterhouse.ledger.admission import Admission, AdmitsIntents
from meterhouse.ledger.record import Intent, encode
from meterhouse.providers.answer import Answer
from meterhouse.providers.breaker import Breakers, RetryBudget
from meterhouse.providers.provider import Deployment, Provider
from meterhouse.providers.refusal import no_answer, to_error
from meterhouse.providers.upstream import Upstream
from meterhouse.request import Attempt
from meterhouse.telemetry.traces import format_traceparent
from meterhouse.usage import Outcome

MAX_ANSWER_BYTES = 64 * 1_048_576
_ERROR_BYTES = 65_536
_ERROR_SECONDS = 5.0
_OK = 200


class Attempts:
    """Makes attempts for calls."""

    def __init__(
        self,
        upstream: Upstream,
        breakers: Breakers,
        budget: RetryBudget,
        journal: AdmitsIntents,
        editor: BodyEditor,
        on_failed: Callable[[str, Attempt, UpstreamError], None],
    ) -> None:
        self._upstream = upstream
        self._breakers = breakers
        self._budget = budget
        self._journal = journal
        self._editor = editor
        self._on_failed = on_failed
        self._ids = IdSource()

    @property
    def breakers(self) -> Breakers:
        """How the deployments fare in this process."""
        return self._breakers

    @property
    def budget(self) -> RetryBudget:
        """What extra attempts come out of."""
        return self._budget

    async def open(self, call: Call) -> OpenAnswer | WholeBody:
        """Open a streamed answer up to its first data event, or fetch a whole one, as its passage decodes it.

        Raises:
            UpstreamError: Every deployment failed, or the provider refused the request.
            Malformed: No deployment takes a parameter of the request.
            JournalDown: The attempt could not be recorded; nothing was sent.
        """
        self._budget.requests.add()
        failure: UpstreamError | None = None
        refusal: Malformed | UpstreamAccount | None = None
        asked, tally, deployments = call.asked, call.tally, call.route.deployments
        allowance_tokens = tally.reservation.allowance_tokens
        for deployment in deployments if len(deployments) == 1 else self._breakers.order(deployments):
            try:
                passage = call.wire.passage or call.wire.find_passage(asked, deployment.provider)
                assert passage is not None, "a route holds only what can be asked"
                recipient = Recipient(deployment, tally.principal.organization_id, allowance_tokens)
                if is_soon_encoded(asked, deployment.provider):
                    body = passage.encode(asked, recipient, self._editor)
                else:
                    body = await asyncio.to_thread(passage.encode, asked, recipient, self._editor)
            except Malformed as error:
                refusal = error  # another provider may take the parameter that this one does not
                continue
            breaker = self._breakers.of(deployment.id)
            leave = breaker.try_acquire()
            if leave is None:
                refusal = refusal or breaker.account_error
                continue
            # Whom nobody asks costs no extra attempt.
            if failure is not None and (call.is_overdue or not self._may_retry(failure)):
                breaker.give_back(leave)
                break
            call.occupy(breaker)
            try:
                attempt, admission = self._begin(call, deployment)
                opened = await self._connect(call, deployment, passage, body, admission)
            except UpstreamError as error:
                breaker.record(leave, error)
                self._fail(call, attempt, error)
                failure = error
                if isinstance(error, UpstreamRefused):
                    break
            except BaseException as error:
                breaker.record(leave, error)
                raise
            else:
                breaker.record(leave, None)
                return opened
        raise (
            failure
            or refusal
            or UpstreamDown(
                f"Every provider of '{call.route.model}' is out of order at the moment. Try again in a few seconds.",
                detail="breakers open",
                code="upstream_unavailable",
                retry_after_seconds=5,
            )
        )

    def _may_retry(self, failure: UpstreamError) -> bool:
        """Whether there may be one more attempt.

        Where our account is the trouble it is free: that happens once a minute to a deployment, and multiplies nothing.
        """
        is_ours = isinstance(failure, UpstreamAccount) and failure.is_certain
        return is_ours or self._budget.try_spend()

    def _begin(self, call: Call, deployment: Deployment) -> tuple[Attempt, Admission]:
        """Note an attempt in the tally and leave its INTENT in the journal; it may leave when that is written."""
        tally = call.tally
        principal = tally.principal
        price = deployment.price
        attempt = Attempt(
            number=len(tally.attempts) + 1,
            provider=deployment.provider.name,
            deployment=deployment.id,
            upstream_model=deployment.upstream_model,
            price=price,
            started_ns=time.monotonic_ns(),
            request_units=call.asked.request_units,
        )
        # By position as far as names add nothing: msgspec looks for each keyword among all that are given.
        intent = Intent(
            tally.request_id,
            attempt.number,
            principal.organization_id,
            principal.project_id,
            principal.key_id,
            principal.root_key_id,
            tally.model,
            attempt.provider,
            attempt.deployment,
            attempt.upstream_model,
            tally.operation,
            is_streamed=tally.is_streamed,
            input_tokens_estimate=tally.input_tokens_estimate,
            price=None if price is None else price.encoded,
            admitted_at_ms=tally.reservation.admitted_at_ms,
            trace_id=tally.trace_id,
            request_units=attempt.request_units,
        )
        admission = self._journal.admit(encode(intent))
        tally.attempts.append(attempt)
        tally.checkpointed_tokens = 0
        call.deployment = deployment
        call.timeouts = deployment.provider.timeouts
        call.event_at_ns = attempt.started_ns
        return attempt, admission

    async def _connect(
        self, call: Call, deployment: Deployment, passage: Passage, body: bytes, admission: Admission
    ) -> OpenAnswer | WholeBody:
        provider, is_streamed, guard = deployment.provider, call.tally.is_streamed, call.guard
        headers = self._traced_headers(call) if provider.forwards_trace else call.asked.headers
        answer: Answer | None = None
        try:
            if guard.reason is not None:
                raise guard.reason
            guard.is_waiting = True
            answer = await self._upstream.open(
                deployment, passage.path(provider), body, is_streamed=is_streamed, headers=headers, clearance=admission
            )
            guard.is_waiting = False
            if answer.status != _OK:
                text = await guard.wait(_read_error(answer))
                raise to_error(answer.status, text, deployment, answer.retry_after_seconds)
            if is_streamed:
                return await self._first_events(call, deployment, passage, answer)
            # Of most answers all of it came with the head.
            data = answer.take_whole(MAX_ANSWER_BYTES) if guard.reason is None else None
            if data is None:
                data = await guard.wait(answer.read_all(MAX_ANSWER_BYTES))
            whole = WholeBody(passage, data, answer)
            if len(data) <= intake.INLINE_BYTES:
                whole.body = passage.decode_whole(whole, deployment)
            else:
                whole.body = await asyncio.to_thread(passage.decode_whole, whole, deployment)
        except BaseException as error:
            if answer is not None:
                answer.abort()
            elif admission.find_error() is not None:
                call.tally.attempts.pop()  # its INTENT is not written, and nothing was sent
            guard.explain(error)
            raise
        call.tally.attempts[-1].first_event_ns = time.monotonic_ns()
        return whole

    async def _first_events(self, call: Call, deployment: Deployment, passage: Passage, answer: Answer) -> OpenAnswer:
        if answer.content_type != passage.event_stream_type(deployment.provider):
            raise no_answer(f"content type {answer.content_type!r} for a stream")
        reader = passage.open_reader(deployment)
        # The first events mostly come with the head.
        data = answer.take_arrived() if call.guard.reason is None else b""
        payloads = reader.feed(data) if data else []
        while not payloads:
            data = await call.guard.wait(answer.read())
            payloads = reader.feed(data) if data else reader.close()
            if not data and not payloads:
                raise no_answer("the stream ended before its first event")
        if payloads[0].startswith(DONE):
            raise no_answer("the stream ended before its first event")
        first = passage.check_first(payloads[0], deployment)
        call.tally.attempt.first_event_ns = call.event_at_ns = time.monotonic_ns()
        return OpenAnswer(passage, answer, reader, payloads, deployment, first)

    def _fail(self, call: Call, attempt: Attempt, error: UpstreamError) -> None:
        attempt.outcome = Outcome.REFUSED if isinstance(error, UpstreamRefused) else Outcome.UPSTREAM_FAILED
        attempt.error = error
        attempt.ended_ns = time.monotonic_ns()
        if call.guard.reason is error:
            call.guard.clear()
        self._on_failed(call.tally.request_id, attempt, error)

    def _traced_headers(self, call: Call) -> dict[str, str]:
        """Tell a provider of the trace; the span of this attempt is the parent of what it does for it."""
        tally = call.tally
        tally.attempt.span_id = self._ids.random_hex(16)
        traceparent = format_traceparent(tally.trace_id, tally.attempt.span_id, is_sampled=tally.is_traced)
        return {**(call.asked.headers or {}), "traceparent": traceparent}


def is_soon_encoded(asked: Asked, row: Provider) -> bool:
    """Whether the body for a provider is written so soon that nobody has to wait for it.

    It is if all of it is short; of what was read by its skeleton, if the long texts go out as they came.
    """
    chat = asked.chat
    if chat is None or chat.length_bytes > intake.INLINE_BYTES:
        return asked.length_bytes <= intake.INLINE_BYTES
    if len(chat.fields["messages"]) <= intake.INLINE_BYTES:
        return True
    return UPSTREAM_WIRES[row.wire].keeps_bodies and "messages" not in row.ruled_parameters and not row.renders_tools


async def _read_error(answer: Answer) -> bytes:
    """Read the beginning of an error's body: its status counts, however long the body is or however it ends."""
    text = bytearray()
    with suppress(UpstreamDown, TimeoutError):
        async with asyncio.timeout(_ERROR_SECONDS):
            while len(text) < _ERROR_BYTES and (data := await answer.read()):
                text += data
    answer.abort()
    return bytes(text)

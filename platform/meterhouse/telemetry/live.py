"""Requests as they run, for whoever watches just now: begun, how far, ended.

Invariant: while nobody listens, nothing is made, kept or sent, and a request pays for one comparison. Nothing here
waits for a listener: what finds its queue full is dropped and counted, and the listener is told that something is
missing. Events hold ids, names and counts, as a log line does. Not here: how events get from one process to another
(``live_channel``, a ``Carrier``), and the pages (``http.live``).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from typing import Protocol

from meterhouse.errors import Overloaded, RateLimited
from meterhouse.ids import public_request_id
from meterhouse.request import Tally
from meterhouse.telemetry.redact import redact

ANNOUNCE_SECONDS = 1.0
"""How often a listener lets all processes know that it is there."""
WANTED_SECONDS = 4.0
"""How long a process sends events of an organization after it heard of a listener last."""
FLUSH_SECONDS = 0.1
PROGRESS_SECONDS = 1.0
MOST_WAITING = 2_000
"""Events of this process that wait to be sent; more are dropped."""
MOST_PROGRESS = 1_000
"""Running requests that are told of each second; of more, the oldest."""
MOST_QUEUED = 2_000
"""Events that wait for one listener to read; more are dropped."""
MOST_LISTENERS = 64
MOST_TENANTS = 32
"""Of these, so that there is always room for an operator."""
MOST_OF_A_KEY = 4
MOST_WANTED = 1_000
EVERYBODY = ""
"""Stands for all organizations."""

_NANOS_PER_MS = 1_000_000
_NANOS_PER_SECOND = 1_000_000_000
_HIDDEN = frozenset({"error_detail", "method", "route"})
"""What a log line says that its tenant is not to read, or needs not."""

LiveEvent = dict[str, object]
Told = tuple[str, LiveEvent]
"""An event, and the root key of whose request it tells."""
Batch = tuple[int, Sequence[Told]]
"""How many events were dropped before these, and these."""
Deliver = Callable[[Batch], None]


class LiveKind(StrEnum):
    """Every event that a listener can get."""

    REQUEST_STARTED = "request.started"
    REQUEST_PROGRESS = "request.progress"
    REQUEST_FINISHED = "request.finished"
    LIVE_INTERRUPTED = "live.interrupted"
    """Some events are missing: as many as it says, or an unknown number."""


class Carrier(Protocol):
    """Takes what one process tells to the listeners of all."""

    async def announce(self, organization_id: str) -> None:
        """Let every process know that somebody listens to an organization. Never raises."""
        ...

    async def publish(self, organization_id: str, batch: Batch) -> None:
        """Send to whoever listens to an organization. Never raises; may lose."""
        ...

    def hear(
        self, organization_id: str, deliver: Deliver, interrupt: Callable[[], None]
    ) -> AbstractAsyncContextManager[None]:
        """Deliver what is published for an organization, for as long as the context is open."""
        ...


class Listener:
    """One who listens: a bounded queue."""

    def __init__(self, organization_id: str, root_key_id: str | None) -> None:
        self.organization_id = organization_id
        self.root_key_id = root_key_id
        self.is_closed = False
        self.is_doubted = False
        """Keys have changed: whether this one may still listen is to be looked at now."""
        self._events: deque[LiveEvent] = deque()
        self._dropped: int | None = 0
        self._has_news = asyncio.Event()

    def put(self, batch: Batch) -> None:
        """Queue what is for this listener; drops and counts when the queue is full."""
        lost, told = batch
        mine = [event for root_key_id, event in told if self.root_key_id in {None, root_key_id}]
        room = MOST_QUEUED - len(self._events)
        self._note_dropped(lost + max(0, len(mine) - room))
        self._events.extend(mine[: max(0, room)])
        self._has_news.set()

    def interrupt(self) -> None:
        """Note that an unknown number of events is missing."""
        self._dropped = None
        self._has_news.set()

    def doubt(self) -> None:
        """Have it looked at whether the listener's key is still good."""
        self.is_doubted = True
        self._has_news.set()

    def close(self) -> None:
        """End the listening; ``take`` returns at once from then on."""
        self.is_closed = True
        self._has_news.set()

    async def take(self, timeout_seconds: float) -> list[LiveEvent]:
        """Return what there is, or wait for it for at most so long; empty when nothing came."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._has_news.wait()
        except TimeoutError:
            return []
        self._has_news.clear()
        events = list(self._events)
        self._events.clear()
        if self._dropped != 0:
            gap: LiveEvent = {
                "type": LiveKind.LIVE_INTERRUPTED.value,
                "at": _now_ms(),
                "dropped_events": self._dropped,
            }
            events.append(gap)
            self._dropped = 0
        return events

    def _note_dropped(self, events: int) -> None:
        if self._dropped is not None:
            self._dropped += events


class Live:
    """One process's end: what it tells while somebody wants it, and who listens here."""

    def __init__(
        self,
        carrier: Carrier | None,
        running: Callable[[], Iterable[Tally]],
        on_switch: Callable[[bool], None],
        charge_of: Callable[[Tally], int | None],
    ) -> None:
        """Prepare; keep ``run`` running.

        Args:
            carrier: connects the processes; None: this one is alone.
            running: the requests that run now.
            on_switch: is told when ``note_started`` is to be called from now on, and when no more.
            charge_of: says what a running request would be charged if it ended now, in nanos; None: not priced.
        """
        self.carrier = carrier or _Alone(self)
        self.is_on = False
        """Whether anybody listens to a request of this process."""
        self.dropped_events = 0
        self.listeners: set[Listener] = set()
        self._running = running
        self._on_switch = on_switch
        self._charge_of = charge_of
        self._wanted: dict[str, float] = {}
        self._outbox: dict[str, list[Told]] = {}
        self._waiting = 0
        self._lost = 0
        self._has_work = asyncio.Event()
        self._is_closed = False

    def want(self, organization_id: object) -> None:
        """Tell of an organization's requests for a while: somebody listens, here or in another process."""
        if not isinstance(organization_id, str):
            return
        if organization_id not in self._wanted and len(self._wanted) >= MOST_WANTED:
            return
        self._wanted[organization_id] = time.monotonic() + WANTED_SECONDS
        self._switch(True)
        self._has_work.set()

    def note_started(self, tally: Tally) -> None:
        """Tell that a request was admitted."""
        event = _head(LiveKind.REQUEST_STARTED, tally)
        event["operation"] = tally.operation
        event["is_streamed"] = tally.is_streamed
        self._tell(tally.principal.organization_id, tally.principal.root_key_id, event)

    def note_finished(self, root_key_id: str, fields: Mapping[str, object]) -> None:
        """Tell how a request ended, in the words of its line in the log."""
        kept = {name: value for name, value in fields.items() if name not in _HIDDEN}
        event = {"type": LiveKind.REQUEST_FINISHED.value, "at": _now_ms(), **kept}
        self._tell(str(fields.get("organization_id", "")), root_key_id, event)

    @asynccontextmanager
    async def listen(self, organization_id: str, root_key_id: str | None) -> AsyncIterator[Listener]:
        """Listen to an organization (``EVERYBODY``: to all), or to one key of it and its successors.

        Raises:
            Overloaded: So many listen that there is no room, or the process stops.
            RateLimited: So many listen with this key.
        """
        listener = Listener(organization_id, root_key_id)
        self._admit(listener)
        self.listeners.add(listener)
        try:
            async with self.carrier.hear(organization_id, listener.put, listener.interrupt):
                await self.carrier.announce(organization_id)
                self._has_work.set()
                yield listener
        finally:
            self.listeners.discard(listener)

    def doubt(self) -> None:
        """Have every listener's key looked at: some have changed."""
        for listener in self.listeners:
            listener.doubt()

    def close(self) -> None:
        """End every listener, and take no more: the process stops. They find another one by asking again."""
        self._is_closed = True
        for listener in self.listeners:
            listener.close()

    async def run(self) -> None:
        """Send what is told, and announce the listeners, for as long as there are any; over and over."""
        while True:
            await self._has_work.wait()
            announce_at = progress_at = 0.0
            while self._is_needed():
                now = time.monotonic()
                if now >= announce_at:
                    announce_at = now + ANNOUNCE_SECONDS
                    for organization_id in {listener.organization_id for listener in self.listeners}:
                        await self.carrier.announce(organization_id)
                if now >= progress_at:
                    progress_at = now + PROGRESS_SECONDS
                    self._note_progress()
                await self._flush()
                await asyncio.sleep(FLUSH_SECONDS)

    def _admit(self, listener: Listener) -> None:
        if self._is_closed:
            raise Overloaded("This server is stopping. Connect again.", detail="live: stopping")
        tenants = [other for other in self.listeners if other.root_key_id is not None]
        is_tenant = listener.root_key_id is not None
        if len(self.listeners) >= MOST_LISTENERS or (is_tenant and len(tenants) >= MOST_TENANTS):
            raise Overloaded("As many are watching requests already as this server takes.", retry_after_seconds=5)
        if is_tenant and sum(other.root_key_id == listener.root_key_id for other in tenants) >= MOST_OF_A_KEY:
            raise RateLimited(
                f"This key is watching its requests {MOST_OF_A_KEY} times already.", retry_after_seconds=5
            )

    def _is_needed(self) -> bool:
        now = time.monotonic()
        for organization_id in [name for name, until in self._wanted.items() if until < now]:
            del self._wanted[organization_id]
        if not self._wanted:
            self._switch(False)
            self._outbox.clear()
            self._waiting = 0
        is_needed = bool(self._wanted or self.listeners)
        if not is_needed:
            self._has_work.clear()
        return is_needed

    def _switch(self, is_on: bool) -> None:
        if self.is_on != is_on:
            self.is_on = is_on
            self._on_switch(is_on)

    def _tell(self, organization_id: str, root_key_id: str, event: LiveEvent) -> None:
        is_wanted = False
        for channel in (organization_id, EVERYBODY):
            if channel not in self._wanted:
                continue
            if self._waiting >= MOST_WAITING:
                self.dropped_events += 1
                self._lost += 1
                return
            if not is_wanted:
                is_wanted, event = True, redact(event)
            self._waiting += 1
            self._outbox.setdefault(channel, []).append((root_key_id, event))

    def _note_progress(self) -> None:
        now_ns = time.monotonic_ns()
        tallies = self._running() if self.is_on else ()
        for tally, _ in zip(tuple(tallies), range(MOST_PROGRESS), strict=False):
            principal = tally.principal
            if principal.organization_id in self._wanted or EVERYBODY in self._wanted:
                self._tell(principal.organization_id, principal.root_key_id, self._progress(tally, now_ns))

    def _progress(self, tally: Tally, now_ns: int) -> LiveEvent:
        event = _head(LiveKind.REQUEST_PROGRESS, tally)
        event["elapsed_ms"] = (now_ns - tally.started_ns) // _NANOS_PER_MS
        if not tally.attempts:
            return event
        attempt = tally.attempt
        event["provider"], event["attempt"] = attempt.provider, attempt.number
        if attempt.first_event_ns is None:
            return event
        tokens = attempt.reported.output_tokens if attempt.reported is not None else attempt.output_tokens_estimate
        event["output_tokens"] = tokens
        event["time_to_first_token_ms"] = (attempt.first_event_ns - attempt.started_ns) // _NANOS_PER_MS
        seconds = (now_ns - attempt.first_event_ns) / _NANOS_PER_SECOND
        charge_nanos = self._charge_of(tally)
        if charge_nanos is not None:
            event["charge_nanos"] = charge_nanos
        event["tokens_per_second"] = round(tokens / seconds, 1) if seconds > 0 else 0.0
        return event

    async def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        lost, self._lost = self._lost, 0
        self._waiting = 0
        for organization_id, told in outbox.items():
            await self.carrier.publish(organization_id, (lost, told))


class _Alone:
    """The carrier of a process that has no others beside it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._ears: dict[str, set[Deliver]] = {}

    async def announce(self, organization_id: str) -> None:
        self._live.want(organization_id)

    async def publish(self, organization_id: str, batch: Batch) -> None:
        for deliver in tuple(self._ears.get(organization_id, ())):
            deliver(batch)

    @asynccontextmanager
    async def hear(self, organization_id: str, deliver: Deliver, interrupt: Callable[[], None]) -> AsyncIterator[None]:
        del interrupt  # nothing is between the two
        ears = self._ears.setdefault(organization_id, set())
        ears.add(deliver)
        try:
            yield
        finally:
            ears.discard(deliver)
            if not ears:
                self._ears.pop(organization_id, None)


def _head(kind: LiveKind, tally: Tally) -> LiveEvent:
    principal = tally.principal
    return {
        "type": kind.value,
        "at": _now_ms(),
        "request_id": public_request_id(tally.request_id),
        "organization_id": principal.organization_id,
        "project_id": principal.project_id,
        "key_id": principal.key_id,
        "model": tally.model,
    }


def _now_ms() -> int:
    return time.time_ns() // _NANOS_PER_MS

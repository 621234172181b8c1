"""The workers that share a meter: who is alive, and whether all of them have shipped what they had journaled.

A flush is a ticket that is announced to everybody and answered by each worker once it has done what the ticket asks.
Announcements may be lost, so they are repeated until answered, and every worker also reads the list of open tickets
at each heartbeat. Invariant: a flush is True only if every worker that can have journaled anything before it has
shipped it since. Not here: what is learned from it (``limits.learning``), and taking over the journals of the dead
(``ledger.adopter``).
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from meterhouse.cut_off import BEATS, CutOff, name_few
from meterhouse.db.workers import Heartbeat, Worker, WorkerStore
from meterhouse.errors import GatewayError, MeterDown, StoreDown
from meterhouse.http.tasks import Tasks
from meterhouse.ids import new_request_id
from meterhouse.limits.counters import meter_down
from meterhouse.limits.link import CommandRefused, LinkDown
from meterhouse.notices import Notices
from meterhouse.telemetry.logs import Event, get_logger

FLUSH = "flush"
"""The kind of notice that carries a ticket."""
TICKETS = "mh:tickets"
FORGOTTEN_MS = 24 * 3_600_000
"""A dead worker whose journal nobody adopted for so long is not missed any more; the reconciler makes up for it."""
GATHER_SECONDS = 0.005
"""Flushes that are asked for within this time share a ticket."""
CROWDED_GATHER_SECONDS = 0.05
"""The same, while other tickets are under way."""
ANNOUNCE_SECONDS = 0.15
FIRST_LOOK_SECONDS = 0.005
MOST_LOOK_SECONDS = 0.1
LIST_SECONDS = 1.0
"""How often the table is looked at during a flush: whoever is waited for may have died and been adopted."""
ACKNOWLEDGED_SECONDS = 120
MOST_TICKETS = 1_000
"""Of the list, and of those that a worker remembers to have answered."""


class Commands(Protocol):
    """What a fleet needs of Redis; ``limits.link.RedisLink`` is one."""

    def command(self, *arguments: str | bytes | int) -> Awaitable[Any]:
        """Send a command; raises LinkDown, or CommandRefused."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """This process as a worker of the fleet."""

    worker_id: str
    host: str
    journal_id: str
    ship: Callable[[], Awaitable[None]]
    """Returns when SQL has everything that was journaled before the call, however long that takes."""
    register: Callable[[str], Awaitable[None]]
    """Brings this worker's live reservations of an organization into Redis; raises MeterDown when it cannot."""
    count_unshipped: Callable[[], int]
    """How many records SQL does not have yet."""
    list_cut_off: Callable[[], Collection[str]] = tuple
    """The organizations of which it has reservations in Redis and cannot reach Redis to renew them."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often workers say that they are alive, and after how long of silence they are given up."""

    heartbeat_seconds: float = 2.0
    lease_seconds: float = 60.0


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """What every worker is asked to do: ship, and register reservations of the organizations that say so."""

    id: str
    asker: str
    registers: tuple[str, ...]
    """Organizations."""


class Fleet:
    """Implements ``limits.learning.Fleet``. ``open`` before serving, keep ``run`` running, ``close`` at the end."""

    def __init__(
        self, workers: WorkerStore, notices: Notices, commands: Commands, member: Member, rhythm: Rhythm
    ) -> None:
        self._workers = workers
        self._notices = notices
        self._commands = commands
        self._member = member
        self._rhythm = rhythm
        self._tasks = Tasks()
        self._live_workers = 1
        self._next: _Round | None = None
        self._flying = 0
        self._answering: set[str] = set()
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._failed_at: float | None = None
        """When a heartbeat failed last, by ``time.monotonic``."""
        self._cut_off, self._read_at = CutOff(), 0.0
        self._has_news = asyncio.Event()
        self._table_turn = asyncio.Lock()
        self._is_closed = False
        notices.on(FLUSH, self._hear)

    @property
    def live_workers(self) -> int:
        """How many workers were alive when the table was read last; this one counts always."""
        return self._live_workers

    def may_reap(self, organization_id: str) -> bool:
        """Whether a lease that has expired means that its worker is dead: not while one lives that cannot renew.

        Without the table nobody can say, which holds for a lease.
        """
        read_seconds = time.monotonic() - self._read_at
        is_known = read_seconds < self._rhythm.heartbeat_seconds * BEATS
        return (is_known or read_seconds > self._rhythm.lease_seconds) and not self._cut_off.holds(organization_id)

    # --- being alive

    async def open(self) -> None:
        """Enter the table. Nothing may be admitted before: a flush could not know that there is somebody to ask.

        Raises:
            StoreDown: The table cannot be written now; the first heartbeat that succeeds enters it.
        """
        await self._beat()
        await self._workers.remove_silent(FORGOTTEN_MS)

    async def run(self) -> None:
        """Say at every heartbeat that this worker is alive, and look for tickets that it did not hear of."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rhythm.heartbeat_seconds):
                    await self._has_news.wait()
            self._has_news.clear()
            with suppress(StoreDown):  # shipping tells of it
                await self._beat()
            try:
                await self._look_for_tickets()
            except (LinkDown, CommandRefused):
                continue  # the meter tells of it

    def beat_soon(self) -> None:
        """Say at once what has changed."""
        self._has_news.set()

    async def close(self) -> None:
        """Leave the table, or stay in it as one that has left records behind.

        To be called when nothing will be journaled or shipped any more.
        """
        self._is_closed = True
        await self._tasks.close()
        try:
            async with self._table_turn:
                if self._member.count_unshipped():
                    await self._workers.beat(self._heartbeat(is_leaving=True))
                else:
                    await self._workers.remove(self._member.worker_id)
        except StoreDown as error:
            get_logger().warning(Event.STORE_FAILED, detail=f"leaving: {error.detail}")

    def _heartbeat(self, *, is_leaving: bool = False) -> Heartbeat:
        member, cut_off = self._member, self._member.list_cut_off()
        return Heartbeat(
            id=member.worker_id,
            host=member.host,
            journal_id=member.journal_id,
            unshipped_records=member.count_unshipped(),
            is_leaving=is_leaving,
            is_cut_off=bool(cut_off),
            cut_off=name_few(cut_off),
        )

    async def _beat(self) -> None:
        try:
            async with self._table_turn:
                if not self._is_closed:
                    await self._workers.beat(self._heartbeat())
            rows = await self._workers.list_workers()
        except StoreDown:
            self._failed_at = time.monotonic()
            raise
        self._read_at = time.monotonic()
        standing = self._standing_of(rows)
        self._live_workers = 1 + sum(standing.values())
        living = [row.heartbeat for row in rows if standing.get(row.heartbeat.id)]
        self._cut_off.note(living, self._rhythm.heartbeat_seconds * BEATS)

    def _standing_of(self, rows: Collection[Worker]) -> Mapping[str, bool]:
        """Return the other workers that may have journaled something: whether each can be expected to answer."""
        silent_ms = round(self._rhythm.lease_seconds * 1000)
        if self._failed_at is not None and time.monotonic() - self._failed_at < self._rhythm.heartbeat_seconds * 3:
            silent_ms = FORGOTTEN_MS  # the table was away for everybody, so being seen long ago says nothing yet
        others = [row for row in rows if row.heartbeat.id != self._member.worker_id and row.silent_ms < FORGOTTEN_MS]
        return {row.heartbeat.id: row.silent_ms < silent_ms and not row.heartbeat.is_leaving for row in others}

    # --- asking

    async def flush(self, organization_id: str, *, registers: bool) -> bool:
        """Have every worker ship what it had journaled before this call.

        Args:
            organization_id: whose live reservations every worker brings into Redis as well, if ``registers``.
            registers: see there.

        Returns:
            True: all did. False: one was silent for a lease, or is dead and its journal was not adopted yet.

        Raises:
            StoreDown: The table of workers cannot be read.
            MeterDown: Redis cannot be asked.
        """
        if self._is_closed:
            raise _closed()
        round_ = self._next
        if round_ is None:
            round_ = self._next = _Round()
            round_.flight = self._tasks.start(self._fly(round_))
        if registers:
            round_.registers.add(organization_id)
        flight = round_.flight
        assert flight is not None
        await asyncio.wait({flight})  # a caller that is cancelled leaves the ticket to the others
        outcome = _closed() if flight.cancelled() else flight.result()
        if isinstance(outcome, GatewayError):
            raise outcome
        return outcome

    async def _fly(self, round_: "_Round") -> bool | GatewayError:
        await asyncio.sleep(CROWDED_GATHER_SECONDS if self._flying else GATHER_SECONDS)
        self._next = None
        self._flying += 1
        try:
            return await self._ask(Ticket(new_request_id(), self._member.worker_id, tuple(round_.registers)))
        except GatewayError as error:
            return error
        except (LinkDown, CommandRefused) as error:
            return meter_down(f"flush: {error}")
        finally:
            self._flying -= 1

    async def _ask(self, ticket: Ticket) -> bool:
        own = self._tasks.start(self._do(ticket))
        try:
            standing = self._standing_of(await self._workers.list_workers())
            answers = _Answers(standing)
            async with asyncio.timeout(self._rhythm.lease_seconds):
                if answers.missing:
                    await self._collect(ticket, answers)
                failure = await own
            if failure is not None:
                raise failure
        except TimeoutError:
            return False
        finally:
            own.cancel()
        return answers.is_complete

    async def _collect(self, ticket: Ticket, answers: "_Answers") -> None:
        """Announce a ticket until everybody has answered it who can."""
        entry = msgspec.msgpack.encode(ticket)
        command = self._commands.command
        await asyncio.gather(
            command("LPUSH", TICKETS, entry),
            command("LTRIM", TICKETS, 0, MOST_TICKETS - 1),
            command("EXPIRE", TICKETS, ACKNOWLEDGED_SECONDS),
        )
        is_over = asyncio.Event()
        announcing = self._tasks.start(self._announce(ticket, is_over))
        try:
            await self._await_answers(ticket, answers)
        finally:
            is_over.set()
            announcing.cancel()
            command("LREM", TICKETS, 0, entry)
            command("DEL", _answers_key(ticket.id))

    async def _announce(self, ticket: Ticket, is_over: asyncio.Event) -> None:
        # A cancellation may be lost in publish: redis-py sends with wait_for, which in Python 3.11 drops one that comes
        # as the sending ends.
        while not is_over.is_set():
            await self._notices.publish(FLUSH, ticket)
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _await_answers(self, ticket: Ticket, answers: "_Answers") -> None:
        look_seconds = FIRST_LOOK_SECONDS
        list_at = time.monotonic() + LIST_SECONDS
        while True:
            await asyncio.sleep(look_seconds)
            look_seconds = min(look_seconds * 2, MOST_LOOK_SECONDS)
            answers.take(await self._commands.command("SMEMBERS", _answers_key(ticket.id)))
            if not answers.missing:
                return
            if time.monotonic() >= list_at:
                answers.recount(self._standing_of(await self._workers.list_workers()))
                list_at = time.monotonic() + LIST_SECONDS

    # --- answering

    def _hear(self, payload: object) -> None:
        try:
            ticket = msgspec.convert(payload, Ticket)
        except msgspec.ValidationError:
            return  # of a version that speaks otherwise
        self._take(ticket)

    async def _look_for_tickets(self) -> None:
        for entry in await self._commands.command("LRANGE", TICKETS, 0, -1):
            with suppress(msgspec.MsgspecError):
                ticket = msgspec.msgpack.decode(entry, type=Ticket)
                if ticket.id not in self._answered:
                    self._take(ticket)

    def _take(self, ticket: Ticket) -> None:
        is_busy = ticket.id in self._answering or len(self._answering) >= MOST_TICKETS
        if ticket.asker != self._member.worker_id and not is_busy and not self._is_closed:
            self._answering.add(ticket.id)
            self._tasks.start(self._answer(ticket))

    async def _answer(self, ticket: Ticket) -> None:
        """Do what a ticket asks and say so; if it fails, the next announcement is the next try."""
        try:
            async with asyncio.timeout(self._rhythm.lease_seconds):
                # One that is announced again was answered, but the answer may be lost.
                if ticket.id not in self._answered and await self._do(ticket) is not None:
                    return
                key = _answers_key(ticket.id)
                command = self._commands.command
                await asyncio.gather(
                    command("SADD", key, self._member.worker_id), command("EXPIRE", key, ACKNOWLEDGED_SECONDS)
                )
            self._answered[ticket.id] = None
            if len(self._answered) > MOST_TICKETS:
                self._answered.popitem(last=False)
        except (TimeoutError, LinkDown, CommandRefused):
            return
        finally:
            self._answering.discard(ticket.id)

    async def _do(self, ticket: Ticket) -> GatewayError | None:
        try:
            await asyncio.gather(*(self._member.register(name) for name in ticket.registers))
            await self._member.ship()
        except GatewayError as error:
            return error
        return None


class _Round:
    """The flushes that share the next ticket."""

    __slots__ = ("flight", "registers")

    def __init__(self) -> None:
        self.registers: set[str] = set()
        self.flight: asyncio.Task[bool | GatewayError] | None = None


class _Answers:
    """Who has to answer a ticket still."""

    __slots__ = ("is_complete", "missing")

    def __init__(self, standing: Mapping[str, bool]) -> None:
        self.missing = {worker_id for worker_id, can_answer in standing.items() if can_answer}
        self.is_complete = all(standing.values())
        """Nobody is missed who may have journaled something."""

    def take(self, answered: Collection[bytes]) -> None:
        """Count answers."""
        self.missing -= {worker_id.decode() for worker_id in answered}

    def recount(self, standing: Mapping[str, bool]) -> None:
        """Wait no longer for who left the table (SQL has all of theirs), or died since (it may not)."""
        self.missing &= standing.keys()
        dead = {worker_id for worker_id in self.missing if not standing[worker_id]}
        if dead:
            self.is_complete = False
            self.missing -= dead


def _closed() -> MeterDown:
    return meter_down("the fleet was closed")


def _answers_key(ticket_id: str) -> str:
    return f"mh:ack:{ticket_id}"

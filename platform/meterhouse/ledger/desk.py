"""How workers and their clerk talk: batches of journal entries over a Unix socket, one answer to each.

The clerk greets whoever it begins to attend to; from then on the worker offers one batch at a time and waits for its
answer. A frame is four bytes of length and msgpack. Both are of one version: one parent forks both. Invariant: an
answer is ``Summary`` only when SQL has the whole batch. Not here: who offers what when (``shipper``), and who listens
(``clerk`` beside the workers).
"""

import asyncio
from contextlib import suppress
from pathlib import Path

import msgspec

from meterhouse.errors import StoreDown
from meterhouse.ledger.batch import Contents, Summary
from meterhouse.ledger.reader import Entry
from meterhouse.ledger.record import UnreadableJournal
from meterhouse.ledger.store import InsertsRecords

GREETING = b"clerk\n"
MOST_FRAME_BYTES = 16 * 1_048_576
"""A longer batch is not offered, and whoever announces one is hung up on."""
ANSWER_SECONDS = 2.0
"""How long a worker waits for an answer, before it writes the batch itself: less than it may ship when it stops."""
RETRY_SECONDS = 0.2
"""After a lost connection, how long until the next is tried."""
AWAY_SECONDS = 10.0
"""How long a worker does without a clerk that has no database: so long that it also seals in its place."""
BODY_SECONDS = 5.0
"""How long a frame may take to arrive once its length did."""
AT_ONCE = 2
"""How many batches the clerk writes at a time; more wait."""
MOST_LINES = 256
"""How many connections the clerk attends to: more than a host has workers, also while it replaces them."""
_LENGTH_BYTES = 4
_ORIGIN = "a batch"
_GONE = (TimeoutError, ConnectionError, RuntimeError)
"""What a line that is gone raises: uvloop says RuntimeError where asyncio's own loop says nothing."""


class Misspoken(Exception):
    """What arrived is not what the two say to each other."""


class Away(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """SQL does not take the batch now: a StoreDown, as it met the clerk."""

    message: str
    detail: str


class Unable(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The clerk cannot read the batch; whoever has the journal can say where it lies."""


Answer = Summary | Away | Unable

_ENCODER = msgspec.msgpack.Encoder()
_OFFERS = msgspec.msgpack.Decoder(list[Entry])
_ANSWERS = msgspec.msgpack.Decoder(Answer)


def _frame(said: list[Entry] | Answer) -> bytes:
    body = _ENCODER.encode(said)
    return len(body).to_bytes(_LENGTH_BYTES) + body


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read one frame, however long it takes to begin.

    Raises:
        Misspoken: It is too long, or does not arrive.
        IncompleteReadError, OSError: The connection ended.
    """
    length_bytes = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
    if length_bytes > MOST_FRAME_BYTES:
        raise Misspoken
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await reader.readexactly(length_bytes)
    except TimeoutError:
        raise Misspoken from None


class ClerkLine:
    """A worker's line to the clerk, connected again whenever it is lost.

    It is there only between a greeting and the first thing that goes wrong: a clerk that is away, starts or hangs costs
    whoever asks at most one ``ANSWER_SECONDS``, and nothing after that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._is_away = False
        """Whether the clerk has said so, as the last that it said."""

    @property
    def is_there(self) -> bool:
        """Whether a clerk attends to this line, as far as was seen."""
        return self._writer is not None

    async def run(self) -> None:
        """Keep the line connected until cancelled."""
        while True:
            with suppress(OSError, asyncio.IncompleteReadError, Misspoken):
                await self._listen()
            rest_seconds = AWAY_SECONDS if self._is_away else RETRY_SECONDS
            self._is_away = False
            await asyncio.sleep(rest_seconds)

    async def ship(self, entries: list[Entry]) -> Summary | None:
        """Let the clerk write a batch; None when it did not, or did not say so: then it is to be written again.

        Raises:
            StoreDown: The clerk met it, and is not there for ``AWAY_SECONDS``.
        """
        writer = self._writer
        if writer is None or self._answer is not None:
            return None
        frame = _frame(entries)
        if len(frame) > MOST_FRAME_BYTES:
            return None
        asked = self._answer = asyncio.get_running_loop().create_future()
        try:
            writer.write(frame)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = _ANSWERS.decode(await asked)
        except (*_GONE, msgspec.MsgspecError):
            self._hang_up(writer)
            return None
        except asyncio.CancelledError:
            self._hang_up(writer)  # or the answer to this batch would pass for one to the next
            raise
        finally:
            self._answer = None
        if isinstance(answer, Away):
            self._is_away = True
            self._hang_up(writer)
            raise StoreDown(answer.message, detail=answer.detail)
        return answer if isinstance(answer, Summary) else None

    async def _listen(self) -> None:
        """Connect, wait for the greeting, and hand every answer to whoever waits for one."""
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            if await reader.readexactly(len(GREETING)) != GREETING:
                raise Misspoken
            self._writer = writer
            while True:
                frame = await _read_frame(reader)
                if self._answer is None or self._answer.done():
                    raise Misspoken
                self._answer.set_result(frame)
        finally:
            self._hang_up(writer)
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(ConnectionResetError("the clerk is gone"))

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        if self._writer is writer:
            self._writer = None
        writer.transport.abort()


class ClerkDesk:
    """The clerk's side: writes what workers offer. One per process; the store says what happens when SQL is away."""

    def __init__(self, store: InsertsRecords) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._lines = 0

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Attend to one connection until it ends; whoever says what no worker says is hung up on."""
        self._lines += 1
        try:
            if self._lines > MOST_LINES:
                return
            writer.write(GREETING)
            while True:
                entries = _OFFERS.decode(await _read_frame(reader))
                async with self._turns:
                    if reader.at_eof():
                        return  # whoever offered it waits no more and writes it: two at it would meet in SQL's locks
                    writer.write(_frame(await self._write(entries)))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, Misspoken, msgspec.MsgspecError):
            return
        except asyncio.CancelledError:
            return  # the process ends; asyncio would report it as an error in a callback of its own
        finally:
            self._lines -= 1
            writer.close()

    async def finish(self, timeout_seconds: float) -> None:
        """Wait until what is being written is written and answered, and begin nothing more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                for _ in range(AT_ONCE):
                    await self._turns.acquire()

    async def _write(self, entries: list[Entry]) -> Answer:
        contents = Contents()
        try:
            await contents.read(entries, origin=_ORIGIN)
            if contents.records:
                await self._store.insert(contents.records)
        except UnreadableJournal:
            return Unable()
        except StoreDown as error:
            return Away(error.message, error.detail)
        return contents.summarize()

"""What may still be used of budgets and quotas while the meter is away, in one file that all processes of a host share.

Invariant: the sum of all grants for a slot and period never exceeds the total, over any number of processes, kills and
restarts. For that every grant is in the file, durably, before it is given; the file is changed under a lock and
replaced as a whole; a file that cannot be read in full is never taken for an empty one, but grants nothing until an
operator has looked at it. What was granted and not used is given back when its process ends, and lost when it is
killed: less may be used, never more.
Not here: how large a total is, and what happens with a grant.
"""

import asyncio
import fcntl
import os
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from meterhouse.metering import Clock
from meterhouse.telemetry.logs import Event, Log

MAGIC = b"meterhouse-allowance-1"
KEEP_MS = 86_400_000
"""How long after its end a period is remembered, so that a clock that errs a little loses nothing."""
LOCK_WAIT_SECONDS = 1.0
LOCK_POLL_SECONDS = 0.002
CLOSE_SECONDS = 5.0
MOST_BYTES = 64 << 20
"""A larger file is not read: at about 100 bytes an entry it would hold some 600,000 slots."""
_MODE = 0o600


class _Draw(NamedTuple):
    slot: str
    start_ms: int | None
    end_ms: int | None
    total: int
    wanted: int
    """Below zero: so much is given back."""


class _Entry(msgspec.Struct, array_like=True):
    """What was drawn of one slot in one period."""

    slot: str
    start_ms: int | None
    end_ms: int | None
    drawn: int


class _Body(msgspec.Struct):
    forgotten_until_ms: int
    """Periods that ended by then may have been dropped from the file, so they are granted nothing."""
    entries: list[_Entry]


class _Unusable(Exception):
    """The file cannot be trusted; the text says what to do."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    grants: list[int]
    failure: str | None


class AllowanceFile:
    """The file, as one process uses it. ``draw`` works on a thread of its own; call ``close`` at the end."""

    def __init__(self, path: Path, *, clock: Clock, log: Log, lock_wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        self._path = path
        self._clock = clock
        self._log = log
        self._lock_wait_seconds = lock_wait_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="allowance")
        self._waiting: list[tuple[_Draw, asyncio.Future[int]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._failure: str | None = None
        self._is_closed = False

    async def draw(
        self, slot: str, period_start_ms: int | None, period_end_ms: int | None, total: int, wanted: int
    ) -> int:
        """Take up to ``wanted`` of what is left of ``total`` in a period; returns what was granted, 0 for nothing.

        The grant is durable. Draws that wait while the file is being written share the next write. A file that cannot
        be read, written or locked grants 0, and the log says why and what to do.
        """
        if wanted <= 0 or total <= 0:
            return 0
        return await self._change(_Draw(slot, period_start_ms, period_end_ms, total, wanted))

    async def give_back(self, slot: str, period_start_ms: int | None, amount: int) -> None:
        """Give back what was granted in a period and will not be used; it is lost when the file cannot be written."""
        await self._change(_Draw(slot, period_start_ms, None, 0, -amount))

    async def close(self) -> None:
        """Wait for the writes that are under way, within reason; further draws are granted nothing."""
        self._is_closed = True
        if self._worker is not None:
            await asyncio.wait({self._worker}, timeout=CLOSE_SECONDS)
        self._thread.shutdown(wait=False)

    async def _change(self, draw: _Draw) -> int:
        if self._is_closed:
            return 0
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((draw, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            outcome = await loop.run_in_executor(self._thread, self._draw_all, [draw for draw, _ in waiting])
            self._report(outcome.failure)
            for (_, future), granted in zip(waiting, outcome.grants, strict=True):
                if not future.done():
                    future.set_result(granted)

    def _report(self, failure: str | None) -> None:
        """Log a failure once, until it changes or ends."""
        if failure is not None and failure != self._failure:
            self._log.error(Event.ALLOWANCE_FAILED, path=str(self._path), reason=failure)
        self._failure = failure

    # --- on the thread

    def _draw_all(self, draws: list[_Draw]) -> _Outcome:
        try:
            lock = os.open(
                self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE
            )
            try:
                self._lock(lock)
                return _Outcome(self._draw_locked(draws), None)
            finally:
                os.close(lock)
        except _Unusable as error:
            failure = str(error)
        except OSError as error:
            failure = f"{type(error).__name__}: {error}"
        return _Outcome([0] * len(draws), failure)

    def _lock(self, lock: int) -> None:
        give_up_at = time.monotonic() + self._lock_wait_seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    raise _Unusable("another process holds the lock for too long") from None
                time.sleep(LOCK_POLL_SECONDS)
            else:
                return

    def _draw_locked(self, draws: list[_Draw]) -> list[int]:
        body = self._read()
        entries = {(entry.slot, entry.start_ms): entry for entry in body.entries}
        grants = [_grant(draw, entries, body.forgotten_until_ms) for draw in draws]
        if any(grants):
            self._write(_without_past(entries.values(), body.forgotten_until_ms, self._clock.now_ms() - KEEP_MS))
        return grants

    def _read(self) -> _Body:
        try:
            with self._path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return _Body(0, [])
        head, _, payload = data.partition(b"\n")
        if len(data) > MOST_BYTES or head != _head(payload):
            raise self._unusable("is torn or was changed")
        try:
            return msgspec.json.decode(payload, type=_Body)
        except msgspec.MsgspecError as error:
            raise self._unusable(f"holds something else ({error})") from None

    def _unusable(self, what: str) -> _Unusable:
        return _Unusable(
            f"{self._path} {what}, so nothing is granted from it: budgets and quotas are refused while the meter is "
            "away. To repair it, restore the file from a copy; or move it away, which grants the allowance of the "
            "running periods once more"
        )

    def _write(self, body: _Body) -> None:
        payload = msgspec.json.encode(body)
        fresh = self._path.with_name(f"{self._path.name}.new")
        with os.fdopen(_open_private(fresh), "wb") as file:
            file.write(_head(payload) + b"\n" + payload)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open_private(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)


def _head(payload: bytes) -> bytes:
    return b"%s %08x %d" % (MAGIC, zlib.crc32(payload), len(payload))


def _grant(draw: _Draw, entries: dict[tuple[str, int | None], _Entry], forgotten_until_ms: int) -> int:
    """Grant one draw, or take back what is below zero, and note it in the entries."""
    if draw.end_ms is not None and draw.end_ms <= forgotten_until_ms:
        return 0
    entry = entries.get((draw.slot, draw.start_ms))
    drawn = 0 if entry is None else entry.drawn
    if draw.wanted < 0:
        if entry is not None:
            entry.drawn = max(0, drawn + draw.wanted)
        return draw.wanted
    granted = max(0, min(draw.wanted, draw.total - drawn))
    if granted:
        entries[draw.slot, draw.start_ms] = _Entry(draw.slot, draw.start_ms, draw.end_ms, drawn + granted)
    return granted


def _without_past(entries: Iterable[_Entry], forgotten_until_ms: int, before_ms: int) -> _Body:
    """Drop periods that ended, and remember until when, so that a clock that goes back is granted nothing twice."""
    kept: list[_Entry] = []
    for entry in entries:
        if entry.end_ms is not None and entry.end_ms <= before_ms:
            forgotten_until_ms = max(forgotten_until_ms, entry.end_ms)
        else:
            kept.append(entry)
    return _Body(forgotten_until_ms, kept)

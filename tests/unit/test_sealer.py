"""The loop that seals: it goes on after an outage, and leaves the field to whoever is sealing."""

import asyncio

import pytest

from fakes.journals import EventLog
from meterhouse.db.seals import Sealing
from meterhouse.errors import StoreDown
from meterhouse.ledger import sealer as sealing
from meterhouse.ledger.sealer import Sealer


class Steps:
    """Answers what it is told, then that nothing is left."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.is_done = asyncio.Event()

    async def seal_new(self, *, limit=200, least_interval_ms=0):
        self.asked.append((limit, least_interval_ms))
        if not self.answers:
            self.is_done.set()
            return Sealing(0, has_more=False)
        answer = self.answers.pop(0)
        if isinstance(answer, StoreDown):
            raise answer
        return answer


MORE = Sealing(7, has_more=True)
BUSY = Sealing(0, has_more=False, is_busy=True)


async def test_a_step_goes_on_while_there_is_more():
    store = Steps(MORE, MORE, Sealing(3, has_more=False))
    assert await Sealer(store, EventLog(), interval_seconds=4, batch_rows=7).step() == 17
    assert store.asked == [(7, 2_000)] * 3


async def test_a_step_waits_for_whoever_ships_just_now(monkeypatch):
    monkeypatch.setattr(sealing, "BUSY_SECONDS", 0)
    store = Steps(MORE, *[BUSY] * (sealing.BUSY_TRIES - 1), MORE, BUSY, Sealing(2, has_more=False))
    assert await Sealer(store, EventLog()).step(is_forced=True) == 16
    assert store.answers == []


async def test_a_step_ends_when_somebody_else_stays_at_it(monkeypatch):
    monkeypatch.setattr(sealing, "BUSY_SECONDS", 0)
    store = Steps(MORE, *[BUSY] * sealing.BUSY_TRIES, MORE)
    assert await Sealer(store, EventLog()).step(is_forced=True) == 7
    assert store.asked == [(500, 0)] * (1 + sealing.BUSY_TRIES)


async def test_sealing_everything_waits_for_whoever_is_sealing():
    store = Steps(BUSY, MORE, BUSY, Sealing(1, has_more=False))
    assert await Sealer(store, EventLog()).seal_all(retry_seconds=0) == 8


async def test_the_loop_outlives_an_outage():
    log = EventLog()
    store = Steps(StoreDown("down", detail="away"), MORE)
    sealer = Sealer(store, log, interval_seconds=0)
    running = asyncio.ensure_future(sealer.run())
    await asyncio.wait_for(store.is_done.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sealer.sealed == 7
    assert log.fields_of("store.failed") == [{"detail": "away"}]

"""What is done for all open streams is done a handful at a time: no turn of the loop grows with their number.

Turns are measured in the CPU time of the loop's thread, in units of a walk over as many streams on the same machine, so
that neither a slow machine nor a busy one makes a difference. Nothing is collected meanwhile: that has its own tests.
"""

import asyncio
import gc
import heapq
import sys
import time
from collections.abc import Iterator, Mapping

import pytest

from fakes.daemon import wait_until
from fakes.gateway import Gateway
from fakes.journals import PRICE
from fakes.tallies import running
from meterhouse.http.call import Call
from meterhouse.http.guard import Guard
from meterhouse.ids import new_request_id
from meterhouse.ledger.checkpointer import MOST_AT_ONCE
from meterhouse.limits.memory import MemoryMeter
from meterhouse.metering import Use
from meterhouse.request import Tally

STREAMS = 20_000
ROUNDS = 3
WALKS = 5
"""So many walks a turn may take; to write down or renew all at once takes ten and more."""
SETTINGS = {
    "METERHOUSE_CHECKPOINT_SECONDS": "0.1",
    "METERHOUSE_RENEW_SECONDS": "0.1",
    "METERHOUSE_KEY_CHECK_SECONDS": "0.5",
}


class Turns:
    """How long the turns of a loop take, in CPU time of its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_on = True
        self._began = 0.0
        self.longest: list[float] = []

    def start(self) -> None:
        self._began = time.thread_time()
        self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._is_on = False

    def _turn(self) -> None:
        took = time.thread_time() - self._began
        (heapq.heappush if len(self.longest) < ROUNDS else heapq.heappushpop)(self.longest, took)
        if self._is_on:
            self._loop.call_soon(self._turn)
        self._began = time.thread_time()


@pytest.fixture
def tallies(gateway: Gateway) -> Iterator[list[Tally]]:
    """As many open streams, as far as those know of them that look after all."""
    inference = gateway.parts.inference
    tallies = [running(new_request_id(), f"org_{number % 7}", PRICE) for number in range(STREAMS)]
    calls = [Call(*[None] * 3, tally, None, Guard(None), {}, look_at_ns=sys.maxsize) for tally in tallies]

    def enter() -> None:
        for tally, call in zip(tallies, calls, strict=True):
            inference.checkpointer.watch(tally)
            inference.pacer.watch(call)

    def leave() -> None:
        for tally, call in zip(tallies, calls, strict=True):
            inference.checkpointer.forget(tally)
            inference.pacer.forget(call)

    gateway.call(enter)
    gc.disable()
    yield tallies
    gc.enable()
    gateway.call(leave)


def walk(tallies: list[Tally]) -> float:
    began = time.thread_time()
    assert sum(tally.attempts[-1].output_tokens_estimate for tally in tallies) > 0
    return time.thread_time() - began


def test_no_turn_grows_with_the_streams(
    gateway: Gateway, tallies: list[Tally], monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[int] = []
    renew = MemoryMeter.renew

    async def count(meter: MemoryMeter, uses: Mapping[str, Use]) -> None:
        renewed.append(len(uses))
        await renew(meter, uses)

    monkeypatch.setattr(MemoryMeter, "renew", count)
    assert gateway.loop is not None
    turns = Turns(gateway.loop)
    gateway.call(turns.start)
    for _ in range(ROUNDS):
        for tally in tallies:
            tally.attempt.output_events += 5
        wait_until(
            lambda: all(tally.checkpointed_tokens == tally.attempt.output_tokens_estimate for tally in tallies),
            "a checkpoint of each",
            60,
        )
        gateway.call(gateway.parts.health.metrics.snapshot)
    wait_until(lambda: sum(renewed) >= ROUNDS * STREAMS, "the renewals of all", 60)
    gateway.call(turns.stop)
    assert max(renewed) <= MOST_AT_ONCE
    # What is done again and again is among the longest each time; what happens once is not looked at.
    assert min(turns.longest) < WALKS * gateway.call(lambda: min(walk(tallies) for _ in range(ROUNDS)))

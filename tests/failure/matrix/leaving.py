"""Clients that leave when they are told to, or by the thousand at moments of their own; and what they leave behind.

Not here: what must become of their requests (test_answers).
"""

import asyncio
import math
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from failure.killing import Conversation
from failure.matrix.house import LONG, PACED, QUICK_ANSWER, UNCOUNTED, House
from failure.matrix.launch_meterhouse import DRAIN

CANCEL = "fake"
"""The provider that stops billing when it is hung up on."""
DRAIN_SECONDS = 3.0
"""How long an answer of the other one is read on."""
SETTLED_SECONDS = 5.0
SHARED_SECONDS = 1.2
"""A worker tells the others its figures once a second."""
AT_A_TIME = 50
LOOKS, LOOK_SECONDS = 6, 0.4
PATIENT = 0.1
"""The part that leaves when something has come, not after some time: however slow the machine is, so many are there."""
LEAVING_RATES = (100, 20, 6)
"""How many of those who wait leave per second: a third is gone before anything can have happened."""
STORM = (QUICK_ANSWER, PACED, UNCOUNTED, LONG)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Leaver:
    """One client on a connection of its own, which leaves when it is told to."""

    def __init__(self, house: House, key: str, model: str, provider: str = CANCEL, *, is_streamed: bool = True) -> None:
        self._house = house
        self._key = key
        self.talk = house.conversation(model, is_streamed=is_streamed)
        self.talk.more["model"] = f"{provider}/{model}"

    async def ask(self, part: float = 1.0) -> None:
        """Connect and send the request, or the first part of it."""
        self._reader, self._writer = await self._house.connect()
        data = self.talk.encode(self._key)
        self._writer.write(data[: int(len(data) * part)])

    async def read_until(self, mark: bytes, count: int = 1) -> None:
        """Read until something was said so often."""
        while b"".join(data for _, data in self.talk.arrivals).count(mark) < count:
            data = await self._reader.read(1 << 16)
            assert data, self.talk.arrivals[-1:]
            self.talk.arrivals.append((time.time(), data))

    async def read_for(self, seconds: float, arrivals: int = 1 << 30) -> None:
        """Read what comes in so many seconds, or until so much has come or the server closes."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                while len(self.talk.arrivals) < arrivals and (data := await self._reader.read(1 << 16)):
                    self.talk.arrivals.append((time.time(), data))

    def leave(self, *, is_reset: bool) -> None:
        """Close in order, or reset the connection."""
        if is_reset:
            linger = struct.pack("ii", 1, 0)
            found = self._writer.get_extra_info("socket")
            if found is not None:  # else it was closed from the other side meanwhile
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()
        self.talk.read()


async def leave_all(house: House, leavers: Sequence[Leaver]) -> None:
    """Ask, wait until each stands where its script stops, and leave: every other one with a reset."""
    for leaver in leavers:
        await leaver.ask()
    await house.up.until(
        lambda truth: all(any(a.is_held for a in truth.by_marker(leaver.talk.marker)) for leaver in leavers)
    )
    for number, leaver in enumerate(leavers):
        if leaver.talk.is_streamed and "start" not in leaver.talk.model:
            await leaver.read_until(b'"content"', 20)
        leaver.leave(is_reset=bool(number % 2))


def endings(house: House, leavers: Sequence[Leaver]) -> Counter[str | None]:
    """Return how the provider saw their answers end."""
    return Counter(attempt.ended_by for leaver in leavers for attempt in house.up.truth.by_marker(leaver.talk.marker))


async def wait_ended(house: House, leavers: Sequence[Leaver], seconds: float) -> float:
    """Wait until the provider was hung up on; returns how long it took."""
    began = time.monotonic()
    await house.up.until(lambda _: not endings(house, leavers)[None], seconds)
    return time.monotonic() - began


def figures_of(house: House) -> dict[int, tuple[int, int, int]]:
    """Return each worker's memory in bytes, its open files (but those of the stores' pools) and its tasks."""
    pooled = _sockets_to(*house.store_ports)
    found = {}
    for pid in house.fleet.serving():
        memory_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        links = []
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                links.append(str(path.readlink()))
        tasks = (house.folder / "orders" / f"tasks.{pid}").read_text()
        found[pid] = memory_bytes, sum(link not in pooled for link in links), len(tasks.splitlines())
    return found


def _sockets_to(*ports: int) -> set[str]:
    """Return the sockets that are connected to some ports of this machine, as links of open files name them."""
    wanted = {f"{port:04X}" for port in ports}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{fields[9]}]" for fields in lines if fields[2].rpartition(":")[2] in wanted}


async def storm(
    house: House, keys: Sequence[str], cancels: int, *, most_per_second: float = math.inf
) -> list[Conversation]:
    """So many clients, fifty at a time, each of which leaves at a moment of its own; returns what they asked."""
    began = time.monotonic()
    chance = random.Random(38)
    leavers: list[Leaver] = []

    async def one_after_another(number: int) -> None:
        while len(leavers) < cancels:
            leaver = Leaver(
                house,
                keys[number % len(keys)],
                chance.choice(STORM),
                chance.choice((CANCEL, CANCEL, DRAIN)),
                is_streamed=chance.random() < 0.75,
            )
            leavers.append(leaver)
            await asyncio.sleep(max(0.0, began + len(leavers) / most_per_second - time.monotonic()))
            await leaver.ask(part=chance.random() if chance.random() < 0.1 else 1.0)
            if chance.random() < PATIENT:
                await leaver.read_for(10, arrivals=chance.randrange(1, 12))
            else:
                await leaver.read_for(min(chance.expovariate(chance.choice(LEAVING_RATES)), 2.0))
            leaver.leave(is_reset=chance.random() < 0.5)

    await asyncio.gather(*(one_after_another(number) for number in range(AT_A_TIME)))
    return [leaver.talk for leaver in leavers]


async def calm_down(house: House) -> float:
    """Wait until no worker answers anybody and no answer of the provider is open; returns how long it took."""
    began = time.monotonic()
    await house.up.until(lambda truth: not truth.count_stages(), DRAIN_SECONDS + SETTLED_SECONDS)
    is_calm = False
    while not is_calm:
        assert time.monotonic() - began < DRAIN_SECONDS + SETTLED_SECONDS
        await asyncio.sleep(SHARED_SECONDS)
        is_calm = await asyncio.to_thread(house.fleet.metric, "meterhouse_open_requests") == 0
    return time.monotonic() - began


async def at_rest(house: House) -> dict[int, tuple[int, int, int]]:
    """Return the least that the workers take once they are calm and kept connections have been closed."""
    await calm_down(house)
    await asyncio.to_thread(house.wait_for, lambda: not house.up.connections, 40)
    seen = []
    for _ in range(LOOKS):  # loops that run now and then are tasks, and what they talk to is an open file
        seen.append(figures_of(house))
        await asyncio.sleep(LOOK_SECONDS)
    least = (zip(*(figures[pid] for figures in seen), strict=True) for pid in seen[0])
    return {
        pid: (min(sizes), min(files), min(tasks)) for pid, (sizes, files, tasks) in zip(seen[0], least, strict=True)
    }

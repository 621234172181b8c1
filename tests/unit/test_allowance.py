"""The allowance file: over processes, kills and restarts never more than the total, and nothing out of a torn file."""

# ruff: noqa: ASYNC240 - the files are small, and the loop runs nothing else

import asyncio
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import allowance_process
from fakes.journals import EventLog
from fakes.meter_oracle import START_MS, FakeClock
from meterhouse.limits.allowance import KEEP_MS, AllowanceFile

DAY_MS = 86_400_000
DAY = (START_MS, START_MS + DAY_MS)
FOREVER = (None, None)


@pytest.fixture
def log() -> EventLog:
    return EventLog()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "allowance"


def open_file(path: Path, log: EventLog, clock: FakeClock | None = None, wait_seconds: float = 10) -> AllowanceFile:
    return AllowanceFile(path, clock=clock or FakeClock(), log=log, lock_wait_seconds=wait_seconds)


async def test_a_slot_is_granted_its_total_and_no_more(path: Path, log: EventLog) -> None:
    allowance = open_file(path, log)
    assert [await allowance.draw("a", *DAY, 100, wanted) for wanted in (60, 60, 60)] == [60, 40, 0]
    assert await allowance.draw("b", *DAY, 100, 7) == 7
    assert await allowance.draw("a", DAY[1], DAY[1] + DAY_MS, 100, 60) == 60
    assert await allowance.draw("a", *FOREVER, 100, 60) == 60
    assert [await allowance.draw("c", *DAY, *what) for what in ((0, 5), (5, 0), (-5, 5))] == [0, 0, 0]
    await allowance.close()
    assert await allowance.draw("d", *DAY, 100, 60) == 0
    assert not log.lines


async def test_a_total_that_is_raised_gives_the_difference_and_one_that_is_lowered_nothing(
    path: Path, log: EventLog
) -> None:
    allowance = open_file(path, log)
    assert await allowance.draw("a", *FOREVER, 100, 100) == 100
    assert await allowance.draw("a", *FOREVER, 50, 10) == 0
    assert await allowance.draw("a", *FOREVER, 130, 100) == 30
    await allowance.close()


async def test_a_restart_does_not_renew_it(path: Path, log: EventLog) -> None:
    for expected in (60, 40, 0):
        allowance = open_file(path, log)
        assert await allowance.draw("a", *DAY, 100, 60) == expected
        await allowance.close()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_is_given_back_is_there_for_others_and_never_more_than_was_drawn(path: Path, log: EventLog) -> None:
    allowance, other = open_file(path, log), open_file(path, log)
    assert await allowance.draw("a", *DAY, 100, 60) == 60
    await allowance.give_back("a", DAY[0], 50)
    assert await other.draw("a", *DAY, 100, 100) == 90
    await other.give_back("a", DAY[0], 500)
    await other.give_back("never drawn", DAY[0], 500)
    assert await allowance.draw("a", *DAY, 100, 500) == 100
    assert await allowance.draw("never drawn", *DAY, 100, 500) == 100
    for file in (allowance, other):
        await file.close()


async def test_draws_at_once_are_each_granted_their_own(path: Path, log: EventLog) -> None:
    files = [open_file(path, log) for _ in range(3)]
    grants = await asyncio.gather(*[files[i % 3].draw("a", *FOREVER, 1_000, 9) for i in range(300)])
    assert sum(grants) == 1_000
    assert set(grants) <= {9, 1, 0}
    for file in files:
        await file.close()


async def test_a_draw_whose_caller_has_gone_hurts_nobody(path: Path, log: EventLog) -> None:
    allowance = open_file(path, log)
    tasks = [asyncio.create_task(allowance.draw("a", *FOREVER, 100, 10)) for _ in range(6)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    grants = await asyncio.gather(*tasks, return_exceptions=True)
    assert [grant for grant in grants if isinstance(grant, int)] == [10, 10, 10]
    assert await allowance.draw("a", *FOREVER, 100, 100) == 40
    await allowance.close()


# --- the clock


async def test_past_periods_are_dropped_and_never_granted_again(path: Path, log: EventLog) -> None:
    clock = FakeClock()
    allowance = open_file(path, log, clock)
    assert await allowance.draw("old", *DAY, 100, 100) == 100
    clock.move(ms=DAY_MS + KEEP_MS)
    assert await allowance.draw("new", *FOREVER, 100, 1) == 1
    assert [entry[0] for entry in json.loads(path.read_bytes().partition(b"\n")[2])["entries"]] == ["new"]
    clock.move(ms=-DAY_MS - KEEP_MS)
    assert await allowance.draw("old", *DAY, 100, 100) == 0
    await allowance.close()


async def test_a_period_that_has_just_ended_is_remembered(path: Path, log: EventLog) -> None:
    clock = FakeClock()
    allowance = open_file(path, log, clock)
    assert await allowance.draw("a", *DAY, 100, 70) == 70
    clock.move(ms=DAY_MS + KEEP_MS - 1)
    assert await allowance.draw("b", *FOREVER, 100, 1) == 1
    assert await allowance.draw("a", *DAY, 100, 70) == 30
    await allowance.close()


Step = tuple[str, int, int, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(-1, 4),
        st.integers(1, 60),
        st.integers(-4 * DAY_MS, 4 * DAY_MS),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_whatever_the_clock_does_no_period_gives_more_than_its_total(steps: list[Step]) -> None:
    async def run(path: Path) -> Counter[tuple[str, int]]:
        log, clock = EventLog(), FakeClock()
        granted: Counter[tuple[str, int]] = Counter()
        allowance = open_file(path, log, clock)
        for slot, day, wanted, move_ms, restarts in steps:
            period = FOREVER if day < 0 else (START_MS + day * DAY_MS, START_MS + (day + 1) * DAY_MS)
            granted[slot, day] += await allowance.draw(slot, *period, 100, wanted)
            clock.move(ms=move_ms)
            if restarts:
                await allowance.close()
                allowance = open_file(path, log, clock)
        await allowance.close()
        assert not log.lines
        return granted

    with tempfile.TemporaryDirectory() as folder:
        assert max(asyncio.run(run(Path(folder) / "allowance")).values(), default=0) <= 100


# --- processes


@pytest.fixture
def spawn(tmp_path: Path, path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []

    def spawn(seed: int) -> subprocess.Popen[bytes]:
        report = tmp_path / f"report-{seed}"
        command = [sys.executable, allowance_process.__file__, path, report, "2000", str(seed)]
        process = subprocess.Popen([str(word) for word in command])
        running.append(process)
        return process

    yield spawn
    for process in running:
        process.kill()
        process.wait()


def count_reports(folder: Path) -> Counter[str]:
    granted: Counter[str] = Counter()
    for report in folder.glob("report-*"):
        for line in report.read_text().splitlines():
            slot, amount = line.split()
            granted[slot] += int(amount)
    return granted


def drawn(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    return {entry[0]: entry[3] for entry in json.loads(path.read_bytes().partition(b"\n")[2])["entries"]}


def test_processes_that_are_killed_at_any_moment_never_draw_more_than_the_total(
    tmp_path: Path, path: Path, spawn: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    chance = random.Random(11)
    seeds = iter(range(100))
    processes = [spawn(next(seeds)) for _ in range(2)]
    kills = 0
    until = time.monotonic() + 60
    while min(drawn(path).get(slot, 0) for slot in "ab") < 2_000:
        assert time.monotonic() < until, "the processes draw nothing"
        before = sum(drawn(path).values())
        while sum(drawn(path).values()) == before and before < 4_000:
            time.sleep(chance.random() / 200)
        if kills < 8 and count_reports(tmp_path):
            victim = processes.pop(0)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            kills += 1
            processes.append(spawn(next(seeds)))
        assert all(amount <= drawn(path)[slot] for slot, amount in count_reports(tmp_path).items())
    assert kills >= 3
    assert drawn(path) == {"a": 2_000, "b": 2_000}
    granted = count_reports(tmp_path)
    assert max(granted.values()) <= 2_000
    # What a kill can lose is the draw that it interrupts.
    assert min(granted.values()) >= 2_000 - 60 * (kills + 2)


# --- files that cannot be used


@pytest.fixture
async def content(path: Path, log: EventLog) -> bytes:
    allowance = open_file(path, log)
    await allowance.draw("a", *DAY, 100, 10)
    await allowance.draw("b", *FOREVER, 100, 10)
    await allowance.close()
    return path.read_bytes()


async def grant_of(path: Path, log: EventLog) -> int:
    allowance = open_file(path, log)
    granted = await allowance.draw("a", *DAY, 100, 10)
    await allowance.close()
    return granted


async def test_a_file_torn_anywhere_grants_nothing_and_stays_as_it_is(path: Path, content: bytes) -> None:
    for length in range(len(content)):
        path.write_bytes(content[:length])
        log = EventLog()
        assert await grant_of(path, log) == 0, length
        assert path.read_bytes() == content[:length]
        assert "To repair it" in str(log.fields_of("allowance.failed")[0]["reason"])
    path.write_bytes(content)
    assert await grant_of(path, EventLog()) == 10


async def test_a_file_changed_anywhere_grants_nothing(path: Path, content: bytes) -> None:
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert await grant_of(path, EventLog()) == 0, place


@pytest.mark.parametrize("other", [b"", b"\n", b"{}", b"\0" * 4_096, b"meterhouse-allowance-2 00000000 0\n"])
async def test_another_file_grants_nothing(path: Path, log: EventLog, other: bytes) -> None:
    path.write_bytes(other)
    assert await grant_of(path, log) == 0
    assert path.read_bytes() == other


async def test_a_failure_is_logged_once_until_it_ends(path: Path, log: EventLog, content: bytes) -> None:
    path.write_bytes(b"")
    allowance = open_file(path, log)
    for _ in range(3):
        assert await allowance.draw("a", *DAY, 100, 10) == 0
    assert len(log.lines) == 1
    path.write_bytes(content)
    assert await allowance.draw("a", *DAY, 100, 10) == 10
    path.write_bytes(b"")
    assert await allowance.draw("a", *DAY, 100, 10) == 0
    assert len(log.lines) == 2
    await allowance.close()


async def test_a_folder_that_is_not_there_grants_nothing(tmp_path: Path, log: EventLog) -> None:
    assert await grant_of(tmp_path / "missing" / "allowance", log) == 0
    assert "FileNotFoundError" in str(log.lines)


async def test_a_write_that_fails_grants_nothing_and_later_the_whole_rest(path: Path, log: EventLog) -> None:
    fresh = path.with_name("allowance.new")
    fresh.mkdir()
    allowance = open_file(path, log)
    assert await allowance.draw("a", *DAY, 100, 10) == 0
    assert "IsADirectoryError" in str(log.lines)
    fresh.rmdir()
    assert await allowance.draw("a", *DAY, 100, 1_000) == 100
    await allowance.close()


async def test_a_lock_that_somebody_keeps_grants_nothing_and_does_not_wait_for_ever(path: Path, log: EventLog) -> None:
    descriptor = os.open(path.with_name("allowance.lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        allowance = open_file(path, log, wait_seconds=0.05)
        assert await allowance.draw("a", *DAY, 100, 10) == 0
        assert "holds the lock" in str(log.lines)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        assert await allowance.draw("a", *DAY, 100, 10) == 10
        await allowance.close()
    finally:
        os.close(descriptor)

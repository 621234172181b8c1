"""The journal's disk is full, fails, or loses power: rows 13 to 15 of the matrix.

The journals stand on a small volume of their own, and what is not synced stands in the memory of its worker: a kill of
all workers is a loss of power.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from failure.killing import Conversation, Judge, Totals
from failure.matrix.aiming import GATED, Spool, Standing, replay, rows_of, wait_rows
from failure.matrix.house import AMPLE, HELD_AT_START, LONG, PACED, QUICK_ANSWER, UNCOUNTED, House

TESTS = Path(__file__).resolve().parents[2]
VOLUME_BYTES = 24 << 20
SEGMENT_BYTES = 65_536
"""The smallest: about a hundred requests."""
MIX = (QUICK_ANSWER, PACED, UNCOUNTED, LONG)
CLIENTS = 8
IN_A_ROW = 40
"""So many answers of one status, with eight clients, are taken for an answer of both workers."""
BACK_SECONDS = 5.0
"""A full or failing disk is tried again once a second, a crowd asks, and both workers must answer."""


class Disk:
    """The volume of the journals: a tmpfs where one can be mounted, else an order to the file layer."""

    def __init__(self, folder: Path, orders: Path) -> None:
        self.folder = folder
        self.orders = orders
        folder.mkdir()
        orders.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={VOLUME_BYTES}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        self._is_mounted = mounted.returncode == 0

    def tell(self, order: str) -> None:
        """Give all workers an order."""
        (self.orders / order).touch()

    def withdraw(self, order: str) -> None:
        """Take an order back."""
        (self.orders / order).unlink(missing_ok=True)

    def fill(self) -> None:
        """Leave no room for anything."""
        if not self._is_mounted:
            self.tell("full")
            return
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "ballast").unlink(missing_ok=True)
        self.withdraw("full")

    def discard(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("disk")
    made = Disk(folder / "data", folder / "orders")
    yield made
    made.discard()


@pytest.fixture(scope="module")
def house(disk: Disk) -> Iterator[House]:
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(disk.orders), "--loses-power"]
    environment = {
        "PYTHONPATH": str(TESTS),
        "METERHOUSE_JOURNAL_SEGMENT_BYTES": str(SEGMENT_BYTES),
        "METERHOUSE_TAIL_SECONDS": "20",  # what stands at its end is not counted meanwhile
    }
    with House(disk.folder.parent, models=GATED, environment=environment, launcher=launcher) as running:
        yield running


def error_of(talk: Conversation) -> dict[str, str]:
    """Return the error of a refusal, or of the last event of a stream."""
    body = b"".join(data for _, data in talk.arrivals).partition(b"\r\n\r\n")[2]
    found: dict[str, str] = json.loads(body[body.rindex(b'{"error"') :].splitlines()[0])["error"]
    return found


async def ask_until(house: House, key: str, status: int, seconds: float) -> list[Conversation]:
    """Ask, eight at a time, until every one of the last answers had a status; returns all."""
    talks: list[Conversation] = []
    deadline = time.monotonic() + seconds
    while {talk.status for talk in talks[-IN_A_ROW:]} != {status} or len(talks) < IN_A_ROW:
        assert time.monotonic() < deadline, Counter(talk.status for talk in talks[-IN_A_ROW:])
        talks += await asyncio.gather(*(house.talk(house.conversation(), key) for _ in range(CLIENTS)))
    return talks


async def stand(house: House, key: str, phases: str) -> list[Standing]:
    """Let requests stand on both workers."""
    standings = [Standing(house, pid) for pid in house.fleet.serving()]
    for standing in standings:
        for phase in phases:
            await standing.add(phase, key)
    return standings


async def stood(standings: Sequence[Standing]) -> list[Conversation]:
    return [talk for standing in standings for talk in await standing.end()]


async def settle_down(house: House, talks: Sequence[Conversation], key: str, *, is_whole: bool = False) -> None:
    """Everything that reached the provider is in the ledger once, and the meter says what it says."""
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(200, 503), is_whole=is_whole)
    assert not verdict.faults, verdict.faults[:10]
    await asyncio.to_thread(house.wait_at_rest, key)


def cut_power(house: House) -> None:
    """Everything that runs is gone, and what it had not synced."""
    house.fleet.kill_all()


async def power_on(house: House) -> None:
    house.fleet.launch()
    await asyncio.to_thread(house.fleet.wait_workers)


@pytest.mark.slow_fault
@pytest.mark.cell(13, "RSEP")
async def test_a_full_disk_refuses_before_the_provider_is_asked_and_lets_end_what_runs(
    house: House, disk: Disk, figures: Callable[..., None]
) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    standings = await stand(house, key, "RCSE")
    await asyncio.to_thread(disk.fill)
    try:
        asked = await ask_until(house, key, 503, 20)
        refused = [talk for talk in asked if talk.status == 503]
        assert {error_of(talk)["code"] for talk in refused} == {"ledger_unavailable"}
        attempts = house.attempts()
        assert not [talk for talk in refused if attempts[talk.marker]]
        house.up.release()
        ended = await stood(standings)
        assert all(talk.is_whole for talk in ended)
        await asyncio.to_thread(wait_rows, house, ended, BACK_SECONDS)
    finally:
        disk.free()
    began = time.monotonic()
    asked += await ask_until(house, key, 200, 20)
    figures(back_after_full_disk_seconds=time.monotonic() - began)
    assert time.monotonic() - began < BACK_SECONDS
    await settle_down(house, [*asked, *ended], key, is_whole=True)


@pytest.mark.slow_fault
@pytest.mark.cell(14, "RE")
async def test_a_sync_that_fails_now_and_then_is_made_good_in_a_new_segment(house: House, disk: Disk) -> None:
    """What stood in the suspect segment is written again: everybody sees the end, and nothing is twice."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    known = len(house.fleet.events("journal.sync_failed"))
    async with Spool(house):
        async with house.crowd([key], MIX, clients=24) as talks:
            for number in range(6):
                await asyncio.sleep(0.3)
                disk.tell(f"eio.{number}")
                await asyncio.to_thread(house.wait_for, lambda: not any(disk.orders.glob("eio.*")))
        failed = house.fleet.events("journal.sync_failed")[known:]
        assert len(failed) == 6
        assert {line["pid"] for line in failed if "pid" in line} <= set(house.fleet.serving())
        assert any(line["unacknowledged_records"] for line in failed)
        assert [talk.arrivals for talk in talks if not talk.is_whole] == []
        cut_power(house)
    await power_on(house)
    await settle_down(house, talks, key, is_whole=True)
    await asyncio.to_thread(replay, house, times=3)


@pytest.mark.cell(14, "RE")
async def test_no_end_leaves_while_syncs_fail_for_good_and_nobody_new_is_let_in(
    house: House, disk: Disk, figures: Callable[..., None]
) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    standings = await stand(house, key, "E")
    asking = [house.conversation(HELD_AT_START, is_streamed=False) for _ in range(6)]
    bodies = [asyncio.create_task(house.talk(talk, key)) for talk in asking]
    await house.up.until(lambda truth: all(any(a.is_held for a in truth.by_marker(t.marker)) for t in asking))
    disk.tell("eio")
    try:
        house.up.release()
        streams, wholes = await stood(standings), await asyncio.gather(*bodies)
        for talk in [*streams, *wholes]:
            assert not talk.is_whole
            assert error_of(talk)["code"] == "ledger_unavailable"
        assert {talk.status for talk in wholes} == {503}
        assert all(b"x-should-retry: false" in talk.arrivals[0][1].lower() for talk in wholes)
        asked = await ask_until(house, key, 503, 20)
        attempts = house.attempts()
        assert not [talk for talk in asked[-IN_A_ROW:] if attempts[talk.marker]]
    finally:
        disk.withdraw("eio")
    began = time.monotonic()
    asked += await ask_until(house, key, 200, 20)
    figures(back_after_eio_seconds=time.monotonic() - began)
    assert time.monotonic() - began < BACK_SECONDS
    talks = [*streams, *wholes, *asked]
    await settle_down(house, talks, key)
    for (row,) in rows_of(house, [*streams, *wholes]).values():
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("completed", "reported", 25)


@pytest.mark.slow_fault
@pytest.mark.cell(14, "E")
@pytest.mark.cell(15, "RE")
async def test_no_end_leaves_while_no_sync_comes_back_and_power_lost_then_costs_no_client_anything(
    house: House, disk: Disk, figures: Callable[..., None]
) -> None:
    """Nothing was acknowledged: the provider may have worked in vain, but nobody was told that all is well."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    assert (await asyncio.to_thread(house.ask, key)).is_whole
    disk.tell("hold")
    try:
        talks = [house.conversation(QUICK_ANSWER, is_streamed=number % 3 > 0) for number in range(24)]
        tasks = [asyncio.create_task(house.talk(talk, key)) for talk in talks]
        markers = {talk.marker for talk in talks}
        await house.up.until(
            lambda truth: len({a.marker for a in truth.attempts if a.marker in markers and a.ended_by == "end"}) == 24
        )
        await asyncio.sleep(0.5)
        for talk in talks:
            assert b"[DONE]" not in b"".join(data for _, data in talk.arrivals)
        cut_power(house)
        await asyncio.gather(*tasks)
    finally:
        disk.withdraw("hold")
    await power_on(house)
    assert not any(talk.is_whole for talk in talks)
    await asyncio.to_thread(house.wait_at_rest, key)
    rows = rows_of(house, talks)
    assert all(len(found) <= 1 for found in rows.values())
    figures(orphans=sum(not found for found in rows.values()))
    await settle_down(house, [await asyncio.to_thread(house.ask, key)], key, is_whole=True)


@pytest.mark.slow_fault
@pytest.mark.cell(15, "RE")
async def test_whoever_saw_an_end_has_a_record_after_a_loss_of_power(
    house: House, figures: Callable[..., None]
) -> None:
    """Nothing is shipped before the power goes, so that what is not on the disk is nowhere."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    async with Spool(house):
        async with house.crowd([key], MIX, clients=24) as talks:
            await asyncio.sleep(1.5)
            killed_at = time.time()
            await asyncio.to_thread(cut_power, house)
        assert not any(rows_of(house, talks).values())
    await power_on(house)
    whole = [talk for talk in talks if talk.is_whole]
    assert len(whole) > 10
    await asyncio.to_thread(wait_rows, house, whole)
    await asyncio.to_thread(house.wait_at_rest, key)
    verdict = await asyncio.to_thread(house.judge, whole)
    assert not verdict.faults, verdict.faults[:10]
    rows = rows_of(house, talks)
    attempts = house.attempts()
    assert all(len(found) <= 1 for found in rows.values())
    judge = Judge(Totals())
    judge.judge([talk for talk in talks if rows[talk.trace_id]], attempts, rows, killed_at)
    assert not judge.faults, judge.faults[:10]
    orphans = [talk for talk in talks if attempts[talk.marker] and not rows[talk.trace_id]]
    figures(orphans=len(orphans), charged_less_tokens=judge._totals.lag_tokens)
    await asyncio.to_thread(replay, house)

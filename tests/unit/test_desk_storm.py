"""A shipper whose clerk and store fail in every way at once, by chance: what holds at each moment, and at the end."""

import asyncio
import random
from contextlib import suppress

import pytest

from fakes.journals import EventLog, intent, make_record, opened_journal, terminal, until
from fakes.store import MovingClock
from meterhouse.errors import StoreDown
from meterhouse.ids import new_request_id
from meterhouse.ledger import desk, shipper
from meterhouse.ledger.desk import GREETING, ClerkDesk, ClerkLine
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.shipper import Shipper

NANOS = 7
STORM_SECONDS = 0.8


class Rows:
    """The ledger as the worker's and the clerk's connections both reach it: slow, away, or away after the commit."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.ids: set[str] = set()
        self.is_calm = False

    async def insert(self, records) -> int:
        fate = "well" if self.is_calm else self.chance.choice(["well"] * 8 + ["slow", "late", "away", "unsaid"])
        await asyncio.sleep({"slow": 0.004, "late": 2 * desk.ANSWER_SECONDS}.get(fate, 0))
        if fate == "away":
            raise StoreDown("away")
        self.ids.update(record.request_id for record in records)
        if fate == "unsaid":
            raise StoreDown("committed, and the connection was lost")
        return len(records)


class Storm:
    """A journal that is written, its shipper, and clerks that each serve one connection in a way of their own."""

    def __init__(self, folder, journal, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rows = Rows(self.chance)
        self.journal = journal
        self.desk = ClerkDesk(self.rows)
        self.shipper = Shipper(self.rows, journal, MovingClock(), EventLog(), interval_ms=1, batch_records=20)
        self.line = self.shipper.clerk = ClerkLine(folder / "clerk.sock")
        self.running: dict[str, int] = {}
        self.ended: dict[str, tuple[int, int]] = {}
        """The positions of INTENT and TERMINAL of each."""
        self.attending = 0
        self.mark = journal.mark_shipped
        journal.mark_shipped = self.check_mark

    def check_mark(self, position: int) -> None:
        """Nothing is given up that SQL does not have, nor what a running request needs."""
        assert all(intent_at > position for intent_at in self.running.values())
        assert {name for name, (begun_at, _) in self.ended.items() if begun_at <= position} <= self.rows.ids
        self.mark(position)

    def check_pause(self, position: int) -> None:
        assert self.rows.ids == {name for name, (_, ended_at) in self.ended.items() if ended_at <= position}

    async def attend(self, reader, writer) -> None:
        self.attending += 1
        kind = self.chance.choice(["serve", "serve", "serve", "die early", "die late", "be mute"])
        try:
            async with asyncio.timeout(self.chance.random() * 0.2):  # serving, it ends wherever it is
                if kind == "serve":
                    await self.desk.attend(reader, writer)
                elif kind == "be mute":
                    await reader.read()
                else:
                    writer.write(GREETING)
                    entries = desk._OFFERS.decode(await desk._read_frame(reader))
                    if kind == "die late":
                        await self.desk._write(entries)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.attending -= 1

    async def write(self) -> None:
        while True:
            for _ in range(self.chance.randint(1, 20)):
                if self.chance.random() < 0.5 or not self.running:
                    name = new_request_id()
                    self.running[name] = self.journal.append(intent(name))
                else:
                    name = self.chance.choice(list(self.running))
                    at = self.journal.append(terminal(make_record(name, charge_nanos=NANOS)))
                    self.ended[name] = self.running.pop(name), at
            await asyncio.sleep(self.chance.random() * 0.004)

    async def pause(self) -> None:
        while True:
            await asyncio.sleep(self.chance.random() * 0.02)
            pause = self.shipper.paused_at(self.journal.position)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.chance.choice([0.002, 0.01, 5])), pause:
                    self.check_pause(pause.position)
                    await asyncio.sleep(0.002)
                    self.check_pause(pause.position)

    async def give_up(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.chance.random() * 0.01):
                    await self.shipper.ship_until(self.journal.position)
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_fails_nothing_is_lost_marked_too_early_or_beyond_a_pause(tmp_path, monkeypatch, seed):
    for module, name, value in (
        (desk, "RETRY_SECONDS", 0.002),
        (desk, "AWAY_SECONDS", 0.01),
        (desk, "ANSWER_SECONDS", 0.03),
        (shipper, "MAX_DELAY_MS", 5),
        (shipper, "OWN_HAND_SECONDS", 0.1),
    ):
        monkeypatch.setattr(module, name, value)
    policy = JournalPolicy(segment_bytes=1 << 16, retry_seconds=0.01)
    async with opened_journal(tmp_path / "journals", policy=policy) as journal:
        storm = Storm(tmp_path, journal, seed)
        server = await asyncio.start_unix_server(storm.attend, tmp_path / "clerk.sock")
        loops = [storm.line.run, storm.shipper.run, storm.write, storm.pause, storm.give_up]
        tasks = [asyncio.create_task(run()) for run in loops]
        done, _ = await asyncio.wait(tasks, timeout=STORM_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            await task
        storm.rows.is_calm = True
        await storm.shipper.ship_until(journal.position)
        server.close()
        await until(lambda: storm.attending == 0)
        assert storm.rows.ids == storm.ended.keys()
        assert storm.shipper._open == storm.running
        assert storm.shipper._seen_nanos == storm.shipper._shipped_nanos == NANOS * len(storm.ended)

"""Exports over SQLite and PostgreSQL: every sealed row reaches the receiver, whatever breaks; files have no gap."""

import asyncio
import json
import re
from datetime import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.ledger import record
from fakes.receiver import receiving
from fakes.store import MovingClock
from meterhouse import signed_exports
from meterhouse.billing import events as exporting
from meterhouse.billing.events import EventExport, Sink
from meterhouse.billing.outbound import Outbound
from meterhouse.db.books import Books
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import wall_ms
from meterhouse.db.ledger import Adjustment, LedgerStore
from meterhouse.db.organizations import Organization
from meterhouse.db.turns import TurnStore
from meterhouse.ledger.export import ExportReader, check_export
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.signed_exports import FolderExport
from meterhouse.telemetry.logs import get_logger

KEY = Ed25519PrivateKey.generate()


class House:
    def __init__(self, engine, url, posts):
        self.engine = engine
        self.ledger = LedgerStore(engine)
        self.books = Books(engine, hash_rows)
        self.turns = TurnStore(engine)
        self.export = EventExport(self.books.seals, self.turns, posts, Sink(url, "token-canary"))

    async def open(self):
        for name in ("org_1", "org_2"):
            await Catalog(self.engine).organizations.insert_organization(Organization(name, name, 1))
        return self

    async def use(self, count, **changes):
        rows = [record(**changes) for _ in range(count)]
        await self.ledger.insert(rows)
        await Sealer(self.books.seals, get_logger()).seal_all()
        return {f"{row.request_id}-{row.attempt}" for row in rows}


@pytest.fixture
async def posts():
    async with Outbound(allows_private=True) as made:
        yield made


async def test_every_row_is_sent_as_a_cloud_event_in_its_order(engine, posts):
    async with receiving() as receiver:
        house = await House(engine, receiver.url, posts).open()
        ids = await house.use(3) | await house.use(2, organization_id="org_2")
        await house.ledger.insert_adjustment(Adjustment("adj_1", "org_1", "p", None, 5, -7, 0, "why", wall_ms()))
        await house.use(0)
        assert await house.export.step() == 6
        assert await house.export.step() == 0
        message = receiver.received[0]
        assert message.headers["content-type"] == "application/cloudevents-batch+json"
        assert message.headers["authorization"] == "Bearer token-canary"
        events = [event for one in receiver.received for event in one.json]
        assert {event["id"] for event in events} == ids | {"adj_1"}
        for event in events:
            assert set(event) == {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"}
            assert (event["specversion"], event["source"]) == ("1.0", "meterhouse")
            assert datetime.fromisoformat(event["time"]).tzinfo is not None
            assert re.fullmatch(r"meterhouse\.(usage|adjustment)", event["type"])
        mine = [event["data"]["sequence"] for event in events if event["subject"] == "org_1"]
        assert mine == sorted(mine)
        usage = next(event for event in events if event["type"] == "meterhouse.usage")
        assert (usage["data"]["charge_nanos"], usage["data"]["usd"], usage["data"]["model"]) == (
            1_000,
            "0.000001",
            "gpt",
        )
        assert usage["data"]["input_tokens"] == 100


async def test_a_receiver_that_fails_gets_everything_at_least_once_and_in_the_end(engine, posts, monkeypatch):
    monkeypatch.setattr(exporting, "BATCH_ROWS", 2)
    monkeypatch.setattr(exporting, "TIMEOUT_SECONDS", 0.2)
    async with receiving(204, 503, "break", 204, "hang", 204) as receiver:
        ids = await (await House(engine, receiver.url, posts).open()).use(7)
        for _ in range(4):
            # A new object each time: nothing is remembered but in the database, as after a restart.
            await House(engine, receiver.url, posts).export.step()
        sent = [event["id"] for one in receiver.received for event in one.json]
        assert set(sent) == ids
        assert len(sent) > len(ids)  # what was not answered was sent again, under the same id
        assert (await TurnStore(engine).read_positions("cloudevents")) == {"org_1": 7}


async def test_what_is_refused_of_one_organization_keeps_back_no_other(engine, posts, monkeypatch):
    async with receiving(400, 204, 400, 400, 204) as receiver:
        house = await House(engine, receiver.url, posts).open()
        await house.use(2)
        other = await house.use(3, organization_id="org_2")
        assert await house.export.step() == 3
        assert {event["id"] for event in receiver.received[1].json} == other
        # Where a step gives up, the next goes on behind.
        monkeypatch.setattr(exporting, "MOST_REFUSALS", 1)
        assert await house.export.step() == 0
        await house.use(4, organization_id="org_2")
        assert await house.export.step() == 0
        assert await house.export.step() == 2 + 4
        subjects = [one.json[0]["subject"] for one in receiver.received]
        assert subjects == ["org_1", "org_2", "org_1", "org_2", "org_1", "org_2"]


async def test_a_turn_is_one_process_s_until_it_is_over(engine):
    turns = TurnStore(engine)
    taken = await asyncio.gather(*(turns.take("alerts", f"desk_{i}", 1_000, 500) for i in range(6)))
    assert sum(taken) == 1
    holder = f"desk_{taken.index(True)}"
    assert await turns.take("alerts", holder, 1_400, 500)
    assert not await turns.take("alerts", "other", 1_899, 500)
    assert await turns.take("other duty", "other", 1_899, 500)
    assert await turns.take("alerts", "other", 1_900, 500)
    assert not await turns.take("alerts", holder, 1_950, 500)


async def test_a_cursor_is_never_moved_back(engine):
    turns = TurnStore(engine)
    for position in (5, 3, 9, 8):
        await turns.put_position("s", "org_1", position)
    assert await turns.read_positions("s") == {"org_1": 9}


async def test_files_are_written_when_it_is_time_and_join_without_a_gap(engine, posts, tmp_path):
    house = House(engine, "http://127.0.0.1:1/", posts)
    clock = MovingClock(wall_ms() + 120_000)
    folder = tmp_path / "exports"

    def export():
        return FolderExport(house.books, house.turns, clock, (folder, 3_600.0), lambda: KEY)

    ids = await house.use(3)
    first = await export().step()
    assert await export().step() is None
    # What is sealed from here on has a later time than the first file's end, as it has when an hour has gone.
    later = MovingClock(clock.now_ms() + 3_600_000)
    house.books.seals._now_ms = later.now_ms
    ids |= await house.use(2)
    clock.move(3_600_000 + 120_000)
    second = await export().step()
    rows = []
    for path in (first, second):
        reader = ExportReader(path)
        assert list(check_export(reader, KEY.public_key())) == []
        rows.append([line for line in map(json.loads, path.read_bytes().splitlines()) if "sequence" in line])
        assert path.stat().st_mode & 0o777 == 0o600
    assert [len(part) for part in rows] == [3, 2]
    assert rows[1][0]["previous_hash"] == rows[0][-1]["hash"]
    assert {f"{line['row']['request_id']}-{line['row']['attempt']}" for part in rows for line in part} == ids
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


async def test_a_folder_that_cannot_be_written_costs_no_row(engine, posts, tmp_path):
    house = House(engine, "http://127.0.0.1:1/", posts)
    await house.use(1)
    clock = MovingClock(wall_ms() + 120_000)
    (tmp_path / "file").write_text("in the way")
    blocked = FolderExport(house.books, house.turns, clock, (tmp_path / "file", 3_600.0), lambda: KEY)
    assert await blocked.step() is None
    written = await FolderExport(house.books, house.turns, clock, (tmp_path / "ok", 3_600.0), lambda: KEY).step()
    assert b'"sequence":1' in written.read_bytes()


async def test_of_two_processes_that_write_a_file_at_once_one_is_seen(engine, posts, tmp_path, monkeypatch):
    house = House(engine, "http://127.0.0.1:1/", posts)
    await house.use(3)
    both_write, write = asyncio.Barrier(2), signed_exports.export

    async def slow(*given):
        ending = await write(*given)
        await both_write.wait()
        return ending

    monkeypatch.setattr(signed_exports, "export", slow)
    exports, ends_ms = [], [wall_ms() + ahead_ms for ahead_ms in (120_000, 300_000)]
    for end_ms in ends_ms:  # the second one's turn came while the first was still writing
        folder = FolderExport(house.books, house.turns, MovingClock(end_ms), (tmp_path / "f", 3_600.0), lambda: KEY)
        exports.append(folder.step())
    written = [path for path in await asyncio.gather(*exports) if path is not None]
    assert list((tmp_path / "f").iterdir()) == written
    assert len(written) == 1
    (end_ms,) = (await house.turns.read_positions("folder")).values()
    assert end_ms + signed_exports.MARGIN_MS in ends_ms

"""PostgreSQL refuses connections or is killed, and workers start without it: row 9 of the matrix."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, LONG, PACED, QUICK_ANSWER, UNCOUNTED, House, run_apart
from fakes.journals import intent, make_record, new_journal, terminal
from meterhouse.ids import new_request_id
from meterhouse.keys.secret import make
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.usage import Usage

HOUSE = {"environment": {"METERHOUSE_REDIS_TIMEOUT_SECONDS": "2"}}
"""Redis is not what fails here, also where the machine is crowded."""
TIGHT_NANOS = 3_000_000
TIGHT = "spend 0.003 USD total"
SHORT = {"max_tokens": 16}
MOST_HELD_NANOS = 300_000
"""What one of the short requests can hold at most."""
SPOOL_RECORDS = 25_000
DRAIN_PER_SECOND = 5_000
MOST_DRAINS = 3


@dataclass(frozen=True)
class Fault:
    """How PostgreSQL goes away and comes back."""

    begin: Callable[[House], object]
    end: Callable[[House], object]


REFUSED = Fault(lambda house: house.postgres_proxy.refuse(), lambda house: house.postgres_proxy.heal())
HUNG = Fault(lambda house: house.postgres.pause(), lambda house: house.postgres.resume())
KILLED = Fault(lambda house: house.postgres.kill(), lambda house: house.postgres.start())


@pytest.fixture(autouse=True)
def _restored(house: House) -> Iterator[None]:
    """Undo what a test that failed left broken: the next one has the same installation."""
    yield
    restore(house)


def restore(house: House) -> None:
    """Bring both stores back, whatever was done to them."""
    for proxy in (house.postgres_proxy, house.redis_proxy):
        proxy.heal()
    for server in (house.postgres, house.redis):
        if server.is_running:
            server.resume()
        else:
            server.start()


def answer_of(talk: Conversation) -> tuple[dict[str, str], Any]:
    """Return the headers in lower case and the decoded body of an answer that is JSON."""
    head, _, body = b"".join(data for _, data in talk.arrivals).partition(b"\r\n\r\n")
    lines = [line.decode().partition(": ") for line in head.split(b"\r\n")[1:]]
    return {name.lower(): value for name, _, value in lines}, json.loads(body)


def code_of(talk: Conversation) -> str:
    """Return the code of an error answer."""
    return str(answer_of(talk)[1]["error"]["code"])


def check_refused(talk: Conversation, code: str = "store_unavailable") -> None:
    """A well-formed 503 that says when to come again."""
    assert talk.status == 503, talk.arrivals
    headers, _ = answer_of(talk)
    assert (code_of(talk), headers["retry-after"]) == (code, "1")


def use_key(house: House, limits: str = AMPLE) -> str:
    """Issue a key and use it once; returns its text once the mirror has it."""
    key = house.new_key(limits)
    house.wait_for(lambda: house.ask(key, **SHORT).is_whole, 5)
    name = f"mh:key:{house.key_id_of(key)}"
    house.wait_for(lambda: house.redis.cli("EXISTS", name))
    return key


def check_served(house: House, key: str) -> None:
    """A key that was refused is served, once the worker asks PostgreSQL again: it does so once a second."""
    house.wait_for(lambda: house.ask(key).is_whole, 3)


def errors_of(house: House) -> list[dict[str, Any]]:
    """Return what was logged as an error: a store that is away is none."""
    return [line for line in house.fleet.events() if line["level"] == "error"]


def p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


def is_served_degraded(house: House, key: str) -> bool:
    """Whether a served answer says that PostgreSQL is away: each worker finds out by itself."""
    status, headers, _ = house.fleet.chat(f"fake/{QUICK_ANSWER}", key=key)
    assert status == 200
    return headers.get("x-meterhouse-degraded") == "ledger"


def check_away(house: House, key: str) -> None:
    """Everything that is promised while PostgreSQL is away, looked at once."""
    fleet = house.fleet
    house.wait_for(lambda: is_served_degraded(house, key), 3)
    # A process tells its figures now and then, its answers at once.
    house.wait_for(lambda: fleet.metric("meterhouse_degraded", part="ledger"), 3)
    assert not fleet.metric("meterhouse_degraded", part="meter")
    for unshipped in ("meterhouse_unshipped_records", "meterhouse_unshipped_nanos"):
        house.wait_for(lambda name=unshipped: fleet.metric(name) > 0, 3)
    assert fleet.request("GET", "/health/ready")[0] == 200
    for method, path, body in [
        ("GET", "/admin/keys", None),
        ("POST", "/admin/organizations", {"name": "Not now"}),
        ("DELETE", f"/admin/keys/{house.key_id_of(key)}", None),
    ]:
        status, headers, data = fleet.request(method, path, body, key=fleet.admin_key)
        assert (status, headers["retry-after"]) == (503, "1"), data
        assert json.loads(data)["error"]["code"] == "store_unavailable"
    check_refused(house.ask(make("live").value))
    assert house.ask(f"{key[:-1]}{'a' if key[-1] != 'a' else 'b'}").status == 401, "a typo needs no store"


@pytest.mark.cell(9, "AREP")
@pytest.mark.parametrize(
    "fault", [REFUSED, pytest.param(KILLED, marks=pytest.mark.slow_fault)], ids=["refused", "killed"]
)
async def test_requests_go_on_while_postgres_is_away(house: House, fault: Fault, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(use_key, house) for _ in range(2)]
    unused = await asyncio.to_thread(house.new_key)
    async with house.crowd(keys, (*[QUICK_ANSWER] * 4, PACED, UNCOUNTED), clients=10) as talks:
        await asyncio.sleep(1)
        await asyncio.to_thread(fault.begin, house)
        away_at = time.time()
        await asyncio.to_thread(house.wait_for, lambda: house.fleet.metric("meterhouse_degraded", part="ledger"))
        await asyncio.to_thread(check_away, house, keys[0])
        refused = await asyncio.to_thread(house.ask, unused)
        await asyncio.sleep(1)
        back_at = time.time()
        await asyncio.to_thread(fault.end, house)
        await asyncio.sleep(0.5)
    check_refused(refused)
    during = [talk for talk in talks if away_at < talk.asked_at < back_at]
    assert len(during) > 5
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    await asyncio.to_thread(house.wait_for, lambda: not house.fleet.metric("meterhouse_degraded", part="ledger"))
    await asyncio.to_thread(check_served, house, unused)
    assert not errors_of(house)
    quick = [talk for talk in talks if talk.model == QUICK_ANSWER]
    took = [talk.ended_at - talk.asked_at for talk in quick if away_at < talk.asked_at < back_at]
    before = [talk.ended_at - talk.asked_at for talk in quick if talk.ended_at < away_at]
    figures(added_p99_seconds_with_postgres_away=p99(took) - p99(before))


@pytest.mark.slow_fault
@pytest.mark.cell(9, "RE")
async def test_a_budget_is_metered_exactly_while_postgres_is_away(house: House, figures: Callable[..., None]) -> None:
    key = await asyncio.to_thread(use_key, house, TIGHT)
    await asyncio.to_thread(REFUSED.begin, house)
    try:
        async with house.crowd([key], [QUICK_ANSWER], clients=8, **SHORT) as talks:
            await asyncio.sleep(5)
        codes = {code_of(talk) for talk in talks if talk.status != 200}
    finally:
        await asyncio.to_thread(REFUSED.end, house)
    assert "insufficient_quota" in codes
    assert codes <= {"insufficient_quota", "rate_limit_exceeded"}
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(200, 429), is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    await asyncio.to_thread(house.wait_at_rest, key)
    spent = house.spent_nanos(key)
    figures(overrun_nanos=max(0, spent - TIGHT_NANOS))
    assert TIGHT_NANOS - MOST_HELD_NANOS < spent <= TIGHT_NANOS


@pytest.mark.slow_fault
@pytest.mark.cell(9, "ARP")
@pytest.mark.parametrize("fault", [REFUSED, HUNG], ids=["refused", "hung"])
async def test_workers_start_while_postgres_is_away(house: House, fault: Fault, figures: Callable[..., None]) -> None:
    key, unused = await asyncio.to_thread(use_key, house), await asyncio.to_thread(house.new_key)
    before = await asyncio.to_thread(house.ask, key)
    await asyncio.to_thread(fault.begin, house)
    try:
        spooled = [await asyncio.to_thread(house.ask, key) for _ in range(5)]
        began = time.monotonic()
        assert await asyncio.to_thread(house.fleet.stop) == 0
        stopped = time.monotonic()
        await asyncio.to_thread(house.fleet.start)
        figures(
            stop_seconds_with_postgres_away=stopped - began,
            start_seconds_with_postgres_away=time.monotonic() - stopped,
        )
        async with house.crowd([key], clients=8) as talks:
            refused = await asyncio.to_thread(house.ask, unused)
            assert (await asyncio.to_thread(house.fleet.request, "GET", "/health/ready"))[0] == 200
            await asyncio.sleep(2)
        check_refused(refused)
    finally:
        await asyncio.to_thread(fault.end, house)
    # The judge compares each charge with the operator's prices, which the new workers had only from their file.
    verdict = await asyncio.to_thread(house.judge, [before, *spooled, *talks], is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    await asyncio.to_thread(house.wait_at_rest, key)
    await asyncio.to_thread(check_served, house, unused)
    assert not errors_of(house)


@pytest.mark.slow_fault
@pytest.mark.cell(9, "P")
async def test_a_large_spool_drains_quickly(house: House, figures: Callable[..., None]) -> None:
    """The best of a few drains: what else the machine does takes away from one, and never adds to it."""
    key = await asyncio.to_thread(use_key, house)
    owner = await asyncio.to_thread(house.fleet.admin, "GET", f"/admin/keys/{house.key_id_of(key)}")
    project = await asyncio.to_thread(house.fleet.admin, "GET", "/admin/projects?limit=100")
    organization_id = next(p["organization_id"] for p in project["data"] if p["id"] == owner["project_id"])
    ids = {
        "organization_id": organization_id,
        "project_id": owner["project_id"],
        "key_id": house.key_id_of(key),
        "root_key_id": house.key_id_of(key),
    }
    best_per_second = 0.0
    for number in range(MOST_DRAINS):
        rows = await drain(house, key, {**ids, "model": f"spooled-{number}"})
        best_per_second = max(best_per_second, drain_rate(rows))
        if best_per_second >= DRAIN_PER_SECOND:
            break
    figures(drain_records_per_second=best_per_second)
    assert best_per_second >= DRAIN_PER_SECOND


async def drain(house: House, key: str, ids: dict[str, str]) -> list[dict[str, Any]]:
    """Have a spool shipped while somebody asks, and return its rows; each is there once, and the meter has them all."""
    await asyncio.to_thread(REFUSED.begin, house)
    try:
        wanted = await asyncio.to_thread(run_apart, write_spool(house, ids))
        talk = await asyncio.to_thread(house.ask, key, LONG)
    finally:
        await asyncio.to_thread(REFUSED.end, house)
    deadline = time.monotonic() + 60
    while await asyncio.to_thread(count_rows, house, ids["model"]) < SPOOL_RECORDS:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)  # seldom, because the drain is measured
    rows = [row for row in house.rows() if row["model"] == ids["model"]]
    assert {row["request_id"] for row in rows} == wanted
    assert len(rows) == SPOOL_RECORDS
    verdict = await asyncio.to_thread(house.judge, [talk], is_whole=True)
    assert not verdict.faults, verdict.faults
    # The meter had none of them, and has them all once they are reconciled.
    await asyncio.to_thread(house.wait_at_rest, key)
    return rows


async def write_spool(house: House, ids: dict[str, str]) -> set[str]:
    """Leave a journal as a worker does that was killed after a long outage; returns the request ids in it."""
    journal = new_journal(house.fleet.data / "journals", policy=JournalPolicy())
    await journal.open()
    wanted = set()
    for _ in range(SPOOL_RECORDS):
        request_id = new_request_id()
        record = make_record(
            request_id,
            **ids,
            usage=Usage(input_tokens=100, output_tokens=45),
            charge_nanos=280,
            admitted_at_ms=time.time_ns() // 1_000_000 - 1_000,
        )
        journal.append(intent(request_id, **ids), is_admission=True)
        position = journal.append(terminal(record))
        wanted.add(request_id)
    await journal.barrier(position)
    await journal.close()
    return wanted


def count_rows(house: House, model: str) -> int:
    statement = f"SELECT count(*) FROM usage_record WHERE model = '{model}'"
    return int(house.postgres.query(statement, house.database_url)[0][0])


def drain_rate(rows: Sequence[dict[str, Any]]) -> float:
    """Return how many records a second PostgreSQL took, by its own clock from batch to batch."""
    stamps = sorted(row["recorded_at_ms"] for row in rows)
    # A batch is stamped at its beginning, so what the last one took is not in the time.
    before_last = sum(stamp < stamps[-1] for stamp in stamps)
    return before_last / ((stamps[-1] - stamps[0]) / 1000)

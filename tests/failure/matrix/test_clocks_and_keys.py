"""Clocks that are wrong or jump, keys that are revoked and limits and prices that change: rows 28 and 29 of the matrix.

Further hosts with clocks of their own share the house's stores: ``meterhouse serve`` under libfaketime, as Debian has
it, whose monotonic clock is the true one.
"""

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, LONG, PACED, QUICK_ANSWER, House
from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment

ENDLESS = "paced?tokens=400&duration_ms=20000&usage=none"
"""Longer than any revocation may take to be noticed."""
PRICED = "paced?tokens=31&duration_ms=400&gate=10"
# The keys' intervals as in production, so that the matrix's 2 s and 15 s are tested as they stand there. Prices are
# read again every second instead of every half minute.
ENVIRONMENT = {
    "METERHOUSE_KEY_FRESH_SECONDS": "10",
    "METERHOUSE_KEY_CHECK_SECONDS": "5",
    "METERHOUSE_PROBE_SECONDS": "1",
}
HOUSE = {"models": (ENDLESS, PRICED), "environment": ENVIRONMENT}
HOUR_SECONDS = 3600
MOST_STREAMS = 40
TOLD_SECONDS, UNTOLD_SECONDS = 2.0, 15.0
NOTICE_OF_KEY = re.compile(rb"mh:notices\r\n\$\d+\r\n\x92\xa3key")
"""What Redis is sent to tell all workers of a key: the channel, and the kind of the notice in msgpack."""


class Host(ServeProcess):
    """Another host on the same stores, with a wall clock that is off by so much, or one that can be set."""

    def __init__(self, house: House, folder: Path, ahead_seconds: int | None) -> None:
        folder.mkdir()
        self._offset = folder / "offset"
        library = f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketimeMT.so.1"
        assert Path(library).exists(), f"{library} is missing (Debian: apt install faketime)"
        clock = {"LD_PRELOAD": library, "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        # gunicorn writes the monotonic time of a heartbeat into the stamps of a file, which are not to be moved.
        clock["NO_FAKE_STAT"] = "1"
        # Its correction for an old glibc would move the deadlines by which Python's threads take turns.
        clock["FAKETIME_FORCE_MONOTONIC_FIX"] = "0"
        if ahead_seconds is None:
            self._offset.write_text("+0")
            # Reading the file each time that somebody asks for the time would make a host that does nothing else.
            clock |= {"FAKETIME_TIMESTAMP_FILE": str(self._offset), "FAKETIME_CACHE_DURATION": "1"}
        else:
            clock["FAKETIME"] = f"{ahead_seconds:+d}"
        super().__init__(
            folder / "data",
            redis_url=house.redis.url,
            database_url=house.database_url,
            workers=1,
            environment={**provider_environment("fake", house.up.base_url), **ENVIRONMENT},
            launcher=[
                *("env", *(f"{name}={value}" for name, value in clock.items())),
                *(str(Path(sys.executable).parent / "meterhouse"), "serve"),
            ],
        )
        self.key, self.admin_key = house.fleet.key, house.fleet.admin_key

    def set_clock(self, ahead_seconds: int) -> None:
        """Set the wall clock, and wait until the worker's log has the new time."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{ahead_seconds:+d}")
        new.replace(self._offset)
        self.wait_clock(ahead_seconds)

    def wait_clock(self, ahead_seconds: int) -> None:
        """Wait until the log says that the clock is off by so much."""
        self.wait_for(lambda: abs(self.ahead_seconds() - ahead_seconds) < HOUR_SECONDS / 4, 10)

    def ahead_seconds(self) -> float:
        """Return how far the clock is ahead, by the last line of the log after one more request."""
        self.request("GET", "/v1/models/none")
        said = self.events("request.finished")[-1:]
        return datetime.fromisoformat(said[0]["timestamp"]).timestamp() - time.time() if said else 0.0


@contextmanager
def open_host(house: House, folder: Path, ahead_seconds: int | None) -> Iterator[Host]:
    """Run a host; it ends also when it does not start as it should."""
    host = Host(house, folder, ahead_seconds)
    try:
        yield host.start()
    finally:
        host.__exit__()


@pytest.fixture(scope="module")
def jumping(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with open_host(house, tmp_path_factory.mktemp("hosts") / "jumping", None) as host:
        yield host


@pytest.fixture(scope="module")
def ahead(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with open_host(house, tmp_path_factory.mktemp("hosts") / "ahead", HOUR_SECONDS) as host:
        yield host


@pytest.fixture(scope="module")
def behind(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with open_host(house, tmp_path_factory.mktemp("hosts") / "behind", -HOUR_SECONDS) as host:
        yield host


@contextmanager
def at(house: House, host: ServeProcess) -> Iterator[None]:
    """Have what is asked meanwhile go to another host."""
    own, house.fleet = house.fleet, host
    try:
        yield
    finally:
        house.fleet = own


def error_of(talk: Conversation) -> str:
    """Return the code of an error answer, or of the event that ended a stream; empty for neither."""
    body = b"".join(data for _, data in talk.arrivals).partition(b"\r\n\r\n")[2]
    found = re.findall(rb'"code": ?"([a-z_]+)"', body)
    return found[-1].decode() if found else ""


def ask_status(host: ServeProcess, key: str) -> int:
    return host.chat(f"fake/{QUICK_ANSWER}", key=key)[0]


def check_times(house: House, talks: Sequence[Conversation], began: float) -> None:
    """Every row was recorded, admitted and folded into an hour by the stores' clocks, which are the true ones."""
    traces = {talk.trace_id for talk in talks if talk.status == 200}
    rows = [row for row in house.rows() if row["trace_id"] in traces]
    assert len(rows) == len(traces)
    for name in ("recorded_at_ms", "admitted_at_ms"):
        assert all(began - 1 <= row[name] / 1000 <= time.time() + 1 for row in rows), [row[name] for row in rows[:5]]
    assert max(row["duration_ms"] for row in rows) < 60_000
    organizations = {row["organization_id"] for row in rows}
    hours = house.postgres.query("SELECT organization_id, hour_ms, requests FROM usage_hour", house.database_url)
    hours = [hour for hour in hours if hour[0] in organizations]
    first_ms = int(began) // HOUR_SECONDS * HOUR_SECONDS * 1000
    assert {hour[1] for hour in hours} <= {first_ms, first_ms + HOUR_SECONDS * 1000}
    assert sum(hour[2] for hour in hours) >= len(rows)


@pytest.mark.slow_fault
@pytest.mark.cell(28, "RSEP")
async def test_a_clock_that_jumps_disturbs_no_stream_and_no_window(house: House, jumping: Host) -> None:
    began = time.time()
    limited = await asyncio.to_thread(house.new_key, f"{AMPLE}; requests 4/hour")
    quick = await asyncio.to_thread(house.new_key, "requests 2/second")
    ample = await asyncio.to_thread(house.new_key, AMPLE)
    seen: list[int] = []
    with at(house, jumping):
        async with house.crowd([ample], [LONG, PACED], clients=6) as talks:
            for hours in (0, 1, -1):
                await asyncio.to_thread(jumping.set_clock, hours * HOUR_SECONDS)
                seen += [await asyncio.to_thread(ask_status, jumping, limited) for _ in range(3)]
                # Nobody is locked out by a window that seems to lie in the future.
                await asyncio.to_thread(house.wait_for, lambda: ask_status(jumping, quick) == 200, 4)
    assert seen == [200] * 4 + [429] * 5
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    for talk in talks:
        assert talk.ended_at - talk.asked_at < talk.plan.duration_ms / 1000 + 4
    await asyncio.to_thread(house.wait_at_rest, ample)
    check_times(house, talks, began)


@pytest.mark.slow_fault
@pytest.mark.cell(28, "AR")
async def test_keys_expire_by_the_time_of_postgres_on_hosts_with_wrong_clocks(
    house: House, ahead: Host, behind: Host
) -> None:
    hosts = (house.fleet, ahead, behind)
    for host, hours in ((ahead, 1), (behind, -1)):
        await asyncio.to_thread(host.wait_clock, hours * HOUR_SECONDS)
    for issuer in hosts:
        issued_at = time.time()
        _, lasting = await asyncio.to_thread(issuer.new_key, AMPLE, expires_in_seconds=HOUR_SECONDS // 2)
        key_id, short = await asyncio.to_thread(issuer.new_key, AMPLE, expires_in_seconds=4)
        shown = (await asyncio.to_thread(issuer.admin, "GET", f"/admin/keys/{key_id}"))["expires_at"]
        assert abs(shown - issued_at - 4) < 3
        assert [await asyncio.to_thread(ask_status, host, short) for host in hosts] == [200] * 3
        assert [await asyncio.to_thread(ask_status, host, lasting) for host in hosts] == [200] * 3
        await asyncio.sleep(max(0.0, shown + 1.5 - time.time()))
        assert [await asyncio.to_thread(ask_status, host, short) for host in hosts] == [401] * 3
        assert [await asyncio.to_thread(ask_status, host, lasting) for host in hosts] == [200] * 3


@pytest.mark.slow_fault
@pytest.mark.cell(28, "REP")
async def test_hosts_with_wrong_clocks_share_one_window_and_one_budget(house: House, ahead: Host, behind: Host) -> None:
    began = time.time()
    hosts = (house.fleet, ahead, behind)
    limited = await asyncio.to_thread(house.new_key, "requests 9/hour")
    statuses = [await asyncio.to_thread(ask_status, host, limited) for _ in range(6) for host in hosts]
    assert statuses == [200] * 9 + [429] * 9
    key = await asyncio.to_thread(house.new_key, "spend 0.002 USD/day; spend 1 USD/month; requests 100000 total")
    talks: list[Conversation] = []
    for host in hosts * 2:
        with at(house, host):
            async with house.crowd([key], [QUICK_ANSWER], clients=4, max_tokens=16) as more:
                await asyncio.sleep(0.4)
            talks += more
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(200, 429), is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert {error_of(talk) for talk in talks if talk.status == 429} <= {"insufficient_quota", "rate_limit_exceeded"}
    await asyncio.to_thread(house.wait_at_rest, key)
    assert house.spent_nanos(key) <= 2_000_000
    check_times(house, talks, began)


# --- row 29


async def revoke_under_load(
    house: House, fault: Callable[[], Any], seconds: float
) -> tuple[list[Conversation], list[Conversation], float]:
    """Revoke a key that quick requests and endless streams use; returns both, and when the answer came."""
    key_id, key = await asyncio.to_thread(house.fleet.new_key, AMPLE)
    streams: list[Conversation] = []
    tasks: list[asyncio.Task[Conversation]] = []
    workers: set[int] = set()
    while len(workers) < house.fleet.workers:
        assert len(streams) < MOST_STREAMS, "one worker takes every connection"
        streams.append(house.conversation(ENDLESS))
        tasks.append(asyncio.create_task(house.talk(streams[-1], key)))
        marker = streams[-1].marker
        await house.up.until(lambda truth, marker=marker: any(a.tokens > 3 for a in truth.by_marker(marker)))
        workers.add(await asyncio.to_thread(house.fleet.worker_of, streams[-1].local_port))
    async with house.crowd([key], [QUICK_ANSWER], clients=6) as talks:
        await asyncio.sleep(0.3)
        with fault():
            await asyncio.to_thread(house.fleet.admin, "DELETE", f"/admin/keys/{key_id}")
            revoked_at = time.time()
        await asyncio.wait(tasks, timeout=seconds)
        await asyncio.sleep(max(0.0, min(seconds, TOLD_SECONDS) - (time.time() - revoked_at)))
    assert all(task.done() for task in tasks), f"streams of a revoked key go on after {seconds} s"
    return talks, streams, revoked_at


async def check_revoked(
    house: House, found: tuple[list[Conversation], list[Conversation], float], seconds: float
) -> tuple[float, float]:
    """Nothing was accepted, and no stream ran, for longer; returns for how long they did."""
    talks, streams, revoked_at = found
    after = [talk for talk in talks if talk.asked_at > revoked_at]
    accepted = max([talk.asked_at - revoked_at for talk in after if talk.status == 200], default=0.0)
    cut = max(stream.ended_at - revoked_at for stream in streams)
    assert accepted <= seconds
    assert cut <= seconds
    assert [talk for talk in after if talk.status == 401]
    assert {talk.status for talk in talks} <= {200, 401}
    assert {error_of(stream) for stream in streams} == {"key_revoked"}
    assert not any(stream.is_whole for stream in streams)
    verdict = await asyncio.to_thread(house.judge, [*talks, *streams], allowed=(200, 401))
    assert not verdict.faults, verdict.faults[:10]
    rows = {row["trace_id"]: row for row in house.rows()}
    for stream in streams:
        row = rows[stream.trace_id]
        assert row["outcome"] == "cut"
        assert row["output_tokens"] >= len(stream.token_times)
    return accepted, cut


@contextmanager
def no_fault() -> Iterator[None]:
    yield


@contextmanager
def lost_notice(house: House) -> Iterator[None]:
    """Cut the connection before Redis is told of the key, both times that it is tried."""
    cuts = [house.redis_proxy.cut_at(NOTICE_OF_KEY, is_forwarded=False) for _ in range(2)]
    try:
        yield
        assert all(cut.wait(2) for cut in cuts), "the notice was not lost"
    finally:
        house.redis_proxy.heal()


@contextmanager
def deaf_workers(house: House) -> Iterator[None]:
    """Cut whoever listens to the channel, again and again, so that nobody hears anything."""
    has_ended = threading.Event()
    killed = 0

    def kill_on() -> None:
        nonlocal killed
        while not has_ended.wait(0.005):
            killed += int(house.redis.cli("CLIENT", "KILL", "TYPE", "pubsub"))

    killer = threading.Thread(target=kill_on, daemon=True)
    killer.start()
    try:
        house.wait_for(lambda: killed >= house.fleet.workers)
        yield
    finally:
        has_ended.set()
        killer.join()


@pytest.mark.cell(29, "AS")
async def test_a_revoked_key_stops_within_two_seconds_of_the_message(
    house: House, figures: Callable[..., None]
) -> None:
    found = await revoke_under_load(house, no_fault, TOLD_SECONDS)
    accepted, cut = await check_revoked(house, found, TOLD_SECONDS)
    figures(revocation_seconds=accepted, revoked_stream_cut_seconds=cut)


@pytest.mark.slow_fault
@pytest.mark.cell(29, "AS")
@pytest.mark.parametrize("fault", [lost_notice, deaf_workers])
async def test_a_revoked_key_stops_within_fifteen_seconds_without_the_message(
    house: House, fault: Callable[[House], Any], figures: Callable[..., None]
) -> None:
    found = await revoke_under_load(house, lambda: fault(house), UNTOLD_SECONDS)
    accepted, cut = await check_revoked(house, found, UNTOLD_SECONDS)
    figures(revocation_without_message_seconds=accepted, revoked_stream_cut_without_message_seconds=cut)


@pytest.mark.slow_fault
@pytest.mark.cell(29, "SE")
async def test_a_budget_that_is_cut_and_a_price_that_changes_leave_a_running_stream_as_it_began(house: House) -> None:
    key_id, key = await asyncio.to_thread(house.fleet.new_key, AMPLE)
    before = [await asyncio.to_thread(house.ask, key) for _ in range(4)]
    await asyncio.to_thread(house.judge, before, is_whole=True)
    spent = house.spent_nanos(key)
    stream = house.conversation(PRICED)
    task = asyncio.create_task(house.talk(stream, key))
    await house.up.until(lambda truth: any(a.is_held for a in truth.by_marker(stream.marker)))
    await asyncio.to_thread(house.fleet.set_price, "fake", PRICED, "3", "8")
    limits = {"scope": "key", "scope_id": key_id}
    began = time.time()
    await asyncio.to_thread(
        house.fleet.admin, "PUT", "/admin/limits", {**limits, "limits": f"spend {spent / 1e9:.9f} USD total"}
    )
    refused = [house.conversation(max_tokens=16) for _ in range(8)]
    await asyncio.sleep(max(0.0, began + TOLD_SECONDS - time.time()))
    await asyncio.gather(*[house.talk(talk, key) for talk in refused])
    assert {(talk.status, error_of(talk)) for talk in refused} == {(429, "insufficient_quota")}
    house.up.release()
    await task
    verdict = await asyncio.to_thread(house.judge, [stream, *refused], allowed=(200, 429))
    assert not verdict.faults, verdict.faults
    assert stream.is_whole
    old = next(row for row in house.rows() if row["trace_id"] == stream.trace_id)
    assert (old["outcome"], old["exactness"]) == ("completed", "reported")
    # What is asked from now on has the new price.
    await asyncio.to_thread(house.fleet.admin, "PUT", "/admin/limits", {**limits, "limits": AMPLE})
    await asyncio.sleep(TOLD_SECONDS)
    house.up.open_gates()
    later = await asyncio.to_thread(house.ask, key, PRICED)
    assert later.is_whole, later.arrivals
    (row,) = await asyncio.to_thread(
        house.wait_for, lambda: [row for row in house.rows() if row["trace_id"] == later.trace_id]
    )
    assert row["price_id"] != old["price_id"]
    assert row["charge_nanos"] == row["input_tokens"] * 3_000 + row["output_tokens"] * 8_000
    await asyncio.to_thread(house.wait_at_rest, key)

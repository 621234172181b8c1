"""The link to Redis, over real servers: batches, order, cancellation, the breaker, and every way to be away."""

import asyncio
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from fakes.link_bench import BROKEN, ECHO, PUSH, PUSH_TOO, QUICK, linked, until
from fakes.servers import RedisServer
from meterhouse.limits.link import CommandRefused, LinkDown, LinkPolicy, RedisLink
from meterhouse.limits.wire import Item, pack


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("link") / "redis") as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.flush()
    return shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may break."""
    options = {"enable-protected-configs": "yes", "enable-debug-command": "yes"}
    with RedisServer(tmp_path / "redis", options=options) as server:
        yield server


# --- batches


async def test_calls_of_one_tick_leave_four_at_a_time_and_get_their_own_answers(server: RedisServer) -> None:
    async with linked(server.url) as (link, _):
        await link.call(ECHO, ["{o}"], b"known from here on")
        before = link.figures.batches
        answers = await asyncio.gather(*[link.call(ECHO, [f"{{o{i}}}"], b"%d" % i) for i in range(300)])
        assert answers == [[b"{o%d}" % i, b"%d" % i] for i in range(300)]
        assert link.figures.batches - before == 75
        assert await link.command("GET", "none") is None


async def test_a_batch_has_a_bound_and_the_rest_follows_in_order(server: RedisServer) -> None:
    policy = LinkPolicy(timeout_seconds=10, connect_timeout_seconds=10, most_unsent=100, most_in_batch=7)
    async with linked(server.url, policy) as (link, _):
        before = link.figures.batches
        assert await asyncio.gather(*[link.command("RPUSH", "l", i) for i in range(50)]) == list(range(1, 51))
        assert link.figures.batches - before == 8
        assert server.cli("LRANGE", "l", 0, -1) == [str(i) for i in range(50)]


async def test_calls_are_executed_in_the_order_in_which_they_were_made(server: RedisServer) -> None:
    async with linked(server.url) as (link, _):
        await link.call(PUSH, ["{o}"], b"0")
        await link.call(PUSH_TOO, ["{o}"], b"0")
        waiting = []
        for i in range(1, 200):
            waiting += [link.call(PUSH, ["{o}"], b"%d" % i), link.call(PUSH_TOO, ["{o}"], b"%d" % i)]
            if i % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    expected = [word for i in range(200) for word in (str(i), f"too {i}")]
    assert server.cli("LRANGE", "{o}", 0, -1) == expected


@pytest.mark.cell(37, "R")
async def test_scripts_may_be_flushed_at_any_time(server: RedisServer) -> None:
    async with linked(server.url) as (link, _):
        flushing = asyncio.create_task(_flush_scripts(server, times=60))
        count = 0
        while not flushing.done():
            batch = [link.call(ECHO, [f"{{{i}}}"], b"%d" % i) for i in range(20)]
            assert await asyncio.gather(*batch) == [[b"{%d}" % i, b"%d" % i] for i in range(20)]
            count += 20
        await flushing
        assert count
        assert (link.figures.failures, link.figures.downs) == (0, 0)
        assert link.figures.repeats > 1


async def _flush_scripts(server: RedisServer, times: int) -> None:
    for _ in range(times):
        await asyncio.to_thread(server.cli, "SCRIPT", "FLUSH")


@pytest.mark.cell(38, "R")
async def test_a_cancelled_caller_never_leaves_its_answer_to_another(server: RedisServer) -> None:
    chance = random.Random(7)

    async def ask(link: RedisLink, number: int) -> None:
        assert await link.call(ECHO, ["{o}"], b"canary %d" % number) == [b"{o}", b"canary %d" % number]

    async with linked(server.url) as (link, _):
        for start in range(0, 10_000, 500):
            tasks = [asyncio.create_task(ask(link, start + i)) for i in range(500)]
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            for task in chance.sample(tasks, 250):
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [r for r in results if r is not None and not isinstance(r, asyncio.CancelledError)]
        assert await link.call(ECHO, ["{o}"], b"last") == [b"{o}", b"last"]
        assert link.figures.downs == 0


async def test_a_script_that_fails_is_the_callers_matter_alone(server: RedisServer) -> None:
    async with linked(server.url) as (link, _):
        good, bad = link.call(ECHO, ["{o}"], b"1"), link.call(BROKEN, ["{o}"], b"1")
        assert await good == [b"{o}", b"1"]
        with pytest.raises(CommandRefused, match="Wrong number of args"):
            await bad
        with pytest.raises(CommandRefused, match="unknown command"):
            await link.command("NONSENSE")
        assert link.is_up


# --- going away and coming back


@pytest.mark.cell(6, "R")
async def test_a_server_that_hangs_is_given_up_after_the_timeout_and_found_again(own: RedisServer) -> None:
    async with linked(own.url, QUICK) as (link, log):
        ups: list[str] = []
        downs: list[str] = []
        link.on_up.append(lambda: _note(ups, "up"))
        link.on_down.append(lambda: downs.append("down"))
        own.pause()
        begun = time.monotonic()
        waiting = [link.call(ECHO, ["{o}"], b"%d" % i) for i in range(10)]
        for future in waiting:
            with pytest.raises(LinkDown, match="no answer within 100 ms"):
                await future
        assert 0.09 < time.monotonic() - begun < 1
        assert (link.is_up, downs, link.figures.downs) == (False, ["down"], 1)
        assert link.down_since is not None
        late = link.call(ECHO, ["{o}"], b"late")
        assert late.done(), "while the breaker is open nothing is waited for"
        assert isinstance(late.exception(), LinkDown)
        own.resume()
        await until(lambda: bool(ups))
        assert await link.call(ECHO, ["{o}"], b"again") == [b"{o}", b"again"]
        assert (link.is_up, link.down_since) == (True, None)
        assert [name for name, _ in log.lines] == ["meter.returned", "meter.lost", "meter.returned"]


async def _note(notes: list[str], word: str) -> None:
    notes.append(word)


@pytest.mark.cell(5, "R")
async def test_a_server_that_is_killed_and_restarted_has_another_run_id(own: RedisServer) -> None:
    async with linked(own.url) as (link, _):
        first = link.run_id
        assert first == own.cli("INFO", "server")["run_id"]
        own.kill()
        with pytest.raises(LinkDown):
            await link.call(ECHO, ["{o}"], b"1")
        assert not link.is_up
        own.start()
        await until(lambda: link.is_up)
        assert link.run_id == own.cli("INFO", "server")["run_id"] != first
        assert await link.call(ECHO, ["{o}"], b"2") == [b"{o}", b"2"]


async def test_a_link_opens_without_a_server_and_finds_it_later(own: RedisServer) -> None:
    own.stop()
    async with linked(own.url) as (link, _):
        assert (link.is_up, link.run_id) == (False, None)
        assert link.call(ECHO, ["{o}"], b"1").done()
        own.start()
        await until(lambda: link.is_up)
        assert await link.call(ECHO, ["{o}"], b"2") == [b"{o}", b"2"]


async def test_on_return_callbacks_run_in_order_and_send_before_everybody_else(own: RedisServer) -> None:
    order: list[str] = []

    async def settle() -> None:
        order.append("first begins")
        await asyncio.gather(*[link.command("RPUSH", "l", "settlement") for _ in range(5)])
        order.append("first ends")

    async def fail() -> None:
        raise ZeroDivisionError

    async def register() -> None:
        order.append("last")

    async def hammer() -> None:
        while not order:
            future = link.command("RPUSH", "l", "request")
            if not future.done():
                await future
            await asyncio.sleep(0)

    async with linked(own.url) as (link, log):
        own.kill()
        await until(lambda: not link.is_up)
        link.on_up += [settle, fail, register]
        hammering = asyncio.create_task(hammer())
        own.start()
        await until(lambda: "last" in order)
        await hammering
        assert order == ["first begins", "first ends", "last"]
        assert [name for name, _ in log.lines if name == "task.failed"] == ["task.failed"]
    assert own.cli("LRANGE", "l", 0, 4) == ["settlement"] * 5


async def test_a_restart_that_no_call_noticed_is_announced_too(own: RedisServer) -> None:
    ups: list[str] = []
    async with linked(own.url) as (link, _):
        first = link.run_id
        link.on_up.append(lambda: _note(ups, "up"))
        # While the loop stands still: the next attempt to connect succeeds, and no breaker ever opened.
        own.restart()
        await until(lambda: link.run_id != first and bool(ups))
        assert await link.command("PING") == b"PONG"
        assert (link.figures.downs, link.figures.failures) == (0, 0)


async def test_an_idle_connection_that_the_server_closed_costs_no_call(server: RedisServer) -> None:
    async with linked(server.url) as (link, _):
        for number in range(20):
            future = link.call(ECHO, ["{o}"], b"%d" % number)
            server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await future == [b"{o}", b"%d" % number]
        assert (link.figures.failures, link.figures.downs) == (0, 0)
        assert link.figures.repeats >= 20


async def test_a_call_that_makes_the_server_close_the_connection_is_repeated_only_once(own: RedisServer) -> None:
    own.cli("CONFIG", "SET", "client-output-buffer-limit", "normal 65536 0 0")
    async with linked(own.url) as (link, _):
        with pytest.raises(LinkDown, match=r"closed by the server|connection lost"):
            await link.command("ECHO", b"x" * 8_000_000)
        assert link.figures.repeats == 1
        assert await link.command("PING") == b"PONG"


async def test_more_waiting_calls_than_the_bound_fail_at_once_and_the_others_do_not(own: RedisServer) -> None:
    async with linked(own.url, LinkPolicy(timeout_seconds=10, connect_timeout_seconds=10, most_waiting=50)) as (
        link,
        _,
    ):
        own.pause()
        waiting = [link.command("ECHO", i) for i in range(60)]
        assert [future.done() for future in waiting] == [False] * 50 + [True] * 10
        own.resume()
        assert await asyncio.gather(*waiting[:50]) == [b"%d" % i for i in range(50)]
        for future in waiting[50:]:
            with pytest.raises(LinkDown, match="already wait"):
                await future
        assert link.is_up


async def test_closing_fails_what_waits(own: RedisServer) -> None:
    async with linked(own.url) as (link, _):
        own.pause()
        future = link.command("PING")
        await asyncio.sleep(0)
        await link.close()
        with pytest.raises(LinkDown, match="closed"):
            await future
        assert link.command("PING").done()
        own.resume()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_that_was_busy_does_not_take_the_server_for_dead(
    server: RedisServer, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def stall() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = socket.socketpair()
        # In a callback of the poll that brings other sockets: uvloop looks at its timers before it polls again.
        loop.add_reader(reader, lambda: (reader.recv(1), time.sleep(0.4)))
        async with linked(server.url, QUICK) as (link, _):
            for number in range(3):
                writer.send(b"x")
                assert await link.command("ECHO", number) == b"%d" % number
            assert link.figures.downs == 0
        loop.remove_reader(reader)
        reader.close()
        writer.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(stall())


@pytest.mark.cell(3, "R")
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_process_that_hardly_runs_gives_the_server_as_many_looks_as_ever(
    own: RedisServer, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """As on a machine without a free processor, where the server is slow for the same reason."""
    policy = LinkPolicy(timeout_seconds=0.1, connect_timeout_seconds=0.1, probe_seconds=0.02)

    async def hardly_run() -> None:
        async def stand_still() -> None:
            while True:
                time.sleep(0.1)  # noqa: ASYNC251 - the loop stands still
                await asyncio.sleep(0.001)

        standing = asyncio.create_task(stand_still())
        await asyncio.sleep(0)
        async with linked(own.url, policy) as (link, _):
            slow = link.command("DEBUG", "SLEEP", "0.3")
            assert await link.command("PING") == b"PONG"
            assert await slow == b"OK"
            assert (link.figures.downs, link.figures.failures) == (0, 0)
            own.pause()
            with pytest.raises(LinkDown, match="no answer within 100 ms"):
                await link.command("PING")
            own.resume()
            await until(lambda: link.is_up)
        standing.cancel()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(hardly_run())


def test_a_command_that_waits_shows_nothing_of_what_it_says() -> None:
    assert "hunter2" not in repr(Item(pack(("AUTH", "meterhouse", "hunter2")), None))

"""What the link makes of a Redis that refuses: its health, or the way in."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis

from fakes.journals import EventLog
from fakes.link_bench import ECHO, PATIENT, linked, until
from fakes.servers import RedisServer
from meterhouse.limits.link import LinkDown, RedisLink


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may break."""
    with RedisServer(tmp_path / "redis", options={"enable-protected-configs": "yes"}) as server:
        yield server


# --- errors that mean away


async def _become_replica(server: RedisServer) -> None:
    server.cli("REPLICAOF", "127.0.0.1", 1)


async def _be_replica_without_data(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.cli("REPLICAOF", "127.0.0.1", 1)


async def _be_full(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "maxmemory", 1)


async def _have_empty_memory(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "maxmemory", 0)


async def _lack_replicas(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "min-replicas-to-write", 1)


async def _fail_to_save(server: RedisServer) -> None:
    lost = server.folder / "lost"
    lost.mkdir()
    server.cli("CONFIG", "SET", "dir", str(lost), "save", "3600 1")
    shutil.rmtree(lost)
    server.cli("BGSAVE")
    await until(lambda: server.cli("INFO", "persistence")["rdb_last_bgsave_status"] == "err")


async def _save_again(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "save", "")


async def _be_busy(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "busy-reply-threshold", 1)
    with redis.Redis(port=server.port, socket_timeout=0.1, retry=None) as client, pytest.raises(redis.TimeoutError):
        client.eval("while true do end", 0)


async def _kill_script(server: RedisServer) -> None:
    server.cli("SCRIPT", "KILL")


async def _forbid(server: RedisServer) -> None:
    server.cli("ACL", "SETUSER", "default", "-rpush", "-set")


async def _allow(server: RedisServer) -> None:
    server.cli("ACL", "SETUSER", "default", "+@all")


async def _be_master(server: RedisServer) -> None:
    server.cli("REPLICAOF", "NO", "ONE")


async def _have_replicas(server: RedisServer) -> None:
    server.cli("CONFIG", "SET", "min-replicas-to-write", 0)


Change = Callable[[RedisServer], Awaitable[None]]


@pytest.mark.cell(8, "R")
@pytest.mark.parametrize(
    ("word", "breaks", "heals"),
    [
        ("READONLY", _become_replica, _be_master),
        ("MASTERDOWN", _be_replica_without_data, _be_master),
        ("OOM", _be_full, _have_empty_memory),
        ("NOREPLICAS", _lack_replicas, _have_replicas),
        ("MISCONF", _fail_to_save, _save_again),
        ("BUSY", _be_busy, _kill_script),
        ("NOPERM", _forbid, _allow),
    ],
)
async def test_a_server_that_refuses_to_work_is_away(
    own: RedisServer, word: str, breaks: Change, heals: Change
) -> None:
    async with linked(own.url) as (link, log):
        await link.command("RPUSH", "l", "known")
        await breaks(own)
        with pytest.raises(LinkDown, match=word):
            await (link.command("LLEN", "l") if word == "MASTERDOWN" else link.command("RPUSH", "l", "refused"))
        assert not link.is_up
        assert link.command("RPUSH", "l", "refused").done()
        lost = link.figures.downs
        # Probing writes, so that the breaker does not close on a server that answers PING and nothing else.
        await asyncio.sleep(10 * PATIENT.probe_seconds)
        assert (link.is_up, link.figures.downs, lost) == (False, 1, 1)
        await heals(own)
        await until(lambda: link.is_up)
        await link.command("RPUSH", "l", "after")
        assert next(fields for name, fields in log.lines if name == "meter.lost")["reason"].startswith(word)


@pytest.mark.cell(8, "R")
async def test_a_server_that_is_loading_is_away(own: RedisServer) -> None:
    own.cli("CONFIG", "SET", "save", "")
    for number in range(400):
        own.cli("SET", f"k{number}", "x" * 1_000)
    own.cli("SAVE")
    async with linked(own.url) as (link, _):
        own.kill()
        await until(lambda: not link.is_up)
    loading = RedisServer(
        own.folder, options={"key-load-delay": "2500", "loading-process-events-interval-bytes": "1024"}
    )
    loading_thread = asyncio.create_task(asyncio.to_thread(loading.start))
    try:
        seen: list[str] = []
        async with linked(loading.url) as (link, log):
            await until(lambda: link.is_up)
            await loading_thread
            seen = [str(fields.get("reason")) for _, fields in log.lines]
            assert await link.command("PING") == b"PONG"
        assert any("LOADING" in reason or "Connect call failed" in reason for reason in seen)
    finally:
        await loading_thread
        loading.kill()


# --- signing in


async def test_user_password_and_database_come_from_the_address(own: RedisServer) -> None:
    own.cli("ACL", "SETUSER", "meter", "on", ">s3cr&t", "+@all", "~*")
    url = own.url.replace("redis://", "redis://meter:s3cr%26t@") + "/3"
    async with linked(url) as (link, _):
        await link.command("SET", "k", "v")
        assert await link.command("ACL", "WHOAMI") == b"meter"
    assert own.cli("GET", "k") is None
    async with linked(own.url + "?db=3") as (link, _):
        assert await link.command("GET", "k") == b"v"


async def test_a_wrong_password_comes_up_degraded_and_says_so_without_the_password(own: RedisServer) -> None:
    url = own.url.replace("redis://", "redis://:hunter2@")
    own.cli("CONFIG", "SET", "requirepass", "other")
    async with linked(url) as (link, log):
        assert not link.is_up
        assert "WRONGPASS" in str(log.lines)
        assert "hunter2" not in str(log.lines)
    async with linked(own.url) as (link, log):
        assert not link.is_up
        assert "NOAUTH" in str(log.lines)


async def test_tls_is_checked_against_the_given_authority(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", tls=True) as server:
        async with linked(server.url) as (link, _):
            assert await link.call(ECHO, ["{o}"], b"x" * 100_000) == [b"{o}", b"x" * 100_000]
        async with linked(f"rediss://127.0.0.1:{server.port}") as (link, log):
            assert not link.is_up
            assert "CERTIFICATE_VERIFY_FAILED" in str(log.lines)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://:hunter2@h", "scheme"),
        ("redis://:hunter2@h?socket_timeout=3", "socket_timeout"),
        ("redis://:hunter2@h?ssl_ca_certs=x", "rediss"),
        ("redis+cluster://:hunter2@h?db=x", "db"),
    ],
)
async def test_an_address_that_cannot_be_used_is_refused_without_its_password(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        RedisLink(url, PATIENT, EventLog())
    assert "hunter2" not in str(caught.value)

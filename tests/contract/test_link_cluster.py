"""The link to a Redis Cluster, over three real masters: routing, redirects, scripts per node, one node away."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.link_bench import ECHO, PATIENT, PUSH, QUICK, Script, linked, until
from fakes.servers import RedisCluster, RedisServer
from meterhouse.limits.link import LinkDown

NAMES = [f"{{org_{number}}}" for number in range(30)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster"), options={"cluster-require-full-coverage": "no"}) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: RedisCluster) -> RedisCluster:
    shared.flush()
    return shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster that a test may break; what is left of it serves on."""
    with RedisCluster(tmp_path / "cluster", options={"cluster-require-full-coverage": "no"}) as cluster:
        yield cluster


async def test_calls_reach_the_server_of_their_key_and_come_back_in_place(cluster: RedisCluster) -> None:
    async with linked(cluster.url) as (link, _):
        assert (link.is_up, link.run_id) == (True, None)
        answers = await asyncio.gather(*[link.call(ECHO, [name], name.encode()) for name in NAMES])
        assert answers == [[name.encode(), name.encode()] for name in NAMES]
        await asyncio.gather(*[link.command("SET", name, name) for name in NAMES])
        assert {cluster.node_of(name).port for name in NAMES} == {node.port for node in cluster.nodes}
        assert all(cluster.node_of(name).cli("GET", name) == name for name in NAMES)
        assert await link.command("PING") == b"PONG"


@pytest.mark.cell(37, "R")
async def test_each_node_may_forget_its_scripts(cluster: RedisCluster) -> None:
    async with linked(cluster.url) as (link, _):
        for node in [*cluster.nodes, *cluster.nodes]:
            node.cli("SCRIPT", "FLUSH")
            answers = await asyncio.gather(*[link.call(ECHO, [name], b"x") for name in NAMES])
            assert answers == [[name.encode(), b"x"] for name in NAMES]
        assert link.figures.failures == 0


@pytest.mark.cell(5, "R")
async def test_a_dead_node_takes_down_only_its_own_keys(own: RedisCluster) -> None:
    async with linked(own.url) as (link, _):
        dead = own.nodes[1]
        dead.kill()
        await until(lambda: not link.is_up)
        for name in NAMES:
            future = link.call(ECHO, [name], b"x")
            assert link.is_up_for(name) == (own.node_of(name) is not dead)
            if own.node_of(name) is dead:
                assert future.done()
                with pytest.raises(LinkDown):
                    await future
            else:
                assert await future == [name.encode(), b"x"]
        dead.start()
        await until(lambda: link.is_up)
        answers = await asyncio.gather(*[link.call(ECHO, [name], b"x") for name in NAMES])
        assert answers == [[name.encode(), b"x"] for name in NAMES]


@pytest.mark.cell(6, "R")
async def test_a_node_that_hangs_does_not_hold_up_the_others(own: RedisCluster) -> None:
    async with linked(own.url, QUICK) as (link, _):
        hung = own.nodes[2]
        theirs = next(name for name in NAMES if own.node_of(name) is hung)
        others = next(name for name in NAMES if own.node_of(name) is not hung)
        await asyncio.gather(link.call(ECHO, [theirs], b"x"), link.call(ECHO, [others], b"x"))
        hung.pause()
        late = link.call(ECHO, [theirs], b"x")
        assert await link.call(ECHO, [others], b"y") == [others.encode(), b"y"]
        assert not late.done()
        with pytest.raises(LinkDown, match="no answer within 100 ms"):
            await late
        assert await link.call(ECHO, [others], b"z") == [others.encode(), b"z"]
        hung.resume()
        await until(lambda: link.is_up_for(theirs))


async def test_a_slot_that_is_being_moved_and_was_moved_is_followed(own: RedisCluster) -> None:
    name = NAMES[0]
    source = own.node_of(name)
    target = next(node for node in own.nodes if node is not source)
    slot = source.cli("CLUSTER", "KEYSLOT", name)
    async with linked(own.url) as (link, _):
        assert await link.call(PUSH, [name], b"1") == 1
        target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", source.cli("CLUSTER", "MYID"))
        source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", target.cli("CLUSTER", "MYID"))
        source.cli("MIGRATE", "127.0.0.1", target.port, name, 0, 5_000)
        # ASK: the key has left, the slot has not.
        assert await asyncio.gather(*[link.call(PUSH, [name], b"2") for _ in range(5)]) == [2, 3, 4, 5, 6]
        for node in own.nodes:
            node.cli("CLUSTER", "SETSLOT", slot, "NODE", target.cli("CLUSTER", "MYID"))
        # MOVED: the map that the link has is of before.
        assert await link.call(PUSH, [name], b"3") == 7
        assert await link.call(PUSH, [name], b"4") == 8
        assert link.figures.failures == 0
    assert target.cli("LLEN", name) == 8


@pytest.mark.parametrize("where", ["", "1 2", "99999 127.0.0.1:1", "1 127.0.0.1:x"])
@pytest.mark.parametrize("word", ["MOVED", "ASK"])
async def test_a_redirect_to_nowhere_is_told_to_who_asked(cluster: RedisCluster, word: str, where: str) -> None:
    lost = Script("lost", f"return redis.error_reply('{word} {where}')")
    async with linked(cluster.url) as (link, _):
        refused = link.call(lost, [NAMES[0]], b"1")
        assert await link.call(ECHO, [NAMES[0]], b"x") == [NAMES[0].encode(), b"x"]
        with pytest.raises(LinkDown, match="redirects to nowhere"):
            async with asyncio.timeout(5):
                await refused
        assert link.is_up


async def test_a_cluster_is_found_by_a_seed_that_comes_up_late(own: RedisCluster) -> None:
    own.nodes[0].kill()
    async with linked(own.url) as (link, _):
        assert not link.is_up
        assert link.call(ECHO, [NAMES[0]], b"x").done()
        own.nodes[0].start()
        await until(lambda: link.is_up)
        answers = await asyncio.gather(*[link.call(ECHO, [name], b"x") for name in NAMES])
        assert answers == [[name.encode(), b"x"] for name in NAMES]


async def test_a_replica_that_was_promoted_takes_over(own: RedisCluster, tmp_path: Path) -> None:
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "500", "cluster-require-full-coverage": "no"}
    with RedisServer(tmp_path / "replica", options=options) as replica:
        lost = own.nodes[1]
        name = next(name for name in NAMES if own.node_of(name) is lost)
        replica.cli("CLUSTER", "MEET", "127.0.0.1", lost.port)
        async with linked(own.url, PATIENT) as (link, _):
            identity = lost.cli("CLUSTER", "MYID")
            await until(lambda: identity in replica.cli("CLUSTER", "NODES"))
            replica.cli("CLUSTER", "REPLICATE", identity)
            await until(lambda: replica.cli("INFO", "replication")["master_link_status"] == "up")
            assert await link.call(PUSH, [name], b"1") == 1
            await until(lambda: replica.cli("CLUSTER", "COUNTKEYSINSLOT", lost.cli("CLUSTER", "KEYSLOT", name)) == 1)
            ups: list[bool] = []
            link.on_up.append(lambda: _note(ups))
            lost.kill()
            replica_takes_over = asyncio.to_thread(replica.cli, "CLUSTER", "FAILOVER", "TAKEOVER")
            await replica_takes_over
            await until(lambda: bool(ups) and link.is_up_for(name))
            assert await link.call(PUSH, [name], b"2") == 2


async def _note(ups: list[bool]) -> None:
    ups.append(True)


async def test_a_single_server_named_as_a_cluster_is_away_and_the_log_says_why(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "single") as server:
        async with linked(server.url.replace("redis://", "redis+cluster://"), QUICK) as (link, log):
            await until(lambda: "cluster support disabled" in str(log.lines))
            assert not link.is_up
            assert link.call(ECHO, ["{o}"], b"x").done()


async def test_a_cluster_named_as_a_single_server_is_away_and_the_log_says_why(cluster: RedisCluster) -> None:
    elsewhere = next(node for node in cluster.nodes if node is not cluster.node_of("mh:probe"))
    async with linked(elsewhere.url) as (link, log):
        assert not link.is_up
        assert "MOVED" in str(log.lines)
    own = cluster.node_of("mh:probe")
    other = next(name for name in NAMES if cluster.node_of(name) is not own)
    async with linked(own.url) as (link, _):
        with pytest.raises(LinkDown, match=r"a cluster needs redis\+cluster"):
            await link.call(ECHO, [other], b"x")

"""The way to Redis: one server or a cluster, asked in batches, given up on quickly, and found again by itself.

The only module of ``limits`` that imports redis-py: its address syntax, its TLS options, and its hash slots. Commands
do not go through its client, because a lean connection of our own costs a fraction of it on the path of every request
(speed.md). In a cluster every master has a lane with a breaker of its own, so a dead one takes down only the keys that
it holds; MOVED and ASK are followed, and the map of slots is read again when they occur and while a lane is away.
Not here: what the scripts mean, and pub/sub.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from redis.asyncio.connection import SSLConnection, parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from meterhouse.limits.lane import Lane
from meterhouse.limits.wire import (
    Argument,
    CommandRefused,
    Item,
    LinkDown,
    LinkFigures,
    LinkPolicy,
    LinkScript,
    Server,
    Waiter,
    pack,
    pack_head,
)
from meterhouse.telemetry.logs import Event, Log

__all__ = ["CommandRefused", "LinkDown", "LinkFigures", "LinkPolicy", "LinkScript", "RedisLink"]

MOST_REDIRECTS = 4
PROBE_KEY = "mh:probe"
MOST_HEADS = 20_000
"""Beginnings of commands that are kept, about 300 bytes each; of more, all are made anew."""
Address = tuple[str, int]
_REDIRECTION = re.compile(r"(MOVED|ASK) ([0-9]{1,5}) (.*):([0-9]{1,5})", re.ASCII)
"""Which way, the slot, and where it is; without a host, where it was said (Redis Cluster specification)."""


class RedisLink:
    """Sends scripts and commands. ``open`` first, ``close`` at the end; both on the loop that calls come from.

    A command may be executed twice (an idle connection that the server closes is retried), and one that ended as
    ``LinkDown`` may have been executed: whatever is sent must be idempotent.
    """

    def __init__(self, url: str, policy: LinkPolicy, log: Log) -> None:
        scheme, _, rest = url.partition("://")
        self._is_cluster = scheme.endswith("+cluster")
        self._seed = _parse_server(f"{scheme.removesuffix('+cluster')}://{rest}")
        self._policy = policy
        self._log = log
        self.figures = LinkFigures()
        self.on_up: list[Callable[[], Awaitable[None]]] = []
        """Awaited in their order, in the link's own task, when a server is reached at first, again, or as another run.
        After an absence, what the first of them sends before it waits for anything goes before all other calls."""
        self.on_down: list[Callable[[], None]] = []
        """Called when a breaker opens."""
        self.down_since: float | None = None
        """``loop.time()`` when the first server that is away now went away; None while all are there."""
        self._heads: dict[tuple[str, tuple[str, ...]], bytes] = {}
        self._lanes: dict[Address, Lane] = {}
        self._slots: list[Lane | None] = [None] * (REDIS_CLUSTER_HASH_SLOTS if self._is_cluster else 0)
        self._only: Lane | None = None
        self._wants_map = asyncio.Event()
        self._has_map = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._announcing = asyncio.Lock()
        self._announcements = 0
        self._is_closed = False

    @property
    def is_up(self) -> bool:
        """Whether every server that is needed can be asked."""
        if self._is_cluster:
            return self._has_map.is_set() and all(lane.is_up for lane in self._lanes.values())
        return self._only is not None and self._only.is_up

    @property
    def run_id(self) -> str | None:
        """The run id of a single server, once it was reached; None in a cluster."""
        return None if self._only is None else self._only.run_id

    def is_up_for(self, key: str) -> bool:
        """Whether the server that holds a key can be asked."""
        lane = self._lane_of(key)
        return lane is not None and lane.is_up

    async def open(self) -> None:
        """Start; waits for the first attempt to connect, and does not raise when that fails."""
        seed = self._lane_at((self._seed.host, self._seed.port))
        if self._is_cluster:
            self._begin(self._keep_map())
        else:
            self._only = seed
        seed.start()
        await seed.tried.wait()
        if self._is_cluster and seed.is_up:
            try:
                async with asyncio.timeout(self._policy.timeout_seconds):
                    await self._has_map.wait()
                    await asyncio.gather(*[lane.tried.wait() for lane in self._lanes.values()])
            except TimeoutError:
                return

    async def close(self) -> None:
        """Close all connections; what waits fails as ``LinkDown``."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in list(self._lanes.values()):
            await lane.close()

    def call(self, script: LinkScript, keys: Sequence[str], payload: bytes) -> "asyncio.Future[Any]":
        """Run a script with one argument in this tick's batch; all keys must be of one hash tag, and there is one.

        The future raises:
            LinkDown: The server cannot be asked now.
            CommandRefused: The script failed.
        """
        future = asyncio.get_running_loop().create_future()
        self.post(script, tuple(keys), payload, future)
        self.push_soon()
        return future

    def post(self, script: LinkScript, keys: tuple[str, ...], payload: bytes, waiter: Waiter) -> None:
        """Run a script as ``call`` does, in the batch of the next ``push``: whoever posts sees to one in this tick."""
        head = self._heads.get((script.sha, keys)) or self._make_head(script, keys)
        item = Item(b"%b%d\r\n%b\r\n" % (head, len(payload), payload), waiter, script)
        if self._only is None:
            self._post(item, keys[0])
        else:
            self._only.post(item)

    def push(self) -> None:
        """Send what waits, in one write for each server."""
        for lane in self._lanes.values():
            lane.push()

    def push_soon(self) -> None:
        """Send what waits at the end of this tick."""
        for lane in self._lanes.values():
            lane.push_soon()

    def _make_head(self, script: LinkScript, keys: tuple[str, ...]) -> bytes:
        if len(self._heads) >= MOST_HEADS:
            self._heads.clear()
        head = self._heads[script.sha, keys] = pack_head(script, keys)
        return head

    def command(self, *arguments: Argument) -> "asyncio.Future[Any]":
        """Send a command in this tick's batch; its second word is taken for its key. Errors as of ``call``."""
        future = asyncio.get_running_loop().create_future()
        self._post(Item(pack(arguments), future), str(arguments[1]) if len(arguments) > 1 else "")
        self.push_soon()
        return future

    # --- what lanes say

    def came_up(self, lane: Lane) -> None:
        """Close a lane's breaker and run the callbacks, in a task of the link's own."""
        self._begin(self._announce(lane))
        self._wants_map.set()

    def went_down(self, lane: Lane, reason: str) -> None:
        """Note that a lane's breaker opened."""
        if self.down_since is None:
            self.down_since = asyncio.get_running_loop().time()
        self._log.warning(Event.METER_LOST, server=lane.name, reason=reason)
        self._wants_map.set()
        for callback in self.on_down:
            callback()

    def redirect(self, lane: Lane, item: Item, error: str) -> None:
        """Send an item where MOVED or ASK says; it has as much time left as before."""
        item.redirects += 1
        found = _REDIRECTION.fullmatch(error)
        if not self._is_cluster or item.redirects > MOST_REDIRECTS:
            lane.reject(item, f"{lane.name}: {error} (a cluster needs redis+cluster://)")
            return
        if found is None or int(found[2]) >= REDIS_CLUSTER_HASH_SLOTS:
            lane.reject(item, f"{lane.name} redirects to nowhere: {error}")
            return
        word, slot, host, port = found.groups()
        target = self._lane_at((host or lane.server.host, int(port)))
        target.start()
        item.is_asking = word == "ASK"
        item.deadline_seconds += lane.stalled_seconds - target.stalled_seconds
        if word == "MOVED":
            self._slots[int(slot)] = target
            self._wants_map.set()
        target.send_again(item)

    # --- which server

    def _post(self, item: Item, key: str) -> None:
        lane = self._lane_of(key)
        if lane is None:
            self.figures.calls += 1
            self.figures.failures += 1
            assert item.future is not None
            item.future.set_exception(LinkDown("no server of the cluster is known"))
            item.future.exception()
        else:
            lane.post(item)

    def _lane_of(self, key: str) -> Lane | None:
        if not self._is_cluster:
            return self._only
        return self._slots[key_slot(key.encode())]

    def _lane_at(self, address: Address) -> Lane:
        lane = self._lanes.get(address)
        if lane is None:
            seed = self._seed
            server = Server(*address, 0 if self._is_cluster else seed.db, seed.username, seed.password, seed.tls)
            lane = self._lanes[address] = Lane(server, self._policy, self.figures, self)
            lane.is_in_cluster = self._is_cluster
            lane.probe_key = PROBE_KEY
        return lane

    async def _keep_map(self) -> None:
        """Read the map of slots when something hints that it changed, and again and again while a lane is away."""
        while True:
            try:
                async with asyncio.timeout(None if self.is_up else self._policy.probe_seconds):
                    await self._wants_map.wait()
            except TimeoutError:
                pass
            self._wants_map.clear()
            lanes = [lane for lane in self._lanes.values() if lane.is_up]
            random.shuffle(lanes)
            if not lanes:
                self._lane_at((self._seed.host, self._seed.port)).start()
            for lane in lanes:
                if await self._read_map(lane):
                    break
            else:
                await asyncio.sleep(self._policy.probe_seconds)

    async def _read_map(self, lane: Lane) -> bool:
        future = asyncio.get_running_loop().create_future()
        lane.post(Item(pack(("CLUSTER", "SLOTS")), future))
        lane.push_soon()
        try:
            ranges = await future
        except LinkDown:
            return False
        except CommandRefused as error:
            self._log.error(Event.METER_LOST, server=lane.name, reason=str(error))
            return False
        slots: list[Lane | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, master, *_ in ranges:
            host = (master[0] or b"").decode() or lane.server.host
            owner = self._lane_at((host, master[1]))
            slots[first : last + 1] = [owner] * (last + 1 - first)
        self._slots = slots
        await self._keep_masters()
        if all(slot is not None for slot in slots):
            self._has_map.set()
        return True

    async def _keep_masters(self) -> None:
        """Connect to the masters of the map, and drop every other server."""
        masters = {lane for lane in self._slots if lane is not None}
        for address, lane in list(self._lanes.items()):
            if lane not in masters:
                del self._lanes[address]
                await lane.close()
        for lane in masters:
            if self._slots[key_slot(lane.probe_key.encode())] is not lane:
                lane.probe_key = self._find_probe_key(lane)
            lane.start()
        if self.is_up:
            self.down_since = None

    def _find_probe_key(self, lane: Lane) -> str:
        number = 0
        while self._slots[key_slot(f"{PROBE_KEY}:{number}".encode())] is not lane:
            number += 1
        return f"{PROBE_KEY}:{number}"

    # --- coming back

    async def _announce(self, lane: Lane) -> None:
        """Close the breaker and run the callbacks; a returning server waits for one round of them at most."""
        self._log.info(Event.METER_RETURNED, server=lane.name, run=lane.run_id)
        if not self.on_up or self._announcing.locked():
            self._mark_up(lane)
        if self._announcements > 1:
            return
        self._announcements += 1
        try:
            async with self._announcing:
                for callback in list(self.on_up):
                    await self._run(callback, lane)
        finally:
            self._announcements -= 1

    async def _run(self, callback: Callable[[], Awaitable[None]], lane: Lane) -> None:
        task = asyncio.ensure_future(self._mark_up_and_call(callback, lane))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error(Event.TASK_FAILED, task=f"on_up {callback!r}", exc_info=error)

    async def _mark_up_and_call(self, callback: Callable[[], Awaitable[None]], lane: Lane) -> None:
        # One step: nothing is called between the breaker's closing and what the callback sends first.
        self._mark_up(lane)
        await callback()

    def _mark_up(self, lane: Lane) -> None:
        lane.mark_up()
        if self.is_up:
            self.down_since = None

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if self._is_closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _parse_server(url: str) -> Server:
    """Read an address as redis-py writes it; the texts of its errors never hold the address, which has a password."""
    options: dict[str, Any] = dict(parse_url(url))
    is_tls = options.pop("connection_class", None) is SSLConnection
    tls_options = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    known = {name: options.pop(name) for name in ("host", "port", "db", "username", "password") if name in options}
    if options:
        raise ValueError(f"The Redis address has options that are not used here: {', '.join(sorted(options))}.")
    if tls_options and not is_tls:
        raise ValueError("The Redis address has TLS options, but does not begin with rediss:// or rediss+cluster://.")
    tls = SSLConnection(**tls_options).ssl_context.get() if is_tls else None
    return Server(
        known.get("host", "localhost"),
        known.get("port", 6379),
        known.get("db", 0),
        known.get("username"),
        known.get("password"),
        tls,
    )

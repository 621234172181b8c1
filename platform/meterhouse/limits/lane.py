"""One Redis server: its one connection, the batches on it, and its breaker.

Commands that reach a lane in one tick of the event loop are written together, a few at a time, so that Redis works
while this process goes on. Replies are matched to commands by their order alone, in the callbacks of the transport:
no request ever reads from the connection, so a request that is cancelled leaves no reply behind for another.
Invariant: a connection that was late, broke or spoke nonsense is closed and never used again. One connection, because
Redis runs one command at a time anyway: what is written first is done first (a settlement before the reservation that
follows it), and a second connection would only reorder. A batch does not wait for the one before it; a slow script
holds up what comes behind it, at most until its own timeout, which takes all of them to the breaker. Its time is
counted while this loop runs: a process that was stopped, or gets too little of a processor, says nothing about Redis.
Not here: which server a key is on, and what the replies mean.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from meterhouse.limits.patience import patience
from meterhouse.limits.wire import (
    Argument,
    CommandRefused,
    Item,
    LinkDown,
    LinkFigures,
    LinkPolicy,
    Server,
    Wire,
    pack,
)

_ASKING = pack(("ASKING",))
_AWAY = frozenset({"LOADING", "READONLY", "MISCONF", "OOM", "CLUSTERDOWN", "MASTERDOWN", "BUSY", "NOREPLICAS"}) | {
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
}
"""First words of errors that every further call would meet too: the breaker opens."""
_NOT_NOW = frozenset({"TRYAGAIN"})
"""Of keys whose slot is being moved: only this call is refused."""
_MOST_LOADS = 8
"""Scripts may be flushed between their loading and their use, but hardly so often."""
_LOOKS = 5
"""How often the clock is looked at in the time that Redis has: what a look is late by, the loop stood still."""
_GRACE_SECONDS = 0.005
"""What has arrived is read before Redis is given up."""


class LaneOwner(Protocol):
    """What a lane tells of itself."""

    def came_up(self, lane: "Lane") -> None:
        """A connection stands after the server was away, was never reached, or is another run; call ``mark_up``."""
        ...

    def went_down(self, lane: "Lane", reason: str) -> None:
        """The breaker opened."""
        ...

    def redirect(self, lane: "Lane", item: Item, error: str) -> None:
        """MOVED or ASK: the item belongs to another server."""
        ...


class Lane:
    """The commands of this process to one server."""

    def __init__(self, server: Server, policy: LinkPolicy, figures: LinkFigures, owner: LaneOwner) -> None:
        self.server = server
        self.is_up = True
        """Until the first attempt to connect has failed, calls wait for it."""
        self.run_id: str | None = None
        """The server's own id of this run of it."""
        self.probe_key = ""
        """A key that is written when probing, so that a server that only reads is not taken for a healthy one."""
        self.is_in_cluster = False
        self.tried = asyncio.Event()
        """Set when the first attempt to connect has ended, one way or the other."""
        self._policy = policy
        self._figures = figures
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._pending: list[Item] = []
        self._again: deque[Item] = deque()
        # Items that go before the pending ones: they were sent before.
        self.stalled_seconds = 0.0
        """For how long the loop stood still while somebody waited; deadlines are by its time without that."""
        self._deadline_seconds = 0.0
        # Of what came since the last push; 0 while nothing did.
        self._is_flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._look_seconds = 0.0
        self._late: Item | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Connect, unless that was done or is under way; from then on the lane keeps itself connected."""
        if self._is_closed or self._wire is not None:
            return
        if self._keeper is None or self._keeper.done():
            self._keeper = self._loop.create_task(self._keep())

    async def close(self) -> None:
        """Drop the connection; what waits fails."""
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._drop("the link was closed")

    def post(self, item: Item) -> None:
        """Take a command for the next push, which must come in this tick; it fails at once while the server is away."""
        self._figures.calls += 1
        if not self.is_up or self._is_closed:
            self.reject(item, f"{self.name} is away")
            return
        pending, wire = self._pending, self._wire
        waiting = len(pending) + (len(wire.in_flight) if wire is not None else 0)
        if waiting >= self._policy.most_waiting:
            self.reject(item, f"{waiting} commands already wait for {self.name}")
            return
        if not self._deadline_seconds:
            self._deadline_seconds = self._awake_seconds() + self._policy.timeout_seconds
            self._watch()
        item.deadline_seconds = self._deadline_seconds
        pending.append(item)
        if len(pending) >= self._policy.most_unsent:
            self.push()

    @property
    def name(self) -> str:
        """Host and port."""
        return f"{self.server.host}:{self.server.port}"

    def mark_up(self) -> None:
        """Close the breaker, if the connection that was announced still stands."""
        if self._wire is not None:
            self.is_up = True

    # --- sending

    def push_soon(self) -> None:
        """Push at the end of this tick."""
        if not self._is_flush_due and (self._pending or self._again):
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        self.push()

    def push(self) -> None:
        """Write what waits now; without a connection it goes on waiting."""
        self._deadline_seconds = 0.0
        wire = self._wire
        if wire is None:
            return
        pending = self._pending
        if self._again:
            pending[:0] = self._take_again()
        while pending:
            batch = pending[: self._policy.most_in_batch]
            del pending[: self._policy.most_in_batch]
            self._figures.batches += 1
            wire.send(batch)

    def _take_again(self) -> list[Item]:
        """Return what is sent again, each with what must go before it: its script's text, or ASKING."""
        batch: list[Item] = []
        loaded: set[str] = set()
        again, self._again = self._again, deque()
        for item in again:
            if item.loads and item.script is not None and item.script.sha not in loaded:
                loaded.add(item.script.sha)
                batch.append(Item(pack(("SCRIPT", "LOAD", item.script.text)), None))
            if item.is_asking:
                batch.append(Item(_ASKING, None))
            batch.append(item)
        return batch

    def send_again(self, item: Item) -> None:
        """Send a command before those that wait; its deadline stays."""
        if not self.is_up or self._is_closed:
            self.reject(item, f"{self.name} is away")
            return
        self._figures.repeats += 1
        self._again.append(item)
        self._watch()
        self.push_soon()

    # --- failing

    def _on_error(self, item: Item, error: str) -> None:
        word, _, rest = error.partition(" ")
        if word == "NOSCRIPT" and item.script is not None and item.loads < _MOST_LOADS:
            item.loads += 1
            self.send_again(item)
        elif word in {"MOVED", "ASK"}:
            self._owner.redirect(self, item, error)
        elif word in _NOT_NOW:
            self.reject(item, f"{self.name}: {error}")
        elif word in _AWAY or (word == "ERR" and rest.startswith("max number of clients")):
            self.reject(item, f"{self.name}: {error}")
            self._lose(error)
        elif item.future is not None and not item.future.done():
            item.future.set_exception(CommandRefused(error))

    def _on_lost(self, wire: Wire, reason: str) -> None:
        """Send what was under way once more: the server may have closed an idle connection just then."""
        if wire is not self._wire:
            return
        self._wire = None
        for item in wire.in_flight:
            if item.was_repeated:
                self.reject(item, f"{self.name}: {reason}")
            elif item.future is not None and not item.future.done():
                item.was_repeated = True
                self._figures.repeats += 1
                self._again.append(item)
        self.start()

    def _awake_seconds(self) -> float:
        """Return the loop's time without that in which it stood still."""
        now_seconds = self._loop.time()
        if self._timer is not None and now_seconds > self._look_seconds:
            self.stalled_seconds += now_seconds - self._look_seconds
            self._look_seconds = now_seconds
        return now_seconds - self.stalled_seconds

    def _watch(self) -> None:
        """Look at the clock from now on, while somebody waits."""
        if self._timer is None:
            self._look_in(self._policy.timeout_seconds / _LOOKS)

    def _look_in(self, seconds: float) -> None:
        self._look_seconds = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._look_seconds, self._check)

    def _check(self) -> None:
        """Find out whether the oldest command is late."""
        awake_seconds = self._awake_seconds()
        self._timer = None
        oldest = self._find_oldest()
        if oldest is None:
            self._late = None
            return
        left_seconds = oldest.deadline_seconds - awake_seconds
        if left_seconds > 0:
            self._look_in(min(left_seconds, self._policy.timeout_seconds / _LOOKS))
        elif self._late is not oldest:
            self._late = oldest
            self._look_in(_GRACE_SECONDS)
        else:
            self._late = None
            self._lose(f"no answer within {self._policy.timeout_seconds * 1000:.0f} ms")

    def _find_oldest(self) -> Item | None:
        in_flight = self._wire.in_flight if self._wire is not None else ()
        for waiting in (in_flight, self._again, self._pending):
            for item in waiting:
                if item.deadline_seconds:
                    return item
        return None

    def _lose(self, reason: str) -> None:
        """Open the breaker: everything that waits fails, and probing begins."""
        was_up, self.is_up = self.is_up, False
        self._drop(f"{self.name}: {reason}")
        if was_up:
            self._figures.downs += 1
            self._owner.went_down(self, reason)
        self.start()

    def _drop(self, reason: str) -> None:
        wire, self._wire = self._wire, None
        waiting = [*self._again, *self._pending]
        if wire is not None:
            waiting = [*wire.in_flight, *waiting]
            wire.close()
        self._again.clear()
        self._pending.clear()
        for item in waiting:
            self.reject(item, reason)

    def reject(self, item: Item, reason: str) -> None:
        """Fail an item as ``LinkDown``."""
        future = item.future
        if future is not None and not future.done():
            self._figures.failures += 1
            future.set_exception(LinkDown(reason))
            future.exception()  # a caller that has gone is no reason for a line in the log

    # --- connecting

    async def _keep(self) -> None:
        """Connect; while the server is away, again every ``probe_seconds``."""
        while True:
            if not self.is_up:
                await asyncio.sleep(self._policy.probe_seconds)
            failure = await self._connect()
            self.tried.set()
            if failure is None:
                return
            self._lose(failure)

    async def _connect(self) -> str | None:
        """Connect, sign in and probe; returns why it failed."""
        wire = Wire(_raise_to_caller, _fail_sign_in)
        is_kept = False
        try:
            async with patience(self._policy.connect_timeout_seconds):
                server = self.server
                await self._loop.create_connection(lambda: wire, server.host, server.port, ssl=server.tls)
                commands = self._sign_in_commands()
                futures = [self._loop.create_future() for _ in commands]
                wire.send([Item(pack(command), future) for command, future in zip(commands, futures, strict=True)])
                replies = await asyncio.gather(*futures, return_exceptions=True)
                run_id = self._check_replies(replies)
                is_kept = not wire.is_closed
                if not is_kept:  # with the last reply, so that nobody was told
                    return "the connection was closed"
        except TimeoutError:
            return f"no connection within {self._policy.connect_timeout_seconds * 1000:.0f} ms"
        except (OSError, UnicodeError, CommandRefused, LinkDown) as error:
            return str(error) or type(error).__name__
        finally:
            if not is_kept:
                wire.close()
        self._keep_wire(wire, run_id)
        return None

    def _check_replies(self, replies: Sequence[Any]) -> str | None:
        """Return the run id, or raise the first error; the slot of the probed key may be another server's by now."""
        for reply in replies:
            if isinstance(reply, CommandRefused) and self.is_in_cluster and str(reply).startswith(("MOVED", "ASK")):
                continue
            if isinstance(reply, BaseException):
                raise reply
        return _find_run_id(replies[-1])

    def _sign_in_commands(self) -> list[tuple[Argument, ...]]:
        server = self.server
        commands: list[tuple[Argument, ...]] = []
        if server.password is not None:
            user = () if server.username is None else (server.username,)
            commands.append(("AUTH", *user, server.password))
        if server.db:
            commands.append(("SELECT", server.db))
        commands += [("PING",), ("SET", self.probe_key, "", "PX", 1000), ("INFO", "server")]
        return commands

    def _keep_wire(self, wire: Wire, run_id: str | None) -> None:
        wire.on_error = self._on_error
        wire.on_lost = self._on_lost
        self._wire = wire
        is_news = not self.is_up or run_id != self.run_id
        self.run_id = run_id
        if is_news:
            self._owner.came_up(self)
        self._flush()


def _raise_to_caller(item: Item, error: str) -> None:
    if item.future is not None and not item.future.done():
        item.future.set_exception(CommandRefused(error))


def _fail_sign_in(wire: Wire, reason: str) -> None:
    for item in wire.in_flight:
        if item.future is not None and not item.future.done():
            item.future.set_exception(LinkDown(reason))


def _find_run_id(info: bytes) -> str | None:
    for line in info.split(b"\r\n"):
        if line.startswith(b"run_id:"):
            return line[7:].decode("ascii")
    return None

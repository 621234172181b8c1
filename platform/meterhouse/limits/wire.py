"""A connection to Redis as a transport's protocol, and what travels on it.

Replies are given to commands by their order alone, in the callbacks of the transport: no request ever reads from the
connection, so a request that is cancelled leaves no reply behind for another. Not here: when to connect, and when to
give up (``lane``).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import hiredis
import msgspec

Argument = str | bytes | int


class LinkDown(Exception):
    """Redis cannot be asked now; the detail is in the arguments. The command may have been executed."""


class CommandRefused(Exception):
    """Redis answered with an error that says nothing about its health, such as a mistake in a script."""


class LinkScript(Protocol):
    """What must be known of a script to call it."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    @property
    def text(self) -> str:
        """The Lua source."""
        ...

    @property
    def sha(self) -> str:
        """SHA1 of the source, in hex."""
        ...


class Waiter(Protocol):
    """Who waits for a reply: a future, or what hands the reply on; nothing of it raises."""

    def done(self) -> bool:
        """Return whether nobody waits any more."""
        ...

    def set_result(self, reply: Any, /) -> None:
        """Take the reply."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """Take LinkDown or CommandRefused."""
        ...

    def exception(self) -> object:
        """Say that the error may be overlooked."""
        ...


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """How long Redis is waited for, and how much may wait."""

    timeout_seconds: float = 0.1
    """From the call to its answer, connecting included; without what this process stood still in between."""
    connect_timeout_seconds: float = 0.1
    """TCP, TLS and sign-in together."""
    probe_seconds: float = 0.25
    """Between two attempts to reach a server that is away."""
    most_unsent: int = 4
    """So many commands do not wait for the end of the tick: Redis works on them while this process goes on."""
    most_in_batch: int = 2_000
    """Commands per write; the rest of a tick follows in further writes."""
    most_waiting: int = 20_000
    """Commands without an answer, per server; further calls fail at once."""


@dataclass(slots=True)
class LinkFigures:
    """Counts since the start, for metrics."""

    calls: int = 0
    batches: int = 0
    failures: int = 0
    """Calls that ended as ``LinkDown``."""
    downs: int = 0
    """How often a breaker opened."""
    repeats: int = 0
    """Calls that were sent again: their script was unknown, or the server had closed an idle connection."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is and how to sign in."""

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None


class Item(msgspec.Struct, eq=False):
    """One command that waits for its answer."""

    command: bytes
    future: Waiter | None
    """None: nobody waits, the reply is dropped."""
    script: LinkScript | None = None
    deadline_seconds: float = 0.0
    """By the clock of its lane, which stands still with the event loop; 0 until a lane has it."""
    was_repeated: bool = False
    loads: int = 0
    """How often its script was unknown and was sent along."""
    is_asking: bool = False
    redirects: int = 0

    def __repr__(self) -> str:
        """Show nothing of the command: it may sign in."""
        return f"<{type(self).__name__}>"


_NOT_ENOUGH = object()


def pack(arguments: Sequence[Argument]) -> bytes:
    """Return a command as it is sent."""
    command: bytes = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]  # its stub allows one word only
    return command


def pack_head(script: LinkScript, keys: Sequence[str]) -> bytes:
    """Return a command that runs a script with one argument, up to the number of that argument's bytes."""
    empty = pack(("EVALSHA", script.sha, len(keys), *keys, b""))
    return empty.removesuffix(b"0\r\n\r\n")


class Wire(asyncio.Protocol):
    """A connection: replies are given to the items in the order in which their commands were written."""

    def __init__(self, on_error: Callable[[Item, str], None], on_lost: Callable[["Wire", str], None]) -> None:
        self.in_flight: deque[Item] = deque()
        self.on_error = on_error
        self.on_lost = on_lost
        self._reader = hiredis.Reader(replyError=CommandRefused, notEnoughData=_NOT_ENOUGH)
        self._transport: asyncio.Transport | None = None
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless it is too late."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio.Transport
        if self.is_closed:
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Give each whole reply to its item."""
        gets = self._reader.gets
        try:
            self._reader.feed(data)
            while not self.is_closed and (reply := gets()) is not _NOT_ENOUGH:
                item = self.in_flight.popleft()
                future = item.future
                if isinstance(reply, CommandRefused):
                    self.on_error(item, str(reply))
                elif future is not None and not future.done():
                    future.set_result(reply)
        except (hiredis.HiredisError, IndexError) as error:
            self._lose(f"protocol error: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the lane, unless it was the one to close."""
        self._lose(f"connection lost: {exc}" if exc else "connection closed by the server")

    def send(self, items: Sequence[Item]) -> None:
        """Write commands at once, in their order."""
        self.in_flight.extend(items)
        if self._transport is not None:
            commands = items[0].command if len(items) == 1 else b"".join([item.command for item in items])
            self._transport.write(commands)

    def close(self) -> None:
        """Drop the connection and whatever it still brings."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, reason: str) -> None:
        if not self.is_closed:
            self.close()
            self.on_lost(self, reason)

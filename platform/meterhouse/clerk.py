"""The clerk of a host: one process beside the workers of ``meterhouse serve`` that ships and seals for them.

It takes batches of journal entries from workers (``ledger.desk``), writes them, and seals what is new. It has a few
connections to the database and nothing else of a worker: no journal, no Redis, no keys, no providers. Whatever becomes
of it, workers do its work themselves until the next one serves, so that nothing depends on it but their CPU time.

It ends when its parent closes the lifeline, or is no more, and ignores every signal that asks a process to end: a whole
group of processes is told at once, and workers ship until they are gone. Not here: when it starts (``keeper``).
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop
from gunicorn.arbiter import Arbiter

from meterhouse.db.engine import close
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.seals import SealStore
from meterhouse.garbage import calm_garbage_collector
from meterhouse.http.tasks import Tasks
from meterhouse.keeper import BEAT
from meterhouse.ledger.desk import ClerkDesk
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.process import name_process
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import CLERK_CONNECTIONS, open_small_engine
from meterhouse.telemetry.logs import Event, choose_format, configure, get_logger
from meterhouse.upkeep import SEAL_SECONDS, repeat

NAME = "mh-clerk"
"""What ``ps -o comm`` and ``top`` show."""
SOCKET = "clerk.sock"
NICENESS = 5
"""Where both want a core, whoever answers requests goes first: the clerk is left a quarter of it, and workers write for
themselves while it is more than 3 s behind."""
SEAL_ROWS = 2_000
"""How many rows are sealed in a transaction: more than where requests wait for the same loop, and less for each."""
BEAT_SECONDS = 1.0
FINISH_SECONDS = 5.0
"""How long what is being written may take when the clerk is to leave."""
BACKLOG = 128
MOST_PATH_BYTES = 107
"""What Linux has room for in the address of a unix socket (unix(7)), without the zero at its end."""
PRIVATE_UMASK = 0o177


@dataclass(frozen=True, slots=True)
class ClerkSocket:
    """Where the clerk listens: made by the parent, so that the next clerk goes on with it."""

    path: Path
    listener: socket.socket


@contextmanager
def open_clerk_socket(folder: Path) -> Iterator[ClerkSocket]:
    """Listen in a folder, as nobody but this user may; no clerk is there yet.

    Raises:
        SettingsError: The folder's path is too long for a socket.
    """
    path = folder / SOCKET
    length_bytes = len(os.fsencode(path))
    if length_bytes > MOST_PATH_BYTES:
        raise SettingsError(
            f"Cannot listen on {path}: the path of a socket has at most {MOST_PATH_BYTES} bytes, this one has "
            f"{length_bytes}. Set TMPDIR to a shorter one."
        )
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(PRIVATE_UMASK)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        yield ClerkSocket(path, listener)


def run_clerk(settings: Settings, listener: socket.socket, line: socket.socket) -> None:
    """Serve until the other end of the lifeline closes; the last thing that the process does."""
    began = time.monotonic()
    name_process(NAME)
    os.nice(NICENESS)
    for number in Arbiter.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    configure(
        format=choose_format(settings.log_format, sys.stderr.buffer),
        level=settings.log_level,
        stream=sys.stderr.buffer,
    )
    uvloop.run(_serve(settings, listener, line, began))


async def _serve(settings: Settings, listener: socket.socket, line: socket.socket, began: float) -> None:
    log = get_logger()
    engine = open_small_engine(settings, CLERK_CONNECTIONS)
    tasks = Tasks()
    try:
        desk = ClerkDesk(LedgerStore(engine, hash_rows=hash_rows))
        sealer = Sealer(SealStore(engine, hash_rows), log, interval_seconds=SEAL_SECONDS, batch_rows=SEAL_ROWS)
        tasks.keep(partial(repeat, SEAL_SECONDS, sealer.step))
        server = await asyncio.start_unix_server(desk.attend, sock=listener, backlog=BACKLOG)
        calm_garbage_collector()
        line.setblocking(False)
        tasks.keep(partial(_beat, line))
        log.info(Event.CLERK_STARTED, pid=os.getpid(), start_ms=round((time.monotonic() - began) * 1000))
        await _wait_end(line)
        server.close()
        await desk.finish(FINISH_SECONDS)
    finally:
        await tasks.close()
        await close(engine)
    log.info(Event.CLERK_STOPPED, pid=os.getpid())


async def _beat(line: socket.socket) -> None:
    """Let the parent know that the loop runs."""
    while True:
        with suppress(OSError):  # it reads nothing just now, or is no more
            line.send(BEAT)
        await asyncio.sleep(BEAT_SECONDS)


async def _wait_end(line: socket.socket) -> None:
    with suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(line, 1):
            pass

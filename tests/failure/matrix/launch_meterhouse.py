"""``meterhouse serve`` with a file layer that breaks on command, and with a provider that bills after a hang-up.

What a test puts in the place of the command. It takes the same options, and ``--orders FOLDER``: files in it are orders
to every worker, obeyed from the next operation on (see ``OrderedFiles``). With ``--loses-power`` what is not synced
stands in the memory of its worker, so that to kill all is to cut the power. Each worker says in ``tasks.PID`` which
asynchronous tasks it has. Not here: the faults (fakes.files).
"""

import argparse
import asyncio
import errno
import gc
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fakes.files import FaultyFiles
from meterhouse.command import read_settings
from meterhouse.gateway import Options
from meterhouse.providers.catalog import OPENAI_COMPATIBLE, PROVIDERS
from meterhouse.serve import Address, run_serve

TELL_SECONDS = 0.5
LOOK_SECONDS = 0.005
DRAIN = "drain"
"""The provider that bills to the end, whoever leaves."""


class OrderedFiles(FaultyFiles):
    """Obeys the files of a folder, for as long as they are there.

    ``eio``: every fdatasync fails. ``eio.<anything>``: one does, of whichever worker comes first. ``hold``: none comes
    back. ``full``: no new file gets room. ``hurry`` is for ``tell_tasks``.
    """

    def __init__(self, orders: Path, *, loses_power: bool) -> None:
        super().__init__(loses_power=loses_power)
        self._orders = orders

    def fdatasync(self, descriptor: int, /) -> None:  # type: ignore[override]
        while self._is_told("hold"):
            time.sleep(LOOK_SECONDS)
        if self._is_told("eio") or self._takes_one():
            self.fail_syncs(1)
        super().fdatasync(descriptor)

    def preallocate(self, descriptor: int, size_bytes: int) -> None:
        if self._is_told("full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().preallocate(descriptor, size_bytes)

    def _is_told(self, order: str) -> bool:
        return (self._orders / order).exists()

    def _takes_one(self) -> bool:
        for path in self._orders.glob("eio.*"):
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            return True
        return False


def tell_tasks(orders: Path, loop: asyncio.AbstractEventLoop) -> None:
    """Say which tasks there are, again and again.

    Garbage is collected, so that memory shows what is kept; but not while the order ``hurry`` is there, because all
    requests wait for it.
    """
    if not (orders / "hurry").exists():
        gc.collect()
    path = orders / f"tasks.{os.getpid()}"
    temporary = orders / f"new.{os.getpid()}"
    temporary.write_text("\n".join(sorted(str(task.get_coro()) for task in asyncio.all_tasks(loop))))
    temporary.replace(path)
    loop.call_later(TELL_SECONDS, tell_tasks, orders, loop)


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=Path, required=True)
    parser.add_argument("--loses-power", action="store_true")
    parser.add_argument("--bind", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--env-file", type=Path, required=True)
    arguments = parser.parse_args()

    def options(**values: Any) -> Options:
        """Make what a worker opens with, in the worker."""
        loop = asyncio.get_running_loop()
        loop.call_soon(tell_tasks, arguments.orders, loop)
        return Options(**values, files=OrderedFiles(arguments.orders, loses_power=arguments.loses_power))

    drain = replace(PROVIDERS[OPENAI_COMPATIBLE], name=DRAIN, on_client_gone="drain")
    with (
        patch("meterhouse.worker.Options", options),
        patch("meterhouse.providers.catalog.PROVIDERS", {**PROVIDERS, DRAIN: drain}),
    ):
        run_serve(Address.parse(arguments.bind), arguments.workers, lambda: read_settings(None, arguments.env_file))


if __name__ == "__main__":
    main()

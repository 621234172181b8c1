"""``meterhouse dev`` with a file layer that breaks on command: what a test puts in the place of the command.

Takes the same options and ``--control PATH``, a Unix socket that takes one word per connection: ``hold`` (no fdatasync
comes back from now on) or ``release``. The answer ``ok`` says that it is so. Not here: the faults (fakes.files).
"""

import argparse
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import uvloop

from fakes.files import FaultyFiles
from meterhouse.dev import run_dev
from meterhouse.settings import Environment

TESTS = Path(__file__).resolve().parent.parent
LONGEST_WORD_BYTES = 64


def tell(control: Path, word: str) -> None:
    """Give a running launcher a command; returns when it is in force."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(control))
        link.sendall(word.encode())
        assert link.recv(LONGEST_WORD_BYTES) == b"ok"


def obey(listener: socket.socket, commands: Mapping[str, Callable[[], None]]) -> None:
    """Take commands for ever."""
    while True:
        link, _ = listener.accept()
        with link:
            commands[link.recv(LONGEST_WORD_BYTES).decode()]()
            link.sendall(b"ok")


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(description="meterhouse dev with a faulty file layer")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env-file", type=Path, required=True)
    parser.add_argument("--control", type=Path, required=True)
    arguments = parser.parse_args()
    files = FaultyFiles()
    commands = {"hold": files.hold_syncs, "release": files.release_syncs}
    arguments.control.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(arguments.control))
        listener.listen()
        threading.Thread(target=obey, args=(listener, commands), daemon=True).start()
        environment = Environment.read(arguments.env_file)
        settings = environment.settings(data=arguments.data)
        uvloop.run(run_dev(settings, environment, "127.0.0.1", arguments.port, files=files))


if __name__ == "__main__":
    main()

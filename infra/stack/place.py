"""The folder of a stack: its ports, its secrets, what was started, and who may enter where.

Invariant: what is secret lies in files that only their owner can read. Not here: the processes (``parts``).
"""

import fcntl
import json
import os
import pwd
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stack.process import StackError, Started

ROOT = Path(__file__).resolve().parents[2]
DATABASE_USER, EDGE_USER = "postgres", "www-data"
"""Whom PostgreSQL and nginx's workers run as when this is started by root: the one refuses root, the others drop it."""
MOST_SOCKET_BYTES = 107
"""Of the path of a unix socket."""
FAVOURITE_PORTS = {"https": 8443, "http": 8080, "postgres": 5440, "redis": 6380, "console": 8600}
PORT_TRIES = 200


@dataclass
class Place:
    """A folder, and what is known of it."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    started: dict[str, Started] = field(default_factory=dict)

    @property
    def is_root(self) -> bool:
        """Whether what needs no right shall run as somebody else."""
        return os.geteuid() == 0

    @property
    def socket(self) -> Path:
        """Where the gateway listens."""
        return self.folder / "run" / "gateway.sock"

    @property
    def base_url(self) -> str:
        """Where clients find the stack."""
        return f"https://localhost:{self.ports['https']}"

    @property
    def console_url(self) -> str:
        """Where browsers find the console."""
        return f"http://127.0.0.1:{self.ports['console']}"

    @property
    def database_url(self) -> str:
        """As the application."""
        return self._database_url("meterhouse", "password")

    @property
    def owner_url(self) -> str:
        """As the role that owns the schema."""
        return self._database_url("meterhouse_owner", "owner_password")

    @property
    def redis_url(self) -> str:
        """As the application."""
        return f"redis://meterhouse:{self.secrets['redis_password']}@127.0.0.1:{self.ports['redis']}/0"

    def log(self, name: str) -> Path:
        """Where a part writes what it says."""
        return self.folder / "log" / f"{name}.log"

    def save(self) -> None:
        """Write everything down."""
        found = {"ports": self.ports, "started": {n: [s.pid, s.began_ticks] for n, s in self.started.items()}}
        write_closed(self.folder / "stack.json", json.dumps({**found, "boot": _boot()}, indent=1) + "\n")
        write_closed(self.folder / "secrets.json", json.dumps(self.secrets, indent=1) + "\n")

    def _database_url(self, role: str, secret: str) -> str:
        return f"postgresql://{role}:{self.secrets[secret]}@127.0.0.1:{self.ports['postgres']}/meterhouse"


def read_place(folder: Path) -> Place:
    """Read what is known of a folder; one that is not there knows nothing."""
    place = Place(folder.absolute())
    found = _read(place.folder / "stack.json")
    place.ports = {name: int(port) for name, port in found.get("ports", {}).items()}
    if found.get("boot") == _boot():
        place.started = {name: Started(*numbers) for name, numbers in found.get("started", {}).items()}
    place.secrets = _read(place.folder / "secrets.json")
    return place


def prepare(place: Place, asked_ports: dict[str, int]) -> None:
    """Make the folder with its secrets, and choose the ports that were not chosen yet.

    Raises:
        StackError: The folder cannot be used.
    """
    if len(os.fsencode(place.socket)) > MOST_SOCKET_BYTES:
        raise StackError(f"The path of {place.folder} is too long for a socket: choose a shorter one with --data.")
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        place.folder.chmod(0o711 if place.is_root else 0o700)
        for name, mode in (("log", 0o711), ("nginx", 0o711), ("acme", 0o755), ("redis", 0o700), ("run", 0o700)):
            (place.folder / name).mkdir(exist_ok=True)
            (place.folder / name).chmod(mode)
    except OSError as error:
        raise StackError(f"{place.folder} cannot be used: {error.strerror}. Choose another with --data.") from None
    if place.is_root:
        _check_open(place.folder)
        shutil.chown(place.folder / "run", group=EDGE_USER)
        (place.folder / "run").chmod(0o750)
    for name in ("password", "owner_password", "redis_password", "pepper"):
        place.secrets.setdefault(name, secrets.token_hex(24))
    place.ports.update(asked_ports)
    for name, favourite in FAVOURITE_PORTS.items():
        if name not in place.ports:
            place.ports[name] = _free_port(favourite, set(place.ports.values()))
    place.save()


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Let one command at a time change a folder.

    Raises:
        StackError: Another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"Another infra/up is at work in {folder}.") from None
        yield


def write_closed(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(favourite: int, taken: set[int]) -> int:
    for port in range(favourite, favourite + PORT_TRIES):
        if port not in taken and is_free(port):
            return port
    raise StackError(f"No port from {favourite} on is free: choose them with the options that --help lists.")


def _check_open(folder: Path) -> None:
    """Refuse a folder that the users of PostgreSQL and nginx cannot enter."""
    for user in (DATABASE_USER, EDGE_USER):
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise StackError(f"There is no user {user} here, whom root must become: use a user of your own.") from None
    closed = [parent for parent in folder.parents if not parent.stat().st_mode & 0o001]
    if closed:
        raise StackError(
            f"As root, PostgreSQL runs as the user {DATABASE_USER}, who may not enter {closed[0]}: choose another "
            "folder, for example --data /var/lib/meterhouse-up."
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read: {error}.") from None
    return found


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

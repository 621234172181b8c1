"""``meterhouse serve``: several worker processes under gunicorn, on PostgreSQL and Redis.

Everything that can be known to be wrong is said in one line before the first worker starts. The parent opens no store
and serves nothing. Not here: what a worker does (``worker``), and when workers come and go (``arbiter``).
"""

import asyncio
import gc
import math
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gunicorn import systemd
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from pydantic import SecretStr

from meterhouse import __version__
from meterhouse.arbiter import FleetArbiter, Member
from meterhouse.back_office import check_office
from meterhouse.bootstrap import database_url, read_schema
from meterhouse.clerk import MOST_PATH_BYTES, ClerkSocket, open_clerk_socket, run_clerk
from meterhouse.errors import StoreDown
from meterhouse.gateway import otlp_headers
from meterhouse.guessable import is_guessable_password
from meterhouse.http.tokens import load_vocabulary
from meterhouse.issuer import token_policy
from meterhouse.keeper import Keeper
from meterhouse.process import forbid_dumps
from meterhouse.settings import Environment, Settings, SettingsError
from meterhouse.stores import find_pepper_version, make_folder, parse_peppers
from meterhouse.telemetry.board import Board
from meterhouse.telemetry.logs import Event, choose_format, configure, get_logger
from meterhouse.worker import CANCEL_SECONDS, KEEP_ALIVE_SECONDS, FleetWorker

SHUTDOWN_SECONDS = 120.0
"""How long streams may go on when the server stops, where the settings do not say."""
CLOSE_SECONDS = 10.0
"""How long shipping and closing may take after the last request has ended."""
LEAST_RENEWALS = 3
"""How often a lease is renewed before it could end."""
STALL_SECONDS = 30
"""A worker whose event loop has stood still for so long is ended."""
BACKLOG = 2048
SOCKET_UMASK = 0o117
"""Only the owner and the group of a unix socket may use it."""
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - gunicorn and the metrics make private files of their own there
_REMOVALS = 20
"""How often the folder there is tried to be removed, so that a process that hangs in it does not hold the end up."""
_REMOVAL_SECONDS = 0.05

ReadSettings = Callable[[], tuple[Settings, Environment]]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``.

        Raises:
            SettingsError: It is none of these.
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(path=Path(text.removeprefix("unix:")).absolute())
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65_535:  # noqa: PLR2004 - the last port
            raise SettingsError(f"Cannot listen on '{text}': expected HOST:PORT or unix:PATH.")
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def check_free(self) -> None:
        """Find out whether it can be listened on.

        Raises:
            SettingsError: It cannot.
        """
        if self.path is None:
            self._check_port()
            return
        length_bytes = len(os.fsencode(self.path))
        if length_bytes > MOST_PATH_BYTES:
            raise SettingsError(
                f"Cannot listen on {self.path}: the path of a socket has at most {MOST_PATH_BYTES} bytes, this one has "
                f"{length_bytes}."
            )
        if self.path.exists() and not self.path.is_socket():
            raise SettingsError(f"Cannot listen on {self.path}: it is not a socket.")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise SettingsError(f"Cannot listen on {self.path}: its folder is missing or cannot be written.")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.path))
            except OSError:
                return  # nobody listens: a socket that was left behind is replaced
        raise SettingsError(f"Cannot listen on {self.path}: another process does. Choose another with --bind.")

    def _check_port(self) -> None:
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
                probe.listen()
            except OSError as error:
                raise SettingsError(
                    f"Cannot listen on {self}: {error.strerror}. Choose another address with --bind."
                ) from None


class QuietLog(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's own lines from warnings on, through our log. It has no access log."""

    def setup(self, cfg: Any) -> None:
        """Hand everything to the root's handler."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.setLevel("WARNING")
        self.error_log.propagate = True


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn runs: its configuration, and what the workers need to open."""

    def __init__(
        self, address: Address, workers: int, read: ReadSettings, board: Board, clerk_socket: ClerkSocket
    ) -> None:
        self.address = address
        self.board = board
        self._clerk_socket = clerk_socket
        self.is_behind_proxy = address.path is not None
        """Only the proxy can reach a unix socket, so that what it says of the client's address is believed."""
        self.settings, self.environment = read()
        self._read = read
        self._workers = workers
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn up; nothing else does, neither a file nor the environment."""
        chosen = {
            "bind": str(self.address),
            "workers": self._workers,
            "worker_class": FleetWorker,
            "logger_class": QuietLog,
            "timeout": STALL_SECONDS,
            "graceful_timeout": graceful_seconds(self.settings),
            "keepalive": KEEP_ALIVE_SECONDS,
            "backlog": BACKLOG,
            "preload_app": False,
            "control_socket_disable": True,
            "worker_tmp_dir": str(MEMORY_FOLDER) if MEMORY_FOLDER.is_dir() else None,
            "umask": SOCKET_UMASK if self.address.path is not None else 0,
            "on_starting": self._check_address,
            "when_ready": self._say_started,
            "post_fork": self._leave_clerk,
            "child_exit": self._bury,
            "on_exit": self._say_stopped,
        }
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> object:
        """Give gunicorn something to load; each worker builds its application once its gateway is open."""
        return self

    @property
    def clerk_path(self) -> Path | None:
        """Where a worker that starts now finds the clerk; None: it ships and seals itself."""
        return self._clerk_socket.path if self.wants_clerk() else None

    def wants_clerk(self) -> bool:
        """Whether there is to be a clerk, by the settings as they are now."""
        return self.settings.clerk

    def run_clerk(self, line: socket.socket) -> None:
        """Be the clerk, in a process of its own."""
        run_clerk(self.settings, self._clerk_socket.listener, line)

    def prepare(self) -> None:
        """Read the settings again, for workers that start from now on.

        Raises:
            SettingsError: They cannot be used; the old ones stay.
        """
        self.settings, self.environment = self._read()
        self.do_load_config()

    def _check_address(self, arbiter: FleetArbiter) -> None:
        if not arbiter.master_pid and not systemd.listen_fds(unset_environment=False):
            self.address.check_free()

    def _say_started(self, arbiter: FleetArbiter) -> None:
        get_logger().info(
            Event.SERVER_STARTED,
            version=__version__,
            address=", ".join(str(listener) for listener in arbiter.LISTENERS),
            workers=self._workers,
            pid=arbiter.pid,
        )

    def _leave_clerk(self, arbiter: FleetArbiter, _worker: Member) -> None:
        """Let go of what is the clerk's, in a worker that was just forked."""
        arbiter.forget_clerk()
        self._clerk_socket.listener.close()

    def _bury(self, _arbiter: FleetArbiter, worker: Member) -> None:
        self.board.bury(worker.age)

    def _say_stopped(self, arbiter: FleetArbiter) -> None:
        get_logger().info(Event.SERVER_STOPPED, pid=arbiter.pid)


def run_serve(address: Address, workers: int | None, read: ReadSettings) -> None:
    """Run until told to stop. Ends the process.

    Args:
        address: where to listen.
        workers: how many processes; None: one for each CPU, or one without Redis.
        read: reads the settings, now and at each reload.

    Raises:
        SettingsError: Something outside the code has to change; the text says what.
        StoreDown: The schema is behind.
    """
    settings, _ = _read_checked(read)
    count = workers or default_workers(settings)
    check_settings(settings, count)
    log_format = choose_format(settings.log_format, sys.stderr.buffer)
    configure(format=log_format, level=settings.log_level, stream=sys.stderr.buffer)
    forbid_dumps()
    _check_schema(settings)
    make_folder(settings.data)
    raise_file_limit()
    load_for_all()
    owner = os.getpid()
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix=f"meterhouse-{owner}-", dir=parent))
    try:
        with open_clerk_socket(folder) as clerk_socket:
            application = Application(address, count, lambda: _read_checked(read, count), Board(folder), clerk_socket)
            keeper = Keeper(application.run_clerk, application.wants_clerk)
            can_reload = settings.redis_url is not None
            FleetArbiter(application, application.prepare, keeper, can_reload=can_reload).run()
    finally:
        if os.getpid() == owner:  # the workers leave through here too
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder of all processes; one that was just killed may have put a file there meanwhile."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVAL_SECONDS)


def default_workers(settings: Settings) -> int:
    """Return how many processes serve where nobody says: one for each CPU, or one without Redis."""
    return len(os.sched_getaffinity(0)) if settings.redis_url is not None else 1


def served_settings(settings: Settings) -> Settings:
    """Return the settings as ``serve`` has them, with its own defaults where nothing is set."""
    if "shutdown_seconds" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"shutdown_seconds": SHUTDOWN_SECONDS})


def check_settings(settings: Settings, workers: int) -> None:
    """Refuse settings on which several processes cannot serve.

    Raises:
        SettingsError: They cannot.
    """
    database_url(settings)
    if settings.redis_url is None and workers > 1:
        raise SettingsError(
            "METERHOUSE_REDIS_URL is not set: a meter in memory serves one worker only. Set it, or use --workers 1."
        )
    if settings.lease_seconds < LEAST_RENEWALS * settings.renew_seconds:
        raise SettingsError(
            f"METERHOUSE_LEASE_SECONDS must be at least {LEAST_RENEWALS} times METERHOUSE_RENEW_SECONDS "
            f"({settings.renew_seconds:g}): a reservation whose lease ends is given to others."
        )
    if settings.lease_seconds < 2 * settings.sweep_seconds:
        raise SettingsError(
            f"METERHOUSE_LEASE_SECONDS must be at least twice METERHOUSE_SWEEP_SECONDS ({settings.sweep_seconds:g}): "
            "the silence between two sweeps would pass for one of everybody."
        )
    if settings.worker_requests is not None and settings.redis_url is None:
        raise SettingsError("METERHOUSE_WORKER_REQUESTS needs METERHOUSE_REDIS_URL: old and new workers overlap.")
    if graceful_seconds(settings) <= 2 * settings.shutdown_seconds + CANCEL_SECONDS:
        raise SettingsError(
            f"METERHOUSE_GRACEFUL_SECONDS must be more than {CANCEL_SECONDS:g} s above twice "
            f"METERHOUSE_SHUTDOWN_SECONDS ({settings.shutdown_seconds:g}): it ends a worker with answers of its own."
        )
    if settings.key_pepper is None:
        raise SettingsError("METERHOUSE_KEY_PEPPER is not set: expected version:secret with at least 32 characters.")
    check_parts(settings)
    for name in ("database_url", "migration_database_url", "redis_url"):
        _check_password(f"METERHOUSE_{name.upper()}", getattr(settings, name))


def check_parts(settings: Settings) -> None:
    """Refuse what no process could open with: it would be found by each worker, after the parent went on to others.

    Raises:
        SettingsError: Peppers, mail, exports, traces or sign-in by tokens are set so that they cannot work.
    """
    check_office(settings)
    otlp_headers(settings)
    token_policy(settings)
    if settings.key_pepper is not None:
        find_pepper_version(settings, parse_peppers(settings.key_pepper.get_secret_value(), "METERHOUSE_KEY_PEPPER"))


def _check_password(name: str, address: SecretStr | None) -> None:
    """Refuse a password that is tried first by whoever gets as far as the store; none at all is the store's choice."""
    parts = urlsplit(address.get_secret_value()) if address is not None else None
    if parts is not None and parts.password and is_guessable_password(unquote(parts.password), parts.username):
        raise SettingsError(f"{name}: its password can be guessed. Give the store one made by chance.")


def graceful_seconds(settings: Settings) -> int:
    """Return after how long a worker that was told to stop is killed."""
    return math.ceil(settings.graceful_seconds or 2 * settings.shutdown_seconds + CANCEL_SECONDS + CLOSE_SECONDS)


def load_for_all() -> None:
    """Load what every worker needs and none changes, so that one that is forked has it at once and shares its memory.

    What stands here by now lives as long as the processes: no worker's first collection need look at it.
    """
    load_vocabulary()
    gc.collect()
    gc.freeze()


def raise_file_limit() -> None:
    """Let this process and its workers open as many files as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _read_checked(read: ReadSettings, workers: int = 1) -> tuple[Settings, Environment]:
    given, environment = read()
    settings = served_settings(given)
    check_settings(settings, workers)
    return settings, environment


def _check_schema(settings: Settings) -> None:
    """Refuse a schema that is behind. A database that is away just now is no reason not to start."""
    try:
        asyncio.run(read_schema(database_url(settings)))
    except StoreDown as error:
        if not error.detail:
            raise
        get_logger().warning(Event.STORE_FAILED, detail=error.detail)

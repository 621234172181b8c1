"""The five parts of a stack: what has to be there before each is started, how it is, and how it ends.

In the order in which they are started. Not here: the folder (``place``) and processes in general (``process``).
"""

import asyncio
import hashlib
import os
import resource
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from stack.health import is_ready
from stack.place import DATABASE_USER, EDGE_USER, ROOT, Place, is_free, write_closed
from stack.process import StackError, Started, start

WORKERS = 2
HEALTH_SECONDS = 2.0
COMMAND_SECONDS = 120
MOST_FILES = 70_000
MOST_CONNECTIONS = 32_768
OURS = ("METERHOUSE_DATABASE_URL", "METERHOUSE_MIGRATION_DATABASE_URL", "METERHOUSE_REDIS_URL", "METERHOUSE_KEY_PEPPER")
"""Settings that the stack decides, whatever the environment says."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of them."""

    name: str
    port: str
    """The name of its port; empty: a socket."""
    start: Callable[[Place], Started]
    is_well: Callable[[Place], bool]
    end_signal: int
    patience_seconds: float
    """How long it may take to end."""


# --- PostgreSQL


def start_postgres(place: Place) -> Started:
    """Make the data the first time, and start it."""
    home, data = place.folder / "postgres", place.folder / "postgres" / "data"
    user = DATABASE_USER if place.is_root else None
    home.mkdir(exist_ok=True)
    home.chmod(0o700)
    if user:
        shutil.chown(home, user, user)
    if not data.exists():
        unfinished = home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        words = ["--locale=C", "-E", "UTF8", "--auth-local=peer", "--auth-host=scram-sha-256", "-D", str(unfinished)]
        run([_postgres_program("initdb"), *words], user=user)
        unfinished.rename(data)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(place.ports["postgres"]),
        "unix_socket_directories": str(home),
        "max_connections": "100",
    }
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return start([_postgres_program("postgres"), "-D", str(data), *words], place.log("postgres"), user=user)


def is_postgres_there(place: Place) -> bool:
    """Whether it takes connections; whose does not matter."""
    command = [_postgres_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(place.ports["postgres"])]
    return subprocess.run(command, check=False).returncode == 0


def make_roles(place: Place) -> None:
    """Make the roles and the database, or set their passwords again."""
    words = ["-X", "-q", "-h", str(place.folder / "postgres"), "-p", str(place.ports["postgres"]), "-d", "postgres"]
    passwords = {
        "METERHOUSE_OWNER_PASSWORD": place.secrets["owner_password"],
        "METERHOUSE_PASSWORD": place.secrets["password"],
    }
    text = (Path(__file__).parent / "roles.sql").read_text()
    user = DATABASE_USER if place.is_root else None
    run([_postgres_program("psql"), *words], user=user, environment={**os.environ, **passwords}, text=text)


def is_postgres_well(place: Place) -> bool:
    """Whether the application's role is served."""
    import asyncpg  # noqa: PLC0415 - most commands need no driver, and are quick without

    async def ask() -> bool:
        connection = await asyncpg.connect(place.database_url, timeout=HEALTH_SECONDS)
        try:
            return await connection.fetchval("SELECT 1", timeout=HEALTH_SECONDS) == 1
        finally:
            await connection.close(timeout=HEALTH_SECONDS)

    try:
        return asyncio.run(ask())
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False


def _postgres_program(name: str) -> str:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return find_program(name, [str(folder) for folder in folders])


# --- Redis


def start_redis(place: Place) -> Started:
    """Write down who may do what, and start it."""
    acl = place.folder / "redis" / "users.acl"
    text = (Path(__file__).parent / "redis.acl").read_text()
    digest = hashlib.sha256(place.secrets["redis_password"].encode()).hexdigest()
    write_closed(acl, text.replace("PASSWORD_SHA256", digest))
    command = [find_program("redis-server"), str(Path(__file__).parent / "redis.conf")]
    command += ["--port", str(place.ports["redis"]), "--dir", str(place.folder / "redis"), "--aclfile", str(acl)]
    return start(command, place.log("redis"))


def is_redis_well(place: Place) -> bool:
    """Whether the application's user is served."""
    import redis  # noqa: PLC0415 - as above

    try:
        with redis.Redis.from_url(place.redis_url, socket_timeout=HEALTH_SECONDS) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


# --- the gateway


def start_gateway(place: Place) -> Started:
    """Write its settings, and start it; its socket belongs to its group, which started by root is that of nginx."""
    command = [*meterhouse(), "serve", "--bind", f"unix:{place.socket}", "--workers", str(WORKERS)]
    command += ["--data", str(place.folder / "gateway"), "--env-file", str(write_settings(place))]
    group = EDGE_USER if place.is_root else None
    return start(command, place.log("gateway"), environment=environment(), group=group)


def write_settings(place: Place) -> Path:
    """Write the gateway's file of settings, and keep what an operator has added to it."""
    path = place.folder / "gateway.env"
    ours = {
        "METERHOUSE_DATABASE_URL": place.database_url,
        "METERHOUSE_REDIS_URL": place.redis_url,
        "METERHOUSE_KEY_PEPPER": f"1:{place.secrets['pepper']}",
    }
    lines = path.read_text().splitlines() if path.exists() else ["METERHOUSE_SIMULATOR=true"]
    kept = [line for line in lines if line.partition("=")[0] not in ours]
    write_closed(path, "\n".join([*(f"{name}={value}" for name, value in ours.items()), *kept]) + "\n")
    return path


def is_gateway_well(place: Place) -> bool:
    """Whether new requests are admitted."""
    return is_ready(place.socket)


def meterhouse() -> list[str]:
    """Return the command ``meterhouse`` of this checkout."""
    return [str(ROOT / ".venv" / "bin" / "meterhouse")]


def environment() -> dict[str, str]:
    """Return the environment for it: providers' credentials pass, the stack's own settings do not."""
    return {name: value for name, value in os.environ.items() if name not in OURS}


# --- nginx


def start_nginx(place: Place) -> Started:
    """Make the certificate and nginx.conf, and start it."""
    run([str(ROOT / "infra" / "tls"), "--out", str(place.folder / "tls")])
    folder = place.folder / "nginx"
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], MOST_FILES)
    values = {
        "USER": EDGE_USER,
        "PID": folder / "nginx.pid",
        "ERRORS": f"{place.log('nginx')} alert",
        "ACCESS": folder / "access.log",
        "TEMP": folder,
        "FILES": files,
        "WORKER_CONNECTIONS": min(files // 2, MOST_CONNECTIONS),
        "SOCKET": place.socket,
        "HTTP": f"127.0.0.1:{place.ports['http']}",
        "HTTPS": f"127.0.0.1:{place.ports['https']}",
        "PUBLIC": f"$host:{place.ports['https']}",
        "NAMES": "localhost",
        "CERTIFICATE": place.folder / "tls" / "server.pem",
        "KEY": place.folder / "tls" / "server.key",
        "ACME": place.folder / "acme",
    }
    words = [f"{name}={value}" for name, value in values.items()]
    write_closed(folder / "nginx.conf", run([str(ROOT / "infra" / "nginx-conf"), *words]))
    command = [find_program("nginx"), "-c", str(folder / "nginx.conf"), "-p", f"{folder}/", "-g", "daemon off;"]
    return start(command, place.log("nginx"))


def is_nginx_well(place: Place) -> bool:
    """Whether a client that trusts the authority is served through it."""
    try:
        trust = ssl.create_default_context(cafile=place.folder / "tls" / "ca.pem")
        url = f"{place.base_url}/health/live"
        with urllib.request.urlopen(url, timeout=HEALTH_SECONDS, context=trust) as answer:  # noqa: S310 - https
            return bool(answer.status == 200)  # noqa: PLR2004 - ok
    except (OSError, HTTPException, urllib.error.HTTPError):
        return False


# --- the console


def start_console(place: Place) -> Started:
    """Start it as the client of the edge that it is."""
    command = [*meterhouse(), "console", "--url", place.base_url, "--bind", f"127.0.0.1:{place.ports['console']}"]
    command += ["--ca-file", str(place.folder / "tls" / "ca.pem")]
    return start(command, place.log("console"), environment=environment())


def is_console_well(place: Place) -> bool:
    """Whether it shows its page."""
    try:
        with urllib.request.urlopen(place.console_url, timeout=HEALTH_SECONDS) as answer:  # noqa: S310 - http
            return bool(answer.status == 200)  # noqa: PLR2004 - ok
    except (OSError, HTTPException, urllib.error.HTTPError):
        return False


# --- all


def parts() -> tuple[Part, ...]:
    """Return the parts, in the order in which they are started; they end the other way round."""
    return (
        Part("postgres", "postgres", start_postgres, is_postgres_well, signal.SIGINT, 60),
        Part("redis", "redis", start_redis, is_redis_well, signal.SIGTERM, 30),
        Part("gateway", "", start_gateway, is_gateway_well, signal.SIGTERM, 150),
        Part("nginx", "https", start_nginx, is_nginx_well, signal.SIGQUIT, 10),
        Part("console", "console", start_console, is_console_well, signal.SIGTERM, 10),
    )


def check_ports(place: Place, part: Part) -> None:
    """Find out before a part is started whether its ports are free.

    Raises:
        StackError: One is not.
    """
    names = ("https", "http") if part.name == "nginx" else (part.port,) if part.port else ()
    for name in names:
        if not is_free(place.ports[name]):
            raise StackError(
                f"Port {place.ports[name]} is taken by another program: choose another one for {name} with "
                f"--{name}-port."
            )


def find_program(name: str, folders: Sequence[str] = ()) -> str:
    """Return the path of a program.

    Raises:
        StackError: It is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"]))
    if not found:
        raise StackError(f"{name} is not installed.")
    return found


def run(
    command: Sequence[str], *, user: str | None = None, environment: Mapping[str, str] | None = None, text: str = ""
) -> str:
    """Run a command to its end; returns what it printed.

    Raises:
        StackError: It failed.
    """
    done = subprocess.run(
        command,
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        env=None if environment is None else dict(environment),
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if done.returncode:
        raise StackError(f"{' '.join(command[:2])} failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout

"""``meterhouse dev``: the whole gateway in one process, on SQLite and the memory meter, for the first five minutes on.

The first start makes an organization, a project, a key and an admin key and keeps them in ``DATA/dev.env``; later
starts use them again.
"""

import asyncio
import errno
import fcntl
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from dotenv import dotenv_values
from rich.console import Console

from meterhouse import __version__
from meterhouse.app import build_app
from meterhouse.console.beside import console_beside
from meterhouse.errors import InvalidKey
from meterhouse.garbage import calm_garbage_collector, collect_when_calm
from meterhouse.gateway import Gateway, Options, open_gateway
from meterhouse.http.connection import bound_unread, connection_type
from meterhouse.keys.service import KeyOrder
from meterhouse.ledger.files import FileLayer
from meterhouse.process import forbid_dumps
from meterhouse.settings import Environment, Settings, SettingsError
from meterhouse.stores import Stores, make_folder, write_secret

DEV_FILE = "dev.env"
MODEL = "simulator"


@dataclass(frozen=True, slots=True)
class DevKeys:
    """The keys of an embedded installation, and whether they were made just now."""

    key: str
    admin_key: str
    are_new: bool


class DevServer(uvicorn.Server):
    """uvicorn, which ends running streams in good order when it is told to stop."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals for an order to stop in good order.

        uvicorn raises them once more when it has served. A second SIGTERM would end the process there and then,
        before the gateway is closed; a second SIGINT is a KeyboardInterrupt, which closes everything on its way.
        """
        with super().capture_signals():
            yield
            self._captured_signals = [number for number in self._captured_signals if number == signal.SIGINT]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams go on for a while, then end them with an error event and an exact record."""
        self._gateway.end_watching()
        patience = self._gateway.settings.shutdown_seconds
        timer = asyncio.get_running_loop().call_later(patience, self._gateway.cut_streams)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


async def run_dev(
    settings: Settings,
    environment: Environment,
    host: str,
    port: int,
    *,
    console_port: int | None = None,
    files: FileLayer | None = None,
) -> None:
    """Run until told to stop, with the console beside it where it is given a port.

    ``files`` is the journal's file layer, for those who test what a bad disk does.

    Raises:
        SettingsError: Something outside the code has to change; the text says what.
    """
    forbid_dumps()
    with bind(host, port) as listener:
        make_folder(settings.data)
        with lock_folder(settings.data):
            options = Options(has_simulator=True, files=files)
            async with open_gateway(settings, environment, sys.stderr.buffer, options) as gateway:
                bound_port = listener.getsockname()[1]
                base_url = f"http://{_reachable(host)}:{bound_port}"
                keys = await ensure_dev_keys(gateway.stores, settings.data, base_url)
                async with _console(base_url, console_port) as console_url:
                    print_banner(gateway, base_url, keys, console_url)
                    server = DevServer(server_config(gateway), gateway)
                    calm_garbage_collector()
                    gateway.inference.tasks.keep(lambda: collect_when_calm(lambda: len(server.server_state.tasks)))
                    await server.serve(sockets=[listener])


@asynccontextmanager
async def _console(base_url: str, port: int | None) -> AsyncIterator[str]:
    if port is None:
        yield ""
        return
    async with console_beside(base_url, port) as url:
        yield url


def server_config(gateway: Gateway, *, believes_proxy: bool = False) -> uvicorn.Config:
    """Return how uvicorn serves a gateway. Unless only a proxy can ask, no header is believed about the address."""
    return uvicorn.Config(
        build_app(gateway),
        interface="asgi3",
        loop="none",
        http=connection_type(gateway.settings.write_stall_seconds, believes_proxy=believes_proxy),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(gateway.settings.shutdown_seconds) + 10,
        backlog=2048,
    )


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything else is done.

    Raises:
        SettingsError: It is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        bound_unread(listener)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        hint = f" Try --port {port + 1}." if error.errno == errno.EADDRINUSE else ""
        raise SettingsError(f"Cannot listen on {host} port {port}: {error.strerror}.{hint}") from None
    except OverflowError:
        listener.close()
        raise SettingsError(f"Port {port} is not between 0 and 65535.") from None
    return listener


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep a second process out of a data folder: two memory meters would each allow the whole budget.

    Raises:
        SettingsError: Another process has it.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"Another Meterhouse is running on {folder}. Stop it, or choose another folder with --data."
            ) from None
        yield


async def ensure_dev_keys(stores: Stores, folder: Path, base_url: str) -> DevKeys:
    """Use the keys of ``dev.env`` again, or make new ones and write the file."""
    path = folder / DEV_FILE
    found = dotenv_values(path, interpolate=False) if path.exists() else {}
    key, admin_key = found.get("OPENAI_API_KEY"), found.get("OPENAI_ADMIN_KEY")
    are_new = False
    if not key or not await _opens(stores.keyring.verify(f"Bearer {key}", "127.0.0.1")):
        organization = await stores.service.create_organization("Development")
        project = await stores.service.create_project(organization.id, "Default")
        issued = await stores.service.issue(KeyOrder(name="Development key", project_id=project.id))
        key, are_new = issued.value, True
    if not admin_key or not await _opens(stores.keyring.verify_admin(f"Bearer {admin_key}")):
        admin_key, are_new = (await stores.service.issue_admin("Development operator")).value, True
    text = f"OPENAI_BASE_URL={base_url}/v1\nOPENAI_API_KEY={key}\nOPENAI_ADMIN_KEY={admin_key}\n"
    write_secret(path, text)
    return DevKeys(key, admin_key, are_new)


def print_banner(gateway: Gateway, base_url: str, keys: DevKeys, console_url: str) -> None:
    """Say where everything is; on the first start also the keys, and two ways to try them."""
    folder = gateway.settings.data
    console = Console(stderr=False, highlight=False, soft_wrap=True)
    snapshot = gateway.supply.routes.snapshot
    names = ", ".join(active.name for active in snapshot.providers)
    console.print(f"\n[bold]Meterhouse {__version__}[/bold] is listening (Ctrl-C stops it)\n")
    for name, value in (
        ("Base URL", f"{base_url}/v1"),
        *((("Console", console_url),) if console_url else ()),
        ("API page", f"{base_url}/docs"),
        ("OpenAPI", f"{base_url}/openapi.json"),
        ("Health", f"{base_url}/health"),
        ("Providers", names),
        ("Models", str(len(gateway.supply.routes.list_models()))),
        ("Data", str(folder)),
        ("Keys", f"{folder / DEV_FILE} (source it: set -a; . {folder / DEV_FILE}; set +a)"),
    ):
        console.print(f"  {name:<10} {value}", markup=False)
    if keys.are_new:
        console.print(f"\n  Key        {keys.key}\n  Admin key  {keys.admin_key}", markup=False)
        console.print("\nTry it:\n", style="bold")
        console.print(curl_line(base_url, keys.key), markup=False)
        console.print("\nOr from Python (pip install openai):\n", style="bold")
        console.print(sdk_snippet(base_url, keys.key), markup=False)
    console.print("")


def curl_line(base_url: str, key: str) -> str:
    """Return a command that streams an answer."""
    body = '{"model": "simulator", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'
    return (
        f"curl --no-buffer {base_url}/v1/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


def sdk_snippet(base_url: str, key: str) -> str:
    """Return five lines of Python that stream an answer through the official SDK."""
    return "\n".join(
        (
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{base_url}/v1", api_key="{key}")',
            'messages = [{"role": "user", "content": "Hello!"}]',
            f'for chunk in client.chat.completions.create(model="{MODEL}", messages=messages, stream=True):',
            '    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)',
        )
    )


async def _opens(verification: Awaitable[object]) -> bool:
    try:
        await verification
    except InvalidKey:
        return False
    return True


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - only compared
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host

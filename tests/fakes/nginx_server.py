"""The real nginx with the shipped nginx.conf, in front of the unix socket of a served fleet.

Invariant: it does not outlive the process that started it (daemon). Not here: the fleet (fleet), which may start, drain
and die behind it as it likes.
"""

import os
import resource
import signal
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import anthropic
import httpx2
import openai

from fakes.daemon import Daemon, children_of, find_program, free_port, is_alive, wait_until
from fakes.gateway import http_request

ROOT = Path(__file__).parents[2]
NAME = "localhost"


class NginxServer:
    """``with NginxServer(folder, socket=path) as edge:``; TLS on ``edge.port`` for the name ``localhost``.

    Args:
        folder: where its files and its certificate lie; made if it does not exist.
        socket: where the gateway listens (``ServeProcess(bind=f"unix:{socket}")``); it need not be there yet.
        values: what ``infra/nginx-conf`` shall set, on top of what is set here.
    """

    def __init__(self, folder: Path, *, socket: Path, values: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port, self.plain_port = free_port(), free_port()
        self.conf = folder / "nginx.conf"
        self.ca = folder / "tls" / "ca.pem"
        """What clients trust: ``SSL_CERT_FILE``."""
        self.access_log = folder / "access.log"
        self.make_certificate()
        self.values = {
            "USER": "root" if os.geteuid() == 0 else "www-data",  # or the workers could not enter a test's folder
            "WORKERS": "2",
            "PID": str(folder / "nginx.pid"),
            "FILES": str(files := min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 70_000)),
            "WORKER_CONNECTIONS": str(files // 2),
            "ERRORS": "stderr notice",
            "ACCESS": str(self.access_log),
            "TEMP": str(folder),
            "SOCKET": str(socket),
            "HTTP": f"127.0.0.1:{self.plain_port}",
            "HTTPS": f"127.0.0.1:{self.port}",
            "NAMES": NAME,
            "PUBLIC": f"$host:{self.port}",
            "ACME": str(folder / "acme"),
            **(values or {}),
        }
        command = [find_program("nginx", "nginx"), "-c", str(self.conf), "-p", f"{folder}/", "-g", "daemon off;"]
        self._daemon = Daemon(command, folder / "nginx.log")

    def make_certificate(self) -> None:
        """Make what is missing of the authority, the certificate and its key."""
        subprocess.run([ROOT / "infra" / "tls", "--out", self.folder / "tls"], check=True, capture_output=True)

    def configure(self, **values: str) -> None:
        """Write its nginx.conf, with other values from now on; ``reload`` takes them up."""
        self.values |= values
        words = [f"{name}={value}" for name, value in self.values.items()]
        done = subprocess.run([ROOT / "infra" / "nginx-conf", *words], check=True, capture_output=True, text=True)
        self.conf.write_text(done.stdout)

    def start(self) -> Self:
        """Start it and wait until it takes connections."""
        self.configure()
        self._daemon.start(self._is_ready)
        return self

    def stop(self) -> None:
        """End it as a service manager does: at once, without waiting for streams."""
        self._daemon.stop()

    def quit(self) -> None:
        """Let it end what it has begun, and end."""
        self._daemon.stop(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL all of it."""
        self._daemon.kill()

    def reload(self) -> list[int]:
        """SIGHUP; returns the old workers that still end what they have begun, once only new ones take connections."""
        old = self.workers()
        self.signal_reload()
        wait_until(lambda: len(set(self.workers()) - set(old)) >= len(old), "new workers of nginx")
        wait_until(lambda: all(map(is_draining, old)), "the end of old workers of nginx")
        return [pid for pid in old if is_alive(pid)]

    def signal_reload(self) -> None:
        """SIGHUP, and no more."""
        os.kill(self._daemon.pid, signal.SIGHUP)

    @property
    def pid(self) -> int:
        """Of the process whose children its workers are."""
        return self._daemon.pid

    def workers(self) -> list[int]:
        """Return its workers, also those that drain."""
        return [pid for pid in children_of(self._daemon.pid) if is_alive(pid)]

    def log(self) -> str:
        """Return what it logged on its own account."""
        return (self.folder / "nginx.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self._daemon.kill()

    # --- what tests do with it

    @property
    def url(self) -> str:
        """Where it is found."""
        return f"https://{NAME}:{self.port}"

    @property
    def base_url(self) -> str:
        """What the SDK takes."""
        return f"{self.url}/v1"

    def trust(self) -> ssl.SSLContext:
        """Return what a client needs to trust it."""
        return ssl.create_default_context(cafile=str(self.ca))

    def client(self, key: str, *, http2: bool = False, **options: Any) -> openai.OpenAI:
        """Return the official SDK's client, without retries unless asked for; close it."""
        http_client = httpx2.Client(verify=self.trust(), timeout=60, http2=http2)
        return openai.OpenAI(
            base_url=self.base_url, api_key=key, http_client=http_client, **{"max_retries": 0, **options}
        )

    def anthropic(self, key: str) -> anthropic.Anthropic:
        """Return the other official SDK's client, without retries; close it."""
        http_client = httpx2.Client(verify=self.trust(), timeout=60)
        return anthropic.Anthropic(base_url=self.url, api_key=key, http_client=http_client, max_retries=0)

    def request(
        self, method: str, path: str, body: object = None, *, key: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one plain HTTP/1.1 request on a connection of its own; ``key=""`` sends none."""
        return http_request(self.url, method, path, body, key=key, headers=headers, trust=self.trust())

    def _is_ready(self) -> bool:
        try:
            with httpx2.Client(verify=self.trust()) as client:
                client.get(f"{self.url}/health/live", timeout=1)
        except httpx2.TransportError:
            return False
        return True


def is_draining(pid: int) -> bool:
    """Whether a worker takes no connections any more; what is gone does not."""
    try:
        return b"shutting down" in Path(f"/proc/{pid}/cmdline").read_bytes() or not is_alive(pid)
    except OSError:
        return True

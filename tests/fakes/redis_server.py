"""Real Redis servers for tests, alone or as a cluster, on free ports of 127.0.0.1.

Invariant: none outlives the process that started it (daemon), and none shares anything with another.
Not here: fixtures (plugins/servers).
"""

import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fakes.certificates import write_certificates
from fakes.daemon import Daemon, MissingServerError, find_program, free_port, wait_until

FAKETIME = "/usr/lib/{}/faketime/libfaketime.so.1"
NOTHING: Mapping[str, str] = MappingProxyType({})
CLI_TIMEOUT_SECONDS = 10
CLUSTER_NODES = 3
SLOTS = 16_384


class RedisServer:
    """``with RedisServer(tmp_path / "redis") as server:``; persists nothing unless ``appendonly``.

    Args:
        folder: where its files lie; made if it does not exist.
        options: lines of redis.conf, on top of the ones here.
        appendonly: whether what it holds survives ``restart()`` and ``kill()`` (every write is synced).
        tls: whether it speaks TLS and nothing else, with a certificate that ``ca_path`` signed.
        fake_time: whether its clock stands still, and moves only by ``set_time_ms`` and ``advance_ms``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Mapping[str, str] = NOTHING,
        appendonly: bool = False,
        tls: bool = False,
        fake_time: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.ca_path = folder / "ca.pem" if tls else None
        self._clock = _FakeClock(folder / "now") if fake_time else None
        settings = {"bind": "127.0.0.1", "port": str(self.port), "save": "", "dir": str(folder), "daemonize": "no"}
        if appendonly:
            settings |= {"appendonly": "yes", "appendfsync": "always"}
        if tls:
            certificate, key = write_certificates(folder)
            settings |= {"port": "0", "tls-port": str(self.port), "tls-auth-clients": "no"}
            settings |= {
                "tls-cert-file": str(certificate),
                "tls-key-file": str(key),
                "tls-ca-cert-file": str(self.ca_path),
            }
        words = itertools.chain.from_iterable((f"--{name}", value) for name, value in {**settings, **options}.items())
        command = [find_program("redis-server", "redis-server"), *words]
        environment = self._clock.environment() if self._clock else NOTHING
        self._daemon = Daemon(command, folder / "redis.log", environment)
        self.kills = 0
        self._client = redis.Redis.from_url(
            self.url,
            socket_timeout=CLI_TIMEOUT_SECONDS,
            decode_responses=True,
            encoding_errors="surrogateescape",
            retry=Retry(NoBackoff(), 0),
        )

    @property
    def url(self) -> str:
        """What ``METERHOUSE_REDIS_URL`` takes."""
        if self.ca_path:
            return f"rediss://127.0.0.1:{self.port}?ssl_ca_certs={self.ca_path}"
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._daemon.pid

    @property
    def is_running(self) -> bool:
        return self._daemon.is_running

    def start(self) -> Self:
        """Start it and wait until it answers."""
        self._daemon.start(self._is_ready)
        return self

    def stop(self) -> None:
        """End it in order."""
        self._client.close()
        self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._client.close()
        self.kills += 1
        self._daemon.kill()

    def pause(self) -> None:
        """SIGSTOP: it takes connections and bytes, and answers nothing."""
        self._daemon.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._daemon.resume()

    def restart(self) -> None:
        """End it in order and start it again on the same port: a new run id, and empty unless ``appendonly``."""
        self.stop()
        self.start()

    def cli(self, *words: str | bytes | float) -> Any:
        """Send one command and return what redis-py makes of the answer (text as str); raises redis.RedisError."""
        return self._client.execute_command(*words)

    def flush(self) -> None:
        """Forget all data and all scripts."""
        self.cli("FLUSHALL", "SYNC")
        self.cli("SCRIPT", "FLUSH", "SYNC")

    def time_ms(self) -> int:
        """Return the time that its TIME command says, as Unix milliseconds."""
        return _milliseconds(self.cli("TIME"))

    def set_time_ms(self, moment_ms: int) -> None:
        """Put its clock to this moment, where it stands still; only with ``fake_time``."""
        assert self._clock, "the server was made without fake_time"
        self._clock.set_ms(moment_ms)
        command, script = self.time_ms(), _milliseconds(self.cli("EVAL", "return redis.call('TIME')", 0))
        assert command == script == moment_ms, f"its clock says {command}, to a script {script}, not {moment_ms}"

    def advance_ms(self, duration_ms: int) -> int:
        """Move its clock on; returns the new time."""
        assert self._clock, "the server was made without fake_time"
        self.set_time_ms(self._clock.now_ms + duration_ms)
        return self._clock.now_ms

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _is_ready(self) -> bool:
        try:
            return bool(self.cli("PING"))
        except redis.RedisError:
            return False


class _FakeClock:
    """The file that libfaketime reads the time from, at every call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.now_ms = 0
        self.set_ms(time.time_ns() // 1_000_000)

    def set_ms(self, moment_ms: int) -> None:
        seconds, rest_ms = divmod(moment_ms, 1000)
        new = self._path.with_suffix(".new")
        # Half a microsecond more, because it is read as a binary fraction and then cut to microseconds.
        new.write_text(f"{seconds}.{rest_ms:03}0005")
        new.replace(self._path)
        self.now_ms = moment_ms

    def environment(self) -> dict[str, str]:
        machine = f"{os.uname().machine}-linux-gnu"
        library = Path(FAKETIME.format(machine))
        if not library.exists():
            raise MissingServerError(f"{library} does not exist, and the tests need it (Debian: apt install faketime)")
        return {
            # Debian's Redis uses jemalloc, which asks for the time before libfaketime is ready, and hangs: with libc
            # in front of it memory comes from libc.
            "LD_PRELOAD": f"{library} /lib/{machine}/libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_FMT": "%s",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "TZ": "UTC",
            "LC_ALL": "C",
        }


def _milliseconds(answer: tuple[int | str, int | str]) -> int:
    seconds, microseconds = map(int, answer)
    return seconds * 1000 + microseconds // 1000


class RedisCluster:
    """Three masters that share the slots; ``nodes[i]`` can be killed, paused and restarted alone.

    Args:
        folder: where their files lie; made if it does not exist.
        options: lines of redis.conf for each node.
    """

    def __init__(self, folder: Path, *, options: Mapping[str, str] = NOTHING) -> None:
        own = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", **options}
        self.nodes = [RedisServer(folder / f"node{i}", options=own) for i in range(CLUSTER_NODES)]

    @property
    def url(self) -> str:
        """What ``METERHOUSE_REDIS_URL`` takes."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> Self:
        """Start the nodes, share out the slots, and wait until every node knows all of it."""
        for node in self.nodes:
            node.start()
        first, share = self.nodes[0], -(-SLOTS // len(self.nodes))
        for index, node in enumerate(self.nodes):
            node.cli("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            node.cli("CLUSTER", "ADDSLOTSRANGE", index * share, min(SLOTS, (index + 1) * share) - 1)
        for node in self.nodes[1:]:
            first.cli("CLUSTER", "MEET", "127.0.0.1", node.port)
        self.wait_until_whole()
        return self

    def wait_until_whole(self) -> None:
        """Block until every node sees every node and slot."""
        wait_until(lambda: all(map(self._sees_all, self.nodes)), "a whole cluster")

    def node_of(self, key: str) -> RedisServer:
        """Return the node that holds this key."""
        slot = int(self.nodes[0].cli("CLUSTER", "KEYSLOT", key))
        return self.nodes[slot // -(-SLOTS // len(self.nodes))]

    def flush(self) -> None:
        """Forget all data and all scripts."""
        for node in self.nodes:
            node.flush()

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _sees_all(self, node: RedisServer) -> bool:
        lines = {*str(node.cli("CLUSTER", "INFO")).split()}
        links = str(node.cli("CLUSTER", "NODES")).count(" connected ")
        whole = {"cluster_state:ok", f"cluster_slots_ok:{SLOTS}", f"cluster_known_nodes:{len(self.nodes)}"}
        return whole <= lines and links == len(self.nodes)

"""The fake provider as a process of its own, which lives on when the gateway under test is killed.

Invariant: ``truth()`` reads the log file, so what is returned was on disk at that moment.
Not here: the provider itself (upstream).
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from fakes.truth import GroundTruth, read_truth

TESTS = Path(__file__).resolve().parent.parent


class UpstreamProcess:
    """``with UpstreamProcess(tmp_path / "upstream.log") as up:``; ends the process at the end."""

    def __init__(self, log_path: Path, *, port: int = 0) -> None:
        self.log_path = log_path
        self.port = port
        self.base_url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start the process and wait until it listens."""
        command = [sys.executable, "-m", "fakes.upstream", "--port", str(self.port), "--log", str(self.log_path)]
        self._process = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        ready = json.loads(self._process.stdout.readline())
        self.base_url, self.port = ready["base_url"], ready["port"]
        return self

    def stop(self) -> None:
        """End the process."""
        if not self._process:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process, "the provider is not running"
        return self._process.pid

    @property
    def ollama_url(self) -> str:
        """What an Ollama row takes."""
        return self.base_url.removesuffix("/v1")

    def truth(self) -> GroundTruth:
        """Read the log as it is now."""
        return read_truth(self.log_path)

    def state(self) -> dict[str, Any]:
        """How many attempts there were (``total``), and how many are open at each stage (``open``)."""
        state: dict[str, Any] = self._ask("state")
        return state

    def release(self, count: int | None = None, name: str = "") -> int:
        """Let go answers that are held now; returns how many."""
        return int(self._ask("release", {"count": count, "name": name})["released"])

    def wait_for(self, predicate: Callable[[dict[str, Any]], Any], timeout_seconds: float = 30) -> Any:
        """Block until the predicate of ``state()`` holds; raises AssertionError on timeout."""
        deadline = time.monotonic() + timeout_seconds
        while not (value := predicate(state := self.state())):
            assert time.monotonic() < deadline, f"not seen within {timeout_seconds} s; state: {state}"
            time.sleep(0.01)
        return value

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.ollama_url}/_fake/{what}", data=data, timeout=10) as answer:
            return json.loads(answer.read())

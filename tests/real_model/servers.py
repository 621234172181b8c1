"""The two model servers as processes of a test, each with the tiny model, and asked directly for comparison.

Invariant: nothing here reaches for a network; the hub's client is told that there is none.
"""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import openai

from fakes.daemon import Daemon, free_port
from fakes.gateway import MESSAGES, provider_environment
from plugins.real_model import VARIABLE

START_SECONDS = 120
MODEL = "meterhouse/tiny-llama"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def python() -> Path:
    """Return the Python that has PyTorch and the servers."""
    return Path(os.environ[VARIABLE])


def make_models(folder: Path) -> None:
    """Write the tiny model in both forms."""
    script = Path(__file__).with_name("make_models.py")
    environment = {**os.environ, **OFFLINE}
    made = subprocess.run([python(), script, folder], env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@dataclass(frozen=True)
class Kind:
    """What a server is, and what differs between the two."""

    row: str
    command: Callable[[Path, int], list[str]]
    reports_streams: bool
    """Whether a stream ends with the server's own counts."""
    environment: Callable[[Path], Mapping[str, str]] = lambda _: {}


def transformers_command(folder: Path, port: int) -> list[str]:
    del folder
    program = str(python().with_name("transformers"))
    return [program, "serve", MODEL, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]


def llamacpp_command(folder: Path, port: int) -> list[str]:
    options = {"model": folder / "tiny.gguf", "model_alias": MODEL, "host": "127.0.0.1", "port": port, "n_threads": 1}
    return [str(python()), "-m", "llama_cpp.server", *(w for k, v in options.items() for w in (f"--{k}", str(v)))]


TRANSFORMERS = Kind(
    "transformers",
    transformers_command,
    reports_streams=True,
    environment=lambda folder: {"HF_HUB_CACHE": str(folder / "hub"), "HF_HOME": str(folder / "home")},
)
LLAMACPP = Kind("llamacpp", llamacpp_command, reports_streams=False)
KINDS = (TRANSFORMERS, LLAMACPP)


class ModelServer:
    """``with ModelServer(kind, models, folder) as server:``; asked at ``base_url``."""

    def __init__(self, kind: Kind, models: Path, folder: Path, *options: str) -> None:
        self.kind = kind
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        environment = {**OFFLINE, **ONE_THREAD, **kind.environment(models)}
        self.daemon = Daemon([*kind.command(models, port), *options], folder / f"{kind.row}.log", environment)
        self.client: openai.OpenAI

    @property
    def environment(self) -> dict[str, str]:
        """What puts a gateway in front of it; the operator sets no more than its address."""
        (name, *_) = provider_environment(self.kind.row, self.base_url)
        return {name: self.base_url}

    @property
    def model(self) -> str:
        """What the gateway is asked for."""
        return f"{self.kind.row}/{MODEL}"

    def __enter__(self) -> Self:
        self.daemon.start(self._is_ready, START_SECONDS)
        self.client = openai.OpenAI(base_url=self.base_url, api_key="none", max_retries=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        # Neither of them promises an end while it answers.
        self.daemon.kill()

    def say(self, **fields: Any) -> Any:
        """Ask it directly, past the gateway, for an answer that is the same every time."""
        return self.client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, **fields)

    def listed(self) -> list[str]:
        """Return the names that it lists."""
        with urllib.request.urlopen(f"{self.base_url}/models", timeout=60) as answer:
            return [line["id"] for line in json.loads(answer.read())["data"]]

    def _is_ready(self) -> bool:
        time.sleep(0.2)
        with suppress(OSError):
            return bool(self.listed())
        return False

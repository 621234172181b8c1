"""``meterhouse dev``: what its first and second start say and keep, and what stops it from starting."""

import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cli.command import METERHOUSE, complaint, environment_of
from fakes.gateway import Gateway, http_request
from meterhouse.keys.secret import make


class Dev:
    """A running ``meterhouse dev``, its output in a file."""

    def __init__(self, folder: Path, number: int, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._out = folder / f"out-{number}"
        self._err = folder / f"err-{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [METERHOUSE, "dev", "--port", str(self.port), "--data", "data"],
                cwd=folder,
                env=environment_of(environment),
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self.process.poll() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        with suppress(OSError):
            return http_request(self.url, "GET", "/health/ready")[0] == 200
        return False


@contextmanager
def dev(folder: Path, number: int = 1, environment: dict[str, str] | None = None) -> Iterator[Dev]:
    running = Dev(folder, number, environment)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with dev(tmp_path_factory.mktemp("dev")) as running:
        yield running


def values_of(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def test_the_banner_says_where_everything_is(first: Dev) -> None:
    for name, value in (
        ("Base URL", f"{first.url}/v1"),
        ("API page", f"{first.url}/docs"),
        ("Health", f"{first.url}/health"),
        ("Providers", "simulator"),
        ("Models", r"\d+"),
    ):
        assert re.search(rf"^ *{name} +{value}$", first.out, re.MULTILINE), first.out


def test_the_curl_line_works_as_printed(first: Dev) -> None:
    (line,) = [line for line in first.out.splitlines() if line.startswith("curl ")]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("data: ")
    assert done.stdout.endswith("data: [DONE]\n\n")
    assert shlex.split(line)[0] == "curl"


def test_the_python_snippet_works_as_printed(first: Dev) -> None:
    lines = first.out.splitlines()
    start = lines.index("from openai import OpenAI")
    snippet = "\n".join(lines[start : start + 5])
    done = subprocess.run(
        [sys.executable, "-c", snippet], env=environment_of(), capture_output=True, text=True, timeout=20, check=True
    )
    assert len(done.stdout.split()) > 3
    assert done.stderr == ""


def test_the_keys_are_kept_in_a_file_for_the_owner_only(first: Dev) -> None:
    path = Path(f"/proc/{first.process.pid}/cwd").readlink() / "data" / "dev.env"
    values = values_of(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(values) == {"OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"}
    assert values["OPENAI_BASE_URL"] == f"{first.url}/v1"
    assert values["OPENAI_API_KEY"] in first.out
    assert values["OPENAI_ADMIN_KEY"] in first.out


def test_a_second_start_uses_the_keys_again_and_does_not_print_them(tmp_path: Path) -> None:
    path = tmp_path / "data" / "dev.env"
    with Gateway(tmp_path / "data"):
        before = values_of(path)
    with dev(tmp_path) as again:
        after = values_of(path)
        assert http_request(again.url, "GET", "/v1/models", key=before["OPENAI_API_KEY"])[0] == 200
        assert http_request(again.url, "GET", "/admin/keys", key=before["OPENAI_ADMIN_KEY"])[0] == 200
        assert again.stop() == 0
    assert after == {**before, "OPENAI_BASE_URL": f"{again.url}/v1"}
    assert before["OPENAI_API_KEY"] not in again.out + again.err
    assert "curl" not in again.out
    assert "Traceback" not in again.err


def test_our_own_values_in_openais_variables_switch_no_provider_on(tmp_path: Path) -> None:
    ours = {"OPENAI_API_KEY": make("dev").value, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    with Gateway(tmp_path / "data", ours) as gateway:
        health = http_request(gateway.url, "GET", "/health")[2]
        assert b'"providers":{"simulator":true}' in health
        assert ours["OPENAI_API_KEY"] not in gateway.log_path.read_text()


# --- what stops it from starting


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = complaint(tmp_path, "dev", "--port", str(port), "--data", "data")
    assert str(port) in line
    assert "--port" in line


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    assert port in complaint(tmp_path, "dev", f"--port={port}", "--data", "data")


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    assert "192.0.2.1" in complaint(tmp_path, "dev", "--host", "192.0.2.1", "--port", "0", "--data", "data")


@pytest.mark.parametrize("folder", ["file", "file/below", "link"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to("/proc/nowhere")
    assert folder in complaint(tmp_path, "dev", "--port", "0", "--data", folder)


@pytest.mark.parametrize("text", ["this is no assignment\n", "GOOD=1\nBAD LINE = = '\n", "A='unclosed\n"])
def test_a_broken_env_file(tmp_path: Path, text: str) -> None:
    (tmp_path / ".env").write_text(text)
    line = complaint(tmp_path, "dev", "--port", "0", "--data", "data")
    assert ".env" in line
    assert "line" in line
    assert "unclosed" not in line, "the value of a broken line may be a secret"


def test_an_env_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe\n")
    assert ".env" in complaint(tmp_path, "dev", "--port", "0", "--data", "data")
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert ".env" in complaint(tmp_path, "dev", "--port", "0", "--data", "data")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("METERHOUSE_SHIP_SECONDS", "soon"),
        ("METERHOUSE_SHIP_SECONDS", "-1"),
        ("METERHOUSE_LOG_LEVEL", "loud"),
        ("METERHOUSE_KEY_PEPPER", "short"),
        ("METERHOUSE_KEY_PEPPER", "1:short"),
        ("METERHOUSE_ADMIN_RATE", "often"),
        ("METERHOUSE_PROVIDER_MINE_BASE_URL", "not an address"),
    ],
)
def test_a_setting_that_cannot_work(tmp_path: Path, name: str, value: str) -> None:
    line = complaint(tmp_path, "dev", "--port", "0", "--data", "data", environment={name: value})
    assert name in line or name.split("_")[2].lower() in line


def test_a_folder_that_another_process_has(first: Dev, tmp_path: Path) -> None:
    data = str(Path(f"/proc/{first.process.pid}/cwd").readlink() / "data")
    line = complaint(tmp_path, "dev", "--port", "0", "--data", data)
    assert "running" in line
    assert http_request(first.url, "GET", "/health/ready")[0] == 200


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ledger.db").write_bytes(b"this is not a database" * 1000)
    complaint(tmp_path, "dev", "--port", "0", "--data", "data")

"""``infra/up``: the whole stack, from nothing to a streamed answer and down again; and what it says when it cannot."""

import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from dotenv import dotenv_values

from cli.command import environment_of
from fakes.daemon import free_port, is_alive
from fakes.gateway import MESSAGES
from fakes.nginx_server import ROOT

PACKAGE = ROOT / "platform" / "meterhouse"
PORTS = ("https", "http", "postgres", "redis", "console")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may enter, as the users of PostgreSQL and nginx must when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="mh-up-"))
    path.chmod(0o755)
    yield path
    up(path / "up", "--down")
    shutil.rmtree(path)


def up(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "infra" / "up", "--data", folder, *words]
    environment = environment_of({"NOT_OURS": "1"})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)


def pids(folder: Path) -> dict[str, int]:
    status = up(folder, "--status").stdout
    return {name: int(pid) for name, pid in re.findall(r"^(\w+) +running +pid (\d+) .* well$", status, re.MULTILINE)}


def test_from_nothing_to_an_answer_and_down_again(folder: Path) -> None:
    home = folder / "up"
    made = up(home, *(word for name in PORTS for word in (f"--{name}-port", str(free_port()))))
    assert made.returncode == 0, made.stderr
    assert "Base URL   https://localhost:" in made.stdout
    keys = dotenv_values(home / "keys.env")
    assert f"Key        {keys['OPENAI_API_KEY']}" in made.stdout
    running = pids(home)
    assert set(running) == {"postgres", "redis", "gateway", "nginx", "console"}
    for name in ("keys.env", "gateway.env", "migrate.env", "secrets.json", "tls/server.key"):
        assert (home / name).stat().st_mode & 0o077 == 0
    assert home.joinpath("run", "gateway.sock").stat().st_mode & 0o777 == 0o660

    with client_of(home) as client:
        stream = client.chat.completions.create(model="simulator-instant", messages=MESSAGES, stream=True)
        assert stream.response.headers.get("x-meterhouse-degraded") is None
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert client.models.list().data

    # What was killed is started again, and nothing else.
    os.kill(running["nginx"], signal.SIGKILL)
    again = up(home)
    assert again.returncode == 0, again.stderr
    assert re.findall(r"Starting (\w+)", again.stderr) == ["nginx"]
    assert (keys["OPENAI_API_KEY"] or "") not in again.stdout
    mended = pids(home)
    assert {name for name in mended if mended[name] != running[name]} == {"nginx"}
    with client_of(home) as client:
        assert client.chat.completions.create(model="simulator-instant", messages=MESSAGES).usage

    down = up(home, "--down")
    assert (down.returncode, down.stdout) == (0, "Everything has ended.\n"), down.stderr
    assert re.findall(r"Ending (\w+)", down.stderr) == ["console", "gateway", "nginx", "redis", "postgres"]
    assert not any(map(is_alive, mended.values()))
    text = (home / "log" / "gateway.log").read_text()
    assert "NOPERM" not in text
    assert "meter.lost" not in text.partition("meter.returned")[0]


def client_of(home: Path) -> openai.OpenAI:
    """The official SDK, which takes everything from the file of keys."""
    keys = dotenv_values(home / "keys.env")
    trust = ssl.create_default_context(cafile=keys["SSL_CERT_FILE"])
    return openai.OpenAI(
        base_url=keys["OPENAI_BASE_URL"],
        api_key=keys["OPENAI_API_KEY"],
        http_client=httpx2.Client(verify=trust),
        max_retries=0,
    )


def test_what_cannot_work_is_one_line(folder: Path) -> None:
    assert up(folder / "up", "--status").returncode == 1
    assert up(folder / "up", "--down").stdout == f"Nothing runs in {folder / 'up'}.\n"
    long = up(folder / ("x" * 90))
    assert long.returncode == 2
    assert "--data" in long.stderr
    if os.geteuid() == 0:
        (folder / "closed").mkdir(mode=0o700)
        closed = up(folder / "closed" / "up")
        assert closed.returncode == 2
        assert "postgres" in closed.stderr
        assert "--data" in closed.stderr
    assert "--down" in up(folder, "--help").stdout


def test_without_root_the_packages_to_install_are_named(tmp_path: Path) -> None:
    nothing = "type() { return 1; }; sudo() { return 1; }"
    script = f"source {ROOT}/infra/setup.sh; {nothing}; set_up_servers redis-server nginx"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: this needs redis-server nginx; as an administrator (Debian, Ubuntu): "
        "sudo apt-get install redis-server nginx\n"
    )


# --- what the gateway's user of Redis may do


def granted() -> set[str]:
    text = (ROOT / "infra" / "stack" / "redis.acl").read_text()
    return {word[1:] for word in text.split() if word.startswith("+")}


def test_the_user_of_redis_may_do_all_that_the_code_asks_for() -> None:
    asked = set()
    for path in PACKAGE.rglob("*.lua"):
        asked |= {name.lower() for name in re.findall(r"""call\(['"](\w+)['"]""", path.read_text())}
    for path in PACKAGE.rglob("*.py"):
        asked |= {name.lower() for name in re.findall(r"""command\(\s*["']([A-Z]+)["']""", path.read_text())}
    # What redis-py sends for the mirror and the notices, what slowapi's storage does, and the lane's own.
    asked |= {"set", "get", "mget", "publish", "subscribe", "unsubscribe", "ping", "select", "evalsha", "script|load"}
    asked |= {"incrby", "ttl"}
    assert asked - granted() == set()
    of_a_cluster, of_the_version_before = {"asking", "cluster|slots", "cluster|nodes", "command"}, {"pexpire"}
    assert granted() - asked == of_a_cluster | of_the_version_before


def test_the_user_of_redis_may_do_nothing_that_loses_or_changes_more() -> None:
    forbidden = {"eval", "config", "script|flush", "script", "flushall", "flushdb", "keys", "debug", "acl", "shutdown"}
    assert not granted() & forbidden
    assert "user default off" in (ROOT / "infra" / "stack" / "redis.acl").read_text()

"""The image and the compose file, as far as they can be shown without a container engine.

Run here: the build's steps in a clean folder, the scripts that start Redis and nginx in their containers, and the
health check. Only checked: docker-compose.yml against the schema of the Compose specification, and that what it and
the Dockerfile name is there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from architecture.tree import ROOT
from fakes.daemon import Daemon, free_port
from fakes.fleet import ServeProcess
from meterhouse.db.schema import newest_revision
from meterhouse.settings import Settings
from meterhouse.stores import MIGRATIONS

COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()
INFRA = ROOT / "infra"
NOT_SETTINGS = {"METERHOUSE_PASSWORD", "METERHOUSE_OWNER_PASSWORD", "METERHOUSE_REDIS_PASSWORD"}
MADE_BY_THE_OPERATOR = {"./tls"}


def test_the_compose_file_is_one() -> None:
    checker = Path(sys.executable).parent / "check-jsonschema"
    words = [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_compose_file_names_is_there() -> None:
    sources = set(re.findall(r"^      - (\./[^:]+):", COMPOSE, re.MULTILINE))
    assert sources >= MADE_BY_THE_OPERATOR
    assert [source for source in sources - MADE_BY_THE_OPERATOR if not (ROOT / source).exists()] == []
    settings = {f"METERHOUSE_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"^      (METERHOUSE_\w+):", COMPOSE, re.MULTILINE))
    assert {name for name in named if not name.startswith("METERHOUSE_PROVIDER_")} <= settings | NOT_SETTINGS
    stages = set(re.findall(r"^FROM .* AS (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"target: (\w+)", COMPOSE)) == stages - {"build"}
    services = set(re.findall(r"^  (\w+):\n    (?:<<|image)", COMPOSE, re.MULTILINE))
    watching = {"collector", "tempo", "prometheus", "grafana"}
    assert services == {"postgres", "redis", "migrate", "gateway", "nginx"} | watching
    for name in watching:
        service = COMPOSE.split(f"\n  {name}:\n")[1].split("\n\n")[0]
        assert "profiles: [observability]" in service


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    for source in (word for words in copied for word in words):
        assert (ROOT / source).exists()
        assert source.split("/")[0] in kept


def test_nothing_runs_as_root_and_everything_has_a_health_check() -> None:
    for stage in DOCKERFILE.split("\nFROM ")[2:]:
        assert re.search(r"^USER [1-9]\d*:\d+$", stage, re.MULTILINE)
        assert re.search(r"^HEALTHCHECK ", stage, re.MULTILINE)
    assert COMPOSE.count("read_only: true") == 1
    assert COMPOSE.count("<<: *closed") == 7
    assert COMPOSE.count("<<: *gateway") == 2


def test_the_secrets_are_those_that_the_compose_file_asks_for() -> None:
    text = subprocess.run([INFRA / "secrets"], capture_output=True, text=True, check=True).stdout
    made = dict(line.split("=", 1) for line in text.splitlines())
    assert set(made) == set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    assert len(set(made.values())) == len(made)
    assert all(len(value) >= 48 for value in made.values())


# --- the steps of the build


def build(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INFRA / "build", *words, folder], capture_output=True, text=True, check=False)


def test_the_code_that_is_built_in_a_clean_folder_works_there(tmp_path: Path) -> None:
    done = build(tmp_path / "built", "--without-packages")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "built").rglob("__pycache__"))
    code = (
        "from meterhouse.stores import MIGRATIONS; from meterhouse.db.schema import newest_revision; "
        "from meterhouse.limits.scripts import load_scripts; load_scripts(); "
        "print(MIGRATIONS, newest_revision(MIGRATIONS))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "built" / "platform")}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert out.split() == [str(tmp_path / "built" / "alembic"), newest_revision(MIGRATIONS)]
    assert build(tmp_path / "built").returncode == 2, "a folder that is not empty"


@pytest.mark.slow_fault
@pytest.mark.timeout(600)
def test_the_whole_build_in_a_clean_folder(tmp_path: Path) -> None:
    done = build(tmp_path / "built")
    assert done.returncode == 0, done.stderr
    command = [tmp_path / "built" / ".venv" / "bin" / "meterhouse", "check", "--data", tmp_path / "data"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_the_health_check(fleet: ServeProcess, socket_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, INFRA / "stack" / "health.py"]
    assert fleet.serving()
    assert subprocess.run([*command, socket_path], check=False).returncode == 0
    assert subprocess.run([*command, tmp_path / "nobody.sock"], check=False).returncode == 1


# --- how the containers start


def moved(name: str, folder: Path, places: dict[str, Path]) -> Path:
    """Return a copy of a start script that finds in a folder what it finds elsewhere in a container."""
    text = (INFRA / "stack" / name).read_text()
    for place, here in places.items():
        assert place in text
        text = text.replace(place, str(here))
    script = folder / name
    script.write_text(text)
    script.chmod(0o755)
    return script


def test_redis_starts_with_the_password_of_the_environment(tmp_path: Path) -> None:
    script = moved(
        "start-redis",
        tmp_path,
        {"/etc/meterhouse": INFRA / "stack", "/tmp/users.acl": tmp_path / "users.acl", "/data": tmp_path},
    )
    port = free_port()
    environment = {"METERHOUSE_REDIS_PASSWORD": "of-the-environment"}
    daemon = Daemon([str(script), "--port", str(port)], tmp_path / "log", environment)

    def ask(**who: str) -> object:
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **who) as client:
            return client.ping()

    def is_there() -> bool:
        try:
            return bool(ask(username="meterhouse", password="of-the-environment"))
        except redis.ConnectionError:
            return False

    daemon.start(is_there)
    try:
        for who in ({}, {"username": "meterhouse", "password": "another"}):
            with pytest.raises(redis.AuthenticationError):
                ask(**who)
        assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0
        assert (tmp_path / "appendonlydir").is_dir()
    finally:
        daemon.kill()


def test_nginx_starts_with_the_names_of_the_environment(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    script = moved("start-nginx", tmp_path, {"/tmp/nginx.conf": conf, "/opt/meterhouse": ROOT})
    fake = tmp_path / "nginx"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAMES": "a.example b.example", "OPERATORS": "192.0.2.7"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["-c", str(conf)]
    text = conf.read_text()
    assert text.count("server_name a.example b.example;") == 2
    assert "192.0.2.7 1;" in text
    assert "listen 8443 ssl http2 default_server" in text

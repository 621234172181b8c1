"""nginx.conf is valid as it is shipped, and ``infra/nginx-conf`` changes what it is told to and nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fakes.daemon import find_program, free_port
from fakes.nginx_server import ROOT

SHIPPED = (ROOT / "nginx.conf").read_text()
MARK = re.compile(r"\s+# (?:set|each) [A-Z_]+=.*$", re.MULTILINE)


def render(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "infra" / "nginx-conf", *words], capture_output=True, text=True, check=False)


def test_it_is_valid_beside_a_certificate(tmp_path: Path) -> None:
    for folder in ("temp", "acme"):
        (tmp_path / folder).mkdir()
    subprocess.run([ROOT / "infra" / "tls", "--out", tmp_path / "tls"], check=True, capture_output=True)
    mine = (
        f"PID={tmp_path}/nginx.pid",
        "ERRORS=stderr",
        f"ACCESS={tmp_path}/access.log",
        f"TEMP={tmp_path}/temp",
        f"HTTP=127.0.0.1:{free_port()}",
        f"HTTPS=127.0.0.1:{free_port()}",
    )
    (tmp_path / "nginx.conf").write_text(render(*mine).stdout)
    done = subprocess.run(
        [find_program("nginx", "nginx"), "-t", "-c", tmp_path / "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "test is successful" in done.stderr
    # As another user than root, whose workers cannot be somebody else, nginx says only this.
    assert not [line for line in done.stderr.splitlines() if "[warn]" in line and '"user" directive' not in line]


def test_without_values_only_the_marks_are_gone() -> None:
    assert render().stdout == MARK.sub("", SHIPPED)


def test_every_default_that_is_named_stands_in_its_line() -> None:
    for line in SHIPPED.splitlines():
        if found := re.search(r"^(.*\S)\s+# (?:set|each) [A-Z_]+=(.*)$", line):
            assert found[1].count(found[2]) == 1, line


def test_one_value_and_several() -> None:
    text = render(
        "NAMES=one.example two.example", "OPERATORS=10.0.0.0/8 2001:db8::/32 192.0.2.7", "BODY_BYTES=7"
    ).stdout
    assert text.count("server_name one.example two.example;") == 2
    assert re.findall(r"^        (\S+) 1;$", text, re.MULTILINE) == ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]
    assert "client_max_body_size 7;" in text
    assert "api.example.com" not in text


@pytest.mark.parametrize(
    "word", ["SOCKET=/a;b", "NAMES=a{", "ACME=", "OPERATORS=1 1;\n2", "NOBODY=1", "names=a", 'KEY="k"', "KEY"]
)
def test_a_value_that_would_be_more_than_a_value_is_refused(word: str) -> None:
    done = render(word)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") <= 2


def test_help_and_the_list_of_names() -> None:
    assert "infra/nginx-conf [NAME=VALUE ...]" in render("--help").stdout
    assert "BODY_BYTES=20971520" in render("--list").stdout.splitlines()


# --- the certificate for development


def make(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [ROOT / "infra" / "tls", "--out", folder, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_certificate_is_made_once_and_its_keys_are_closed(tmp_path: Path) -> None:
    make(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {"ca.pem", "ca.key", "server.pem", "server.key"}
    assert "is good" in make(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "server.pem": 0o644, "server.key": 0o600}


def test_another_name_makes_another_certificate_of_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path)
    authority, server = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "server.pem").read_bytes()
    make(tmp_path, "api.example.com", "192.0.2.1")
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "server.pem").read_bytes() != server
    assert "is good" in make(tmp_path, "192.0.2.1", "api.example.com")


def test_what_was_half_made_is_made_again(tmp_path: Path) -> None:
    make(tmp_path)
    shutil.copy(tmp_path / "server.key", tmp_path / "ca.key")
    assert "Made" in make(tmp_path)
    assert "is good" in make(tmp_path)


@pytest.mark.parametrize("word", ["--nothing", "a b", "a/b", "--out"])
def test_a_name_that_is_none(tmp_path: Path, word: str) -> None:
    done = subprocess.run([ROOT / "infra" / "tls", word], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert not list(tmp_path.iterdir())

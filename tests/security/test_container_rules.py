"""Containers: the rules of hadolint and of the compose file that matter for what an intruder could do in one.

hadolint itself comes with no package manager that this project uses, so its rules are named where one is followed.
"""

import re
from typing import Any

import pytest
import yaml

from architecture.tree import ROOT

DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
STEPS = [tuple(line.split(None, 1)) for line in LINES if line.strip()]
WRITES = {"postgres"}
"""Whose image writes to its own root file system."""


def arguments(word: str) -> list[str]:
    return [rest for first, rest in STEPS if first == word]


def test_every_image_has_a_version() -> None:
    """DL3006, DL3007."""
    images = [rest.split()[0] for rest in arguments("FROM")]
    images += [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    for image in images:
        assert re.search(r":v?\d[\w.-]*$", image), image
        assert not image.endswith("latest")


def test_nothing_is_fetched_unseen() -> None:
    """DL3020, DL4001, DL3008: packages come from Debian's signed archive, without what is only recommended."""
    assert not arguments("ADD")
    for run in arguments("RUN"):
        assert not re.search(r"\b(curl|wget)\s+-|\|\s*(ba)?sh|pip install(?!.*--require-hashes)|sudo", run), run
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run


def test_no_secret_is_baked_in() -> None:
    assert not arguments("ARG")
    for env in arguments("ENV"):
        assert not re.search(r"(PASSWORD|SECRET|TOKEN|PEPPER|API_KEY)", env), env
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for line in re.findall(r"(?:PASSWORD|PEPPER|API_KEY)\w*: (.+)", text):
        assert line.startswith("${"), line


def test_commands_are_run_without_a_shell() -> None:
    """DL3025."""
    for word in ("CMD", "ENTRYPOINT"):
        for rest in arguments(word):
            assert rest.startswith("["), rest


def test_the_last_user_of_each_stage_that_runs_has_no_rights() -> None:
    """DL3002."""
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]:
        users = re.findall(r"^USER (\S+)", stage, re.MULTILINE)
        assert re.fullmatch(r"[1-9]\d*:\d+", users[-1])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_can_do_no_more_than_it_must(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"]["core"] == 0, "a core dump holds keys and prompts"
    assert not service.get("privileged")
    assert not {"cap_add", "devices", "pid", "ipc", "network_mode", "userns_mode"} & service.keys()
    assert "docker.sock" not in str(service)
    if name not in WRITES:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["pids_limit"] > 0


def test_only_the_edge_is_reached_from_outside() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if service.get("ports")}
    assert set(published) == {"nginx", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published["grafana"])
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis"):
        assert COMPOSE["services"][name]["networks"] == ["inside"]


def test_the_shipped_nginx_conf_avoids_what_nginx_got_wrong_this_year() -> None:
    """CVE-2026-42945 and -9256 (unnamed captures), -42926 (HTTP/2 to an upstream), -1642 (its TLS)."""
    conf = re.sub(r"#.*", "", (ROOT / "nginx.conf").read_text(encoding="utf-8"))
    assert not re.search(r"\$\d", conf), "an unnamed capture"
    assert not re.search(r"^\s*rewrite\b", conf, re.MULTILINE)
    assert not re.search(r"\((?!\?)", "".join(re.findall(r'"~[^"]*"', conf))), "a group without a name"
    assert re.findall(r"^\s*server (\S+) max_fails", conf, re.MULTILINE) == ["unix:/run/meterhouse/gateway.sock"]
    assert set(re.findall(r"proxy_http_version ([\d.]+);", conf)) == {"1.1"}
    assert set(re.findall(r"proxy_pass (\S+);", conf)) == {"http://gateway"}
    assert not re.search(r"quic|http3|ssl_stapling on|autoindex on|alias\b", conf)

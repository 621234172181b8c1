"""``meterhouse check`` on real PostgreSQL and Redis: a deployment that is in order, and each thing that is not."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.command import run
from fakes.fleet import PEPPER
from fakes.nginx_server import ROOT
from fakes.pooler import Pooler
from fakes.servers import PASSWORD, PostgresServer, RedisCluster, RedisServer
from fakes.store import migrate
from meterhouse.checkup.conf import ConfError, bytes_of, find_places, read_conf, seconds_of
from meterhouse.checkup.stores import REDIS_EXCESS, REDIS_PROBES

ACL = (ROOT / "infra" / "stack" / "redis.acl").read_text()
CONF = (ROOT / "nginx.conf").read_text()
SECRET = "redis-password-canary"


@dataclass
class Site:
    """A deployment in a folder: its settings, and its nginx.conf with a certificate beside it."""

    folder: Path
    settings: dict[str, str]

    def check(self, *words: str, **changes: str) -> tuple[int, list[tuple[str, str, str]]]:
        """Return the exit status and the lines: state, subject, text."""
        conf = self.folder / "nginx.conf"
        shown = ["--nginx", str(conf)] if conf.exists() else []
        done = run(self.folder, "check", "--workers", "2", *shown, *words, environment={**self.settings, **changes})
        assert SECRET not in done.out + done.err
        assert PASSWORD not in done.out + done.err
        lines = re.findall(r"^ (ok|warning|failed) +(\S+(?: \S+)*)  +(.*?) *$", done.out, re.MULTILINE)
        assert done.status in {0, 2}, done
        return done.status, lines

    def bad(self, *words: str, **changes: str) -> list[str]:
        """Return the lines that are not in order, as one text each."""
        _, lines = self.check(*words, **changes)
        return [f"{state} {subject}: {text}" for state, subject, text in lines if state != "ok"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    words = [ROOT / "infra" / "tls", "--out", folder, "api.example.com"]
    subprocess.run(words, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis as infra/up runs it, whose default user stays on for the tests' own commands."""
    folder = tmp_path_factory.mktemp("redis")
    with RedisServer(folder, options={"maxmemory-policy": "noeviction"}, appendonly=True) as server:
        rule = ACL.splitlines()[1].replace("PASSWORD_SHA256", hashlib.sha256(SECRET.encode()).hexdigest())
        server.cli("ACL", "SETUSER", *rule.split()[1:])
        yield server


@pytest.fixture(scope="module")
def database_url(postgres_server: PostgresServer) -> str:
    """One for all, with the newest schema: nobody who only looks at it changes it, and making one takes its time."""
    url = postgres_server.create_database()
    migrate(url)
    return url


@pytest.fixture
def site(tmp_path: Path, redis: RedisServer, database_url: str, certificates: Path) -> Site:
    shutil.copytree(certificates, tmp_path / "tls")
    (tmp_path / "nginx.conf").write_text(CONF)
    return Site(
        tmp_path,
        {
            "METERHOUSE_DATABASE_URL": database_url,
            "METERHOUSE_REDIS_URL": redis.url.replace("redis://", f"redis://meterhouse:{SECRET}@"),
            "METERHOUSE_KEY_PEPPER": PEPPER,
            "METERHOUSE_JOURNAL_MAX_BYTES": str(1 << 20),
        },
    )


def test_a_deployment_in_order(site: Site, postgres_server: PostgresServer) -> None:
    owner_url = site.settings["METERHOUSE_DATABASE_URL"]
    name = owner_url.rpartition("/")[2]
    postgres_server.execute(
        f"CREATE ROLE application LOGIN PASSWORD '{PASSWORD}'; GRANT CONNECT ON DATABASE {name} TO application"
    )
    urls = {
        "METERHOUSE_DATABASE_URL": owner_url.replace("meterhouse:", "application:", 1),
        "METERHOUSE_MIGRATION_DATABASE_URL": owner_url,
    }
    assert run(site.folder, "migrate", environment={**site.settings, **urls}).status == 0
    status, lines = site.check(**urls)
    assert status == 0
    assert [line for line in lines if line[0] != "ok"] == []
    assert {subject for _, subject, _ in lines} >= {
        "settings", "PostgreSQL", "database session", "database role", "connections", "schema", "Redis", "Redis user",
        "clock", "journal folder", "disk", "open files", "nginx", "certificate",
    }  # fmt: skip
    assert not (site.folder / ".meterhouse").exists(), "a look changes nothing"
    assert len(lines) > 20


def test_the_owner_of_the_schema_is_a_warning(site: Site) -> None:
    assert site.check()[0] == 0
    (line,) = site.bad()
    assert line.startswith("warning database role: 'meterhouse' may delete")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"METERHOUSE_DATABASE_URL": "postgresql://a:b@127.0.0.1:1/c"}, "failed PostgreSQL: "),
        ({"METERHOUSE_REDIS_URL": "redis://127.0.0.1:1"}, "failed Redis: it cannot be asked"),
        ({"METERHOUSE_KEY_PEPPER": ""}, "failed settings: METERHOUSE_KEY_PEPPER"),
        ({"METERHOUSE_KEY_PEPPER_VERSION": "2"}, "failed settings: METERHOUSE_KEY_PEPPER_VERSION"),
        ({"METERHOUSE_LEASE_SECONDS": "30"}, "failed settings: METERHOUSE_LEASE_SECONDS"),
        ({"METERHOUSE_SWEEP_SECONDS": "40"}, "failed settings: METERHOUSE_LEASE_SECONDS"),
        ({"METERHOUSE_GRACEFUL_SECONDS": "60"}, "failed settings: METERHOUSE_GRACEFUL_SECONDS"),
        ({"METERHOUSE_REDIS_URL": ""}, "failed settings: METERHOUSE_REDIS_URL"),
        ({"METERHOUSE_MIGRATION_DATABASE_URL": "postgresql://a:postgres@h/c"}, "failed settings: METERHOUSE_MIG"),
        ({"METERHOUSE_SMTP_HOST": "mail.example"}, "failed settings: METERHOUSE_SMTP_SENDER"),
        ({"METERHOUSE_CLOUDEVENTS_URL": "nowhere"}, "failed settings: METERHOUSE_CLOUDEVENTS_URL"),
        ({"METERHOUSE_OTLP_HEADERS": "nothing"}, "failed settings: METERHOUSE_OTLP_HEADERS"),
        ({"METERHOUSE_OIDC_ISSUER": "https://login.example"}, "failed settings: METERHOUSE_OIDC_AUDIENCE"),
        ({"METERHOUSE_HOSTS": "100"}, "failed connections: "),
        ({"METERHOUSE_HOSTS": "5"}, "warning connections: "),
        ({"METERHOUSE_DATA": "nginx.conf"}, "failed journal folder: "),
        ({"METERHOUSE_JOURNAL_MAX_BYTES": str(1 << 60)}, "warning disk: "),
        ({"METERHOUSE_JOURNAL_SEGMENT_BYTES": str(1 << 50)}, "failed disk: "),
        ({"METERHOUSE_MAX_BODY_BYTES": "20971521"}, "failed nginx: client_max_body_size"),
        ({"METERHOUSE_TOTAL_TIMEOUT_SECONDS": "910"}, "failed nginx: proxy_read_timeout"),
    ],
)
def test_what_is_not_in_order_is_named(site: Site, changes: dict[str, str], line: str) -> None:
    status, lines = site.check(**changes)
    assert status == (2 if line.startswith("failed") else 0)
    assert any(f"{state} {subject}: {text}".startswith(line) for state, subject, text in lines), lines


DROPPED = (
    "statement_timeout, lock_timeout, idle_in_transaction_session_timeout, jit, "
    "tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count"
)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("pool_mode = session", "failed PostgreSQL: "),
        (f"pool_mode = session\nignore_startup_parameters = {DROPPED}", "failed database session: "),
        (f"pool_mode = transaction\nignore_startup_parameters = {DROPPED}", "failed database session: "),
    ],
)
def test_a_pooler_that_drops_the_bounds_of_a_session(site: Site, lines: str, found: str) -> None:
    with Pooler(site.folder, site.settings["METERHOUSE_DATABASE_URL"], lines) as pooler:
        (line,) = (line for line in site.bad(METERHOUSE_DATABASE_URL=pooler.url) if line.startswith("failed"))
    assert line.startswith(found)
    assert "PostgreSQL's own address" in line


def test_a_pepper_that_is_still_needed(site: Site, migrated_database_url: str) -> None:
    site.settings["METERHOUSE_DATABASE_URL"] = migrated_database_url
    second = "2:" + "second-pepper-of-the-tests-0123456789abcdef"

    def pepper(**changes: str) -> tuple[str, str]:
        _, lines = site.check(**changes)
        return next((state, text) for state, subject, text in lines if subject == "pepper")

    assert run(site.folder, "keys", "create-admin", "--name", "one", environment=site.settings).status == 0
    assert pepper() == ("ok", "1 is in use; 1 keys are hashed with version 1.")
    assert pepper(METERHOUSE_KEY_PEPPER=f"{PEPPER},{second}", METERHOUSE_KEY_PEPPER_VERSION="1")[0] == "ok"
    state, text = pepper(METERHOUSE_KEY_PEPPER=f"{PEPPER},{second}")
    assert state == "warning"
    assert "rotate or revoke" in text
    assert pepper(METERHOUSE_KEY_PEPPER=second)[0] == "failed"


def test_a_schema_that_is_behind(site: Site, postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database()
    assert any("run `meterhouse migrate`" in line for line in site.bad(METERHOUSE_DATABASE_URL=url))


def test_rights_of_redis_that_are_missing_or_too_many(site: Site, redis: RedisServer) -> None:
    redis.cli("ACL", "SETUSER", "meterhouse", "-publish", "-script|load", "+eval")
    try:
        bad = site.bad()
        assert site.check()[0] == 2
    finally:
        redis.cli("ACL", "SETUSER", "meterhouse", "+publish", "+script|load", "-eval")
    assert any(line.startswith("failed Redis user: it may not SCRIPT LOAD, PUBLISH") for line in bad)
    assert any(line.startswith("warning Redis user: it may also EVAL") for line in bad)
    assert redis.cli("KEYS", "mh:check:*") == []


def test_a_redis_that_evicts_or_forgets(site: Site, redis: RedisServer) -> None:
    redis.cli("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru", "appendonly", "no")
    try:
        bad = site.bad()
    finally:
        redis.cli("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction", "appendonly", "yes")
    assert any(line.startswith("failed Redis: maxmemory-policy is allkeys-lru") for line in bad)
    assert any(line.startswith("warning Redis: it has no AOF") for line in bad)


def test_every_server_of_a_cluster_is_looked_at(site: Site, redis_cluster: RedisCluster) -> None:
    _, lines = site.check(METERHOUSE_REDIS_URL=redis_cluster.url)
    for node in redis_cluster.nodes:
        assert sum(subject == f"Redis 127.0.0.1:{node.port}" for _, subject, _ in lines) == 3
    assert ("ok", "Redis user", "it may do all that is needed.") in lines


def test_a_clock_that_is_wrong(site: Site, timed_redis_server: RedisServer) -> None:
    timed_redis_server.advance_ms(60_000)
    bad = site.bad(METERHOUSE_REDIS_URL=timed_redis_server.url)
    assert any(line.startswith("failed clock: Redis's is") for line in bad)


def test_the_probes_are_what_the_users_rights_are() -> None:
    granted = {word[1:].upper().replace("|", " ") for word in ACL.split() if word.startswith("+")}
    unprobed = {"INFO", "SELECT", "SUBSCRIBE", "UNSUBSCRIBE", "CLUSTER SLOTS", "CLUSTER NODES", "ASKING", "COMMAND"}
    assert set(REDIS_PROBES) == granted - unprobed
    assert not set(REDIS_EXCESS) & granted


# --- nginx and its certificate


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("keepalive_timeout 5s;", "keepalive_timeout 6s;", "keepalive_timeout of upstream gateway is 6 s"),
        ("        keepalive_timeout 5s;\n", "", "keepalive_timeout of upstream gateway is 60 s"),
        ("keepalive 64;", "", "upstream gateway has no keepalive"),
        ("proxy_read_timeout 910s;", "proxy_read_timeout 15m;", "proxy_read_timeout is 900 s"),
        ("proxy_read_timeout 910s;", "", "proxy_read_timeout is 60 s"),
        ("worker_shutdown_timeout 910s;", "worker_shutdown_timeout 2m;", "worker_shutdown_timeout is 2m"),
        (
            "client_max_body_size 20971520;",
            "client_max_body_size 20M;client_max_body_size 1M;",
            "client_max_body_size is",
        ),
        ("proxy_next_upstream off;", "", "proxy_next_upstream is nginx's default"),
        ("proxy_next_upstream off;", "proxy_next_upstream error timeout;", "proxy_next_upstream is error"),
        ("proxy_buffering off;", "proxy_buffering on;", "proxy_buffering is on"),
        ("X-Forwarded-For $remote_addr", "X-Forwarded-For $proxy_add_x_forwarded_for", "X-Forwarded-For is not"),
        ("location ^~ /metrics {", "location ^~ /metrics { proxy_set_header Host $host;", "X-Forwarded-For is not"),
        ("location /v1/ {", "location /v1/ { proxy_read_timeout 30s;", "proxy_read_timeout is 30 s"),
        ("proxy_pass http://gateway;", "", "it passes no request on"),
        ("http {", "http {{", "stands where it cannot"),
        ("proxy_read_timeout 910s;", "proxy_read_timeout soon;", "'soon' is no duration"),
        ("server.pem", "other.pem", "cannot be read"),
        ("server_name api.example.com;", "server_name api.example.com other.example;", "is not good for other.example"),
    ],
)
def test_an_order_that_is_broken(tmp_path: Path, certificates: Path, old: str, new: str, line: str) -> None:
    assert old in CONF
    (tmp_path / "nginx.conf").write_text(CONF.replace(old, new).replace("tls/", f"{certificates}/"))
    bad = Site(tmp_path, {}).bad()
    assert any(line in found for found in bad), bad


def test_a_certificate_that_ends_ended_or_has_another_key(tmp_path: Path) -> None:
    site = Site(tmp_path, {})
    folder = tmp_path / "tls"
    for days, word in (("1", "ends on"), ("-1", "renew it")):
        make_certificate(folder, days)
        assert any(word in line for line in site.bad("--certificate", str(folder / "server.pem"))), days
    (tmp_path / "nginx.conf").write_text(CONF)
    make_certificate(folder, "100", key="other.key")
    assert any("is not the key of" in line for line in site.bad())


def make_certificate(folder: Path, days: str, key: str = "server.key") -> None:
    folder.mkdir(exist_ok=True)
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    names = ["-subj", "/CN=api.example.com", "-addext", "subjectAltName=DNS:api.example.com"]
    out = ["-keyout", str(folder / key), "-out", str(folder / "server.pem")]
    if days.startswith("-"):
        request = [*new[:2], *new[3:], *names[:2], *out[:2], "-out", str(folder / "r")]
        subprocess.run(request, check=True, capture_output=True)
        sign = ["openssl", "x509", "-req", "-in", str(folder / "r"), "-signkey", str(folder / key)]
        subprocess.run([*sign, *out[2:], "-days", days], check=True, capture_output=True)
        return
    subprocess.run([*new, *names, *out, "-days", days], check=True, capture_output=True)


def test_the_wildcard_of_a_domain_is_good_for_its_hosts(tmp_path: Path) -> None:
    words = [ROOT / "infra" / "tls", "--out", tmp_path / "tls", "*.example.org"]
    subprocess.run(words, check=True, capture_output=True)
    text = CONF.replace("server_name api.example.com;", "server_name eu.example.org;")
    (tmp_path / "nginx.conf").write_text(text)
    assert Site(tmp_path, {}).check()[0] == 0


# --- reading nginx.conf


def test_reading_words_quotes_comments_and_includes(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.conf").write_text(
        'server { location / { proxy_pass http://x; a \'b; {c}\' "d\\"e" ""; } }'
    )
    (tmp_path / "nginx.conf").write_text("# one; {\nhttp { proxy_read_timeout 1m30s; include parts/*.conf; }\n")
    (place,) = find_places(read_conf(tmp_path / "nginx.conf"))
    assert place.passes_to == "http://x"
    assert place.in_force["a"] == [["b; {c}", 'd\\"e', ""]]
    assert seconds_of(place.value("proxy_read_timeout", "")) == 90
    assert place.value("other", "default") == "default"


@pytest.mark.parametrize("text", ["a", "a {", "}", "a; }", ";", "a { b }", "a 'b", "include nginx.conf;"])
def test_what_is_no_conf(tmp_path: Path, text: str) -> None:
    (tmp_path / "nginx.conf").write_text(text)
    with pytest.raises(ConfError):
        read_conf(tmp_path / "nginx.conf")


def test_sizes_and_durations() -> None:
    assert [bytes_of(text) for text in ("0", "1k", "20M", "1g", "7")] == [0, 1024, 20 << 20, 1 << 30, 7]
    assert [seconds_of(text) for text in ("5", "5s", "500ms", "1h1m", "1d")] == [5, 5, 0.5, 3660, 86_400]
    for text in ("", "m", "1x", "-1", "1.5"):
        with pytest.raises(ConfError):
            bytes_of(text)
        with pytest.raises(ConfError):
            seconds_of(text)

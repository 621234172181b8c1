"""How often an address may ask the administration, counted by two workers on real Redis, and without it."""

from pathlib import Path

import pytest

from fakes.servers import RedisCluster, RedisServer
from meterhouse.admin import limiter as limiting
from meterhouse.admin.limiter import AdminLimiter, Shared
from meterhouse.errors import RateLimited
from meterhouse.shared_counts import FAILURES, PREFIX, open_shared_limiter

ACL = Path(__file__).parents[2] / "infra" / "stack" / "redis.acl"
ADDRESS, OTHER = "192.0.2.1", "192.0.2.2"
KEY, STRANGER = "Bearer sk-mh-admin-key", "Bearer sk-mh-admin-guess"


def worker(url: str, rate: str = "6/hour", failure_rate: str = "4/hour") -> AdminLimiter:
    return AdminLimiter(rate, failure_rate, Shared(lambda: open_shared_limiter(url, 2), FAILURES))


def admitted(limiter: AdminLimiter, times: int, address: str = ADDRESS) -> int:
    """Ask so many times; returns how often it was let in."""
    count = 0
    for _ in range(times):
        try:
            limiter.admit(address)
        except RateLimited:
            continue
        count += 1
    return count


def test_an_address_has_one_rate_over_all_workers(redis_server: RedisServer) -> None:
    redis_server.flush()
    one, two = worker(redis_server.url), worker(redis_server.url)
    assert [admitted(one, 4), admitted(two, 4), admitted(one, 1)] == [4, 2, 0]
    with pytest.raises(RateLimited) as refusal:
        two.admit(ADDRESS)
    assert 3_500 < refusal.value.retry_after_seconds <= 3_600
    assert admitted(two, 1, OTHER) == 1
    assert redis_server.cli("KEYS", f"{PREFIX}:*")
    assert 0 < redis_server.cli("TTL", redis_server.cli("KEYS", "*")[0]) <= 3_600


def test_guesses_at_any_worker_close_an_address_but_to_who_was_signed_in_at_any(redis_server: RedisServer) -> None:
    redis_server.flush()
    one, two = (worker(redis_server.url, rate="100/hour") for _ in range(2))
    assert not one.knows(KEY)
    one.note_good(KEY)
    assert one.knows(KEY)
    for limiter in (one, two, one, two):
        limiter.admit(ADDRESS, STRANGER)
        limiter.note_failure(ADDRESS, STRANGER)
    for limiter in (one, two):
        with pytest.raises(RateLimited, match="failed sign-ins"):
            limiter.admit(ADDRESS, STRANGER)
        limiter.admit(ADDRESS, KEY)
        limiter.admit(OTHER, STRANGER)
    # It is revoked, which the second worker finds first; the first has no more to say for it than its own memory.
    two.note_failure(OTHER, KEY)
    three = worker(redis_server.url)
    with pytest.raises(RateLimited):
        three.admit(ADDRESS, KEY)


def test_without_redis_each_worker_counts_for_itself_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiting, "AWAY_SECONDS", 0)
    with RedisServer(tmp_path / "redis") as server:
        one, two = worker(server.url), worker(server.url)
        assert admitted(one, 6) == 6
        server.stop()
        assert [admitted(one, 8), admitted(two, 8)] == [6, 6]
        server.start()
        assert [admitted(one, 4), admitted(two, 4)] == [4, 2]


def test_a_redis_that_does_not_answer_is_not_asked_by_every_request(tmp_path: Path) -> None:
    opened = []

    def fail() -> None:
        opened.append(1)
        raise FAILURES[0]

    limiter = AdminLimiter("6/hour", "4/hour", Shared(fail, FAILURES))  # type: ignore[arg-type]
    assert not limiter.is_alone
    assert admitted(limiter, 8) == 6
    assert (limiter.is_alone, len(opened)) == (True, 1)


def test_it_counts_on_a_cluster(redis_cluster: RedisCluster) -> None:
    redis_cluster.flush()
    one, two = worker(redis_cluster.url), worker(redis_cluster.url)
    assert [admitted(one, 4), admitted(two, 4)] == [4, 2]
    one.note_good(KEY)
    assert two._was_good(limiting._digest(KEY))


def test_the_rights_of_the_shipped_user_suffice(redis_server: RedisServer) -> None:
    redis_server.flush()
    rights = ACL.read_text().split("#PASSWORD_SHA256")[1].split()
    redis_server.cli("ACL", "SETUSER", "limited", "reset", "on", ">secret", *rights)
    url = redis_server.url.replace("redis://", "redis://limited:secret@")
    one, two = worker(url), worker(url)
    assert [admitted(one, 4), admitted(two, 4)] == [4, 2]
    one.note_good(KEY)
    one.note_failure(ADDRESS, KEY)
    assert not two._was_good(limiting._digest(KEY))
    assert not one.is_alone
    redis_server.cli("ACL", "DELUSER", "limited")

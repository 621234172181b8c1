"""Credential confusion (CVE-2026-35030, GHSA-69x8-hrgq-fjj8, CVE-2026-45339): taking one secret for another.

A cache entry that is found by a part of a token, a stored hash that opens what the token opens, a header that is
checked less than its neighbour.
"""

import statistics
import time
import zlib

import pytest

from api.asking import error_of
from fakes.gateway import Gateway
from meterhouse.ids import BASE62
from meterhouse.keys.secret import Peppers, make, parse

OTHER_HEADERS = ("x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "x-forwarded-authorization", "cookie")


def forge(body: str) -> str:
    """Give a made-up text the checksum of a key: everybody can."""
    rest, last = divmod(zlib.crc32(body.encode()), 62 * 62)
    high, low = divmod(rest, 62 * 62)
    return body + "".join(BASE62[number // 62] + BASE62[number % 62] for number in (high, low, last))


def status_of(gateway: Gateway, key: str) -> int:
    return gateway.request("GET", "/v1/models", key=key)[0]


@pytest.mark.parametrize("shared", [0, 1, 2, 10, 20, 31])
def test_a_key_that_shares_a_beginning_with_a_good_one_is_not_it(gateway: Gateway, shared: int) -> None:
    good = gateway.new_key()
    head, secret = good[: -32 - 6], good[-38:-6]
    assert status_of(gateway, good) == 200, "now it is in the cache"
    other = forge(head + secret[:shared] + "".join("1" if letter != "1" else "2" for letter in secret[shared:]))
    assert parse(other) is not None, "the forger has done it right"
    for _ in range(2):
        assert status_of(gateway, other) == 401
    assert status_of(gateway, good) == 200


def test_what_is_stored_of_a_key_opens_nothing_and_is_told_to_nobody(gateway: Gateway) -> None:
    key_id, key = gateway.new_key_of()
    stored = gateway.run(lambda: gateway.parts.stores.catalog.keys.find_keys([key_id]))[key_id]
    head = key[: -32 - 6]
    for guess in (stored.hash, forge(head + stored.hash[:32]), f"sk-mh-dev-{key_id}-{stored.hash}", stored.redacted):
        assert status_of(gateway, guess) == 401
        assert gateway.request("GET", "/admin/keys", key=guess)[0] in {401, 403}
    for path in (f"/admin/keys/{key_id}", "/admin/keys?limit=100"):
        body = gateway.request("GET", path, key=gateway.admin_key)[2].decode()
        assert stored.hash not in body
        assert key not in body


@pytest.mark.parametrize("header", OTHER_HEADERS)
def test_no_other_header_opens_more_than_the_one(gateway: Gateway, header: str) -> None:
    """A key that may not do this may not do it under another header either."""
    bound = gateway.new_key(models=("fake/nothing",), ip_ranges=("203.0.113.0/24",))
    body = {"model": "fake/normal?tokens=1", "messages": [{"role": "user", "content": "Hi"}]}
    for value in (bound, f"Bearer {bound}", gateway.admin_key):
        for path, method, sent in (("/v1/chat/completions", "POST", body), ("/admin/keys", "GET", None)):
            status, _, answer = gateway.request(method, path, sent, key="", headers={header: value})
            assert status in {401, 403}, (path, answer)


@pytest.mark.parametrize("query", ["api_key={}", "key={}", "access_token={}", "authorization=Bearer%20{}"])
def test_no_key_is_taken_from_an_address(gateway: Gateway, query: str) -> None:
    assert gateway.request("GET", "/v1/models?" + query.format(gateway.key), key="")[0] == 401


def test_a_tenants_key_is_no_operators_and_the_other_way_round(gateway: Gateway) -> None:
    assert gateway.request("GET", "/admin/keys", key=gateway.key)[0] == 403
    status, _, body = gateway.request("GET", "/v1/models", key=gateway.admin_key)
    assert (status, error_of(body)["code"]) == (403, "permission_denied")
    renamed = forge("sk-mh-admin-" + gateway.key.removeprefix("sk-mh-dev-")[:-6])
    assert gateway.request("GET", "/admin/keys", key=renamed)[0] == 401


def test_the_time_does_not_tell_whether_a_key_exists() -> None:
    """Every way to be refused hashes the whole key once; a known id with another secret takes no longer than none."""
    peppers = Peppers({1: b"p" * 16 + b"0123456789abcdef"})
    value = make("dev").value
    version, stored = peppers.hash(make("dev").value)

    def measure(known: bool) -> float:
        began = time.perf_counter_ns()
        for _ in range(200):
            assert not (peppers.verify(value, version, stored) if known else peppers.verify_nothing(value))
        return time.perf_counter_ns() - began

    pairs = [(measure(True), measure(False)) for _ in range(31)]
    ratio = statistics.median(known / unknown for known, unknown in pairs)
    assert 0.7 < ratio < 1.4

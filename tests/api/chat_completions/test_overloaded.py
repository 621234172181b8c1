"""A worker that is full refuses at once, and holds nothing of what it refuses."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

SLOTS = 10


@pytest.fixture
def small(up: FakeUpstream, tmp_path: Path) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url, METERHOUSE_MAX_REQUESTS=str(SLOTS))
    with Gateway(tmp_path / "data", environment) as running:
        yield running


def test_a_full_worker_refuses_the_next_and_serves_everything_else(small: Gateway, up: FakeUpstream) -> None:
    tenants = [Tenant(small) for _ in range(SLOTS)]
    late = Tenant(small, limits="requests 9 total; concurrent 3")
    with ThreadPoolExecutor(SLOTS) as pool:
        sent = up.truth.count_stages().get("held", 0)
        asking = [pool.submit(small.chat, "fake/normal?gate=start", key=tenant.key) for tenant in tenants]
        up.truth.wait_for(lambda truth: truth.count_stages().get("held", 0) - sent == SLOTS)
        marker, messages = marked()
        status, headers, body = small.chat("fake/normal", messages=messages, key=late.key)
        assert (status, error_of(body)["code"], headers["retry-after"]) == (503, "overloaded", "1")
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert small.request("GET", path)[0] == 200
        assert small.request("GET", "/v1/models", key=late.key)[0] == 200
        assert small.request("GET", "/admin/keys", key=small.admin_key)[0] == 200
        up.release()
        assert [answer.result()[0] for answer in asking] == [200] * SLOTS
    assert not up.truth.by_marker(marker)
    assert small.chat("fake/normal", messages=messages, key=late.key)[0] == 200
    status, _, body = small.request("GET", "/metrics")
    assert b'meterhouse_shed_requests_total{reason="slots"} 1.0' in body

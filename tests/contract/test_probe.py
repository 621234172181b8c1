"""A probe finds what a provider serves and says why it cannot be used, through the same client as everything else."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fakes.small_server import SECRET, never, reply, serving, sized
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.probe import Probe
from meterhouse.providers.provider import ActiveProvider
from meterhouse.providers.upstream import Upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as opened:
        yield opened


class Clock:
    def now_ms(self) -> int:
        return 42


async def probe(upstream: Upstream, endpoint: ActiveProvider):
    return await Probe(upstream, Clock(), timeout_seconds=0.2).check(endpoint)


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        (
            "ollama",
            "/v1/api/tags",
            b'{"models":[{"name":"a:latest","model":"a:latest"},{"name":"b"},{"name":"bad name"}]}',
        ),
        (
            "openai_compatible",
            "/v1/models",
            b'{"object":"list","data":[{"id":"a:latest"},{"id":"b"},{"id":"b"},{"id":""}]}',
        ),
    ],
)
async def test_a_probe_finds_what_a_provider_serves(upstream, name, path, body):
    async with serving(reply(sized(body))) as server:
        status = await probe(upstream, replace(server.endpoint, provider=PROVIDERS[name]))
        assert server.heads[0].startswith(f"GET {path} ")
    assert status.is_reachable
    assert status.models == ("a:latest", "b")
    assert status.checked_at_ms == 42


@pytest.mark.parametrize(
    ("data", "is_reachable", "text"),
    [
        (sized(b"{}"), True, ""),
        (sized(b"<html>"), True, ""),
        (sized(b"no", b"HTTP/1.1 404 Not Found\r\n"), True, ""),
        (sized(b"no", b"HTTP/1.1 401 No\r\n"), False, "credential"),
        (sized(b"no", b"HTTP/1.1 500 No\r\n"), False, "500"),
        (sized(b"x" * 5_000_000), False, "more than"),
    ],
)
async def test_a_probe_says_why_a_provider_cannot_be_used(upstream, data, is_reachable, text):
    async with serving(reply(data)) as server:
        status = await probe(upstream, server.endpoint)
    assert status.is_reachable is is_reachable
    assert text in status.detail
    assert status.refuses_credential is (text == "credential")
    assert SECRET not in status.detail


async def test_a_probe_of_a_silent_provider_ends_in_time(upstream):
    async with serving(never) as server:
        silent, simulated = await Probe(upstream, Clock(), timeout_seconds=0.05).check_all(
            [server.endpoint, ActiveProvider(provider=PROVIDERS["simulator"], base_url="simulator:")]
        )
    assert (silent.is_reachable, simulated.is_reachable) == (False, True)
    assert "in time" in silent.detail


@pytest.mark.parametrize("address", ["https://a..b.example/v1", "https://host.example:99999/v1"])
async def test_a_probe_of_an_address_that_cannot_be_is_an_answer_and_the_others_get_theirs(upstream, address):
    async with serving(reply(sized(b"{}"))) as server:
        wrong = replace(server.endpoint, base_url=address)
        statuses = await Probe(upstream, Clock(), timeout_seconds=0.2).check_all([wrong, server.endpoint])
    assert [status.is_reachable for status in statuses] == [False, True]
    assert "has an address that cannot be used" in statuses[0].detail


async def test_a_list_that_disturbs_its_server_is_asked_for_until_it_is_known_and_after_the_server_was_away(upstream):
    async with serving(reply(sized(b'{"data":[{"id":"a"}]}'))) as server:
        endpoint = replace(server.endpoint, provider=PROVIDERS["llamacpp"])
        prober = Probe(upstream, Clock(), timeout_seconds=0.2)
        (first,) = await prober.check_all([endpoint])
        known = {
            "known": first,
            "away": replace(first, is_reachable=False),
            "empty": replace(first, models=()),
            "moved": replace(first, base_url="http://elsewhere/v1"),
        }
        for status in known.values():
            assert (await prober.check_all([endpoint], {endpoint.name: status}))[0].is_reachable
        paths = [head.split()[1] for head in server.heads]
    assert first.models == ("a",)
    assert paths == ["/v1/models", "/v1/health", "/v1/models", "/v1/models", "/v1/models"]

"""Browsers: which pages may call, and that their streams stay streams."""

import time
from collections.abc import Iterator

import pytest

from api.asking import error_of, marked
from failure.raw_client import Client as RawClient
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from meterhouse.settings import Environment, SettingsError

ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def open_gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = {"METERHOUSE_CORS_ORIGINS": f"{ORIGIN}, http://localhost:3000", "METERHOUSE_SHIP_SECONDS": "0.01"}
    with Gateway(
        tmp_path_factory.mktemp("cors") / "data", provider_environment("fake", up.base_url, **settings)
    ) as found:
        yield found


def preflight(gateway: Gateway, origin: str) -> tuple[int, dict[str, str]]:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    status, headers, _ = gateway.request("OPTIONS", "/v1/chat/completions", key="", headers=asked)
    return status, headers


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_a_named_origin_may_call(origin: str, open_gateway: Gateway) -> None:
    status, headers = preflight(open_gateway, origin)
    assert (status, headers["access-control-allow-origin"]) == (200, origin)
    assert "x-stainless-lang" in headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{ORIGIN}.evil.example", "https://sub.app.example.com"]
)
def test_any_other_may_ask_whether_it_may_but_read_nothing(origin: str, open_gateway: Gateway) -> None:
    # A preflight does not say with what will be asked: a client token may name this page, a key does not.
    assert preflight(open_gateway, origin)[0] == 200
    for key in (None, "wrong"):
        body = {"message": "Hi", "model": "fake/normal"}
        _, headers, _ = open_gateway.request("POST", "/chat", body, key=key, headers={"Origin": origin})
        assert "access-control-allow-origin" not in headers


def test_a_page_may_read_answers_and_errors_and_their_headers(open_gateway: Gateway) -> None:
    for key, status in ((None, 200), ("wrong", 401)):
        found, headers, body = open_gateway.request(
            "POST", "/chat", {"message": "Hi", "model": "fake/normal"}, key=key, headers={"Origin": ORIGIN}
        )
        assert (found, headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "x-request-id" in headers["access-control-expose-headers"]
        assert "origin" in headers["vary"].lower()
        if status != 200:
            assert error_of(body)["code"] == "invalid_api_key"


def test_without_a_setting_nothing_is_allowed(gateway: Gateway) -> None:
    _, headers, _ = gateway.request(
        "POST", "/chat", {"message": "Hi", "model": "fake/normal"}, headers={"Origin": ORIGIN}
    )
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_stream_stays_a_stream(open_gateway: Gateway, up: FakeUpstream) -> None:
    _, messages = marked()
    body = {"messages": messages, "model": "fake/gate?gate=5", "stream": True}
    client = RawClient(open_gateway.url, open_gateway.key, body, headers={"origin": ORIGIN})
    client.read_until(lambda c: len(c.chunks) >= 5)
    assert client.headers["access-control-allow-origin"] == ORIGIN
    assert not client.is_whole
    # The fifth token is here before the provider stands at its gate.
    while not up.release(name="gate"):
        time.sleep(0.01)
    assert client.read_all().has_done


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example.com", "app.example.com", "https://a/b", "ftp://a", "https://u@a"]
)
def test_an_origin_that_is_none_is_refused_at_start(origins: str) -> None:
    with pytest.raises(SettingsError, match="METERHOUSE_CORS_ORIGINS"):
        Environment({"METERHOUSE_CORS_ORIGINS": origins}).settings()

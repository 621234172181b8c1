"""A client token: what it may do, how it ends, and that it is worth nothing in other hands."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

PAGE = "https://shop.example"
MODEL = "fake/normal?tokens=10&first_ms=3"
SLOW = "fake/normal?tokens=20000&pace_ms=5"
CHARGE = 10 * 4_000_000
ASKED = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def trade(gateway: Gateway, key: str, **body: Any) -> dict[str, Any]:
    wish = {"max_spend_usd": "1", **body}
    status, _, answer = gateway.request("POST", "/v1/client_tokens", wish, key=key)
    assert status == 201, answer
    made: dict[str, Any] = json.loads(answer)
    return made


def ask(
    gateway: Gateway, token: str, origin: str | None = None, model: str = MODEL
) -> tuple[int, dict[str, str], bytes]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}
    headers = {} if origin is None else {"Origin": origin}
    return gateway.request("POST", "/v1/chat/completions", body, key=token, headers=headers)


@pytest.fixture(autouse=True, scope="module")
def priced(gateway: Gateway) -> Gateway:
    """A cap is a budget, so that what is asked for must have a price."""
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "0", "4000")
    return gateway


def test_the_sdk_works_with_it_and_its_use_is_the_keys_use(priced: Gateway, tenant: Tenant) -> None:
    token = trade(priced, tenant.key)
    assert token["id"].startswith(f"{tenant.key_id}.")
    with priced.client(token["value"]) as client:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=10
        )
        assert answer.parse().usage.completion_tokens == 10
        assert [model.id for model in client.models.list()]
        (record,) = priced.records(answer.headers["x-request-id"])
    assert (record.key_id, record.root_key_id) == (token["id"], tenant.key_id)
    assert (record.organization_id, record.project_id) == (tenant.organization_id, tenant.project_id)


def test_its_cap_is_spent_to_the_end_and_the_key_goes_on(priced: Gateway, tenant: Tenant) -> None:
    token = trade(priced, tenant.key, max_spend_usd="0.08")
    assert (token["max_spend_nanos"], token["max_spend_usd"]) == (2 * CHARGE, "0.08")
    assert [ask(priced, token["value"])[0] for _ in range(2)] == [200, 200]
    priced.settle()
    status, _, body = ask(priced, token["value"])
    assert (status, error_of(body)["code"]) == (429, "insufficient_quota")
    assert ask(priced, tenant.key)[0] == 200
    assert ask(priced, trade(priced, tenant.key)["value"])[0] == 200


def test_the_limits_of_the_key_bind_its_tokens(priced: Gateway) -> None:
    tenant = Tenant(priced, limits="spend 0.08 USD/month")
    tokens = [trade(priced, tenant.key)["value"] for _ in range(3)]
    assert [ask(priced, token)[0] for token in tokens[:2]] == [200, 200]
    priced.settle()
    assert ask(priced, tokens[2])[0] == 429


def test_a_cap_is_learned_from_the_ledger_after_a_restart(up: FakeUpstream, tmp_path: Path) -> None:
    environment = provider_environment("fake", up.base_url)
    with Gateway(tmp_path / "data", environment) as first:
        first.set_price("fake", MODEL.removeprefix("fake/"), "0", "4000")
        token, other = (trade(first, first.key, max_spend_usd="0.08")["value"] for _ in range(2))
        assert [ask(first, token)[0] for _ in range(2)] == [200, 200]
        first.settle()
    with Gateway(tmp_path / "data", environment) as second:
        assert ask(second, token)[0] == 429
        assert ask(second, other)[0] == 200


def test_a_revoked_key_takes_its_tokens_along(gateway: Gateway, tenant: Tenant) -> None:
    token = trade(gateway, tenant.key)["value"]
    assert ask(gateway, token)[0] == 200
    gateway.request("DELETE", f"/admin/keys/{tenant.key_id}", key=gateway.admin_key)
    status, _, body = ask(gateway, token)
    assert (status, error_of(body)["code"]) == (401, "invalid_api_key")


def test_a_running_stream_of_a_token_is_cut_when_the_key_is_revoked(gateway: Gateway, tenant: Tenant) -> None:
    gateway.set_price("fake", SLOW.removeprefix("fake/"), "0", "1")
    messages: Any = [{"role": "user", "content": "Hi"}]
    with gateway.client(trade(gateway, tenant.key)["value"]) as client:
        stream = client.chat.completions.create(model=SLOW, messages=messages, stream=True)
        next(stream)
        gateway.request("DELETE", f"/admin/keys/{tenant.key_id}", key=gateway.admin_key)
        with pytest.raises(openai.APIError) as cut:
            list(stream)
    assert cut.value.code == "key_revoked"


def test_an_expired_token_is_refused_and_the_page_can_read_that(gateway: Gateway, tenant: Tenant) -> None:
    wish = {"max_spend_usd": "1000", "origins": [PAGE]}
    # Of those that expire soon, one that a busy machine manages to use before.
    expiring = (trade(gateway, tenant.key, expires_in_seconds=seconds, **wish)["value"] for seconds in (1, 4, 16))
    token = next(one for one in expiring if ask(gateway, one, PAGE)[0] == 200)
    status = 200
    while status == 200:
        status, headers, _ = ask(gateway, token, PAGE)
    assert status == 401
    assert headers["access-control-allow-origin"] == PAGE


def test_a_key_is_given_so_many_and_no_more(tmp_path: Path) -> None:
    with Gateway(tmp_path / "data", {"METERHOUSE_CLIENT_TOKEN_RATE": "3/hour"}) as own:
        tenant, other = Tenant(own), Tenant(own)
        for _ in range(3):
            trade(own, tenant.key)
        wish = {"max_spend_usd": "1"}
        status, headers, body = own.request("POST", "/v1/client_tokens", wish, key=tenant.key)
        assert (status, error_of(body)["code"]) == (429, "rate_limit_exceeded")
        assert 3_500 < int(headers["retry-after"]) <= 3_600
        # Whoever was given its share goes on with what it has, and nobody else has less.
        assert own.request("GET", "/v1/limits", key=tenant.key)[0] == 200
        trade(own, other.key)


def test_a_stolen_token_is_refused_on_another_page(gateway: Gateway, tenant: Tenant) -> None:
    token = trade(gateway, tenant.key, origins=[PAGE, "http://localhost:3000"])["value"]
    for origin in (PAGE, "http://localhost:3000", None):
        status, headers, _ = ask(gateway, token, origin)
        assert (status, headers.get("access-control-allow-origin")) == (200, origin)
    for origin in ("https://evil.example", "null", f"{PAGE}.evil.example", "http://shop.example"):
        status, headers, body = ask(gateway, token, origin)
        assert (status, error_of(body)["code"]) == (403, "permission_denied")
        assert "access-control-allow-origin" not in headers
    status, headers, _ = gateway.request("GET", "/v1/models", key=token, headers={"Origin": PAGE})
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-request-id" in headers["access-control-expose-headers"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_page_may_use_it_as_anthropics_sdk_sends_it(gateway: Gateway, tenant: Tenant, path: str) -> None:
    status, headers, _ = gateway.request("OPTIONS", path, key="", headers=ASKED)
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
    token = trade(gateway, tenant.key, max_spend_usd="1", origins=[PAGE])["value"]
    body = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    if path != "/v1/messages":
        del body["max_tokens"]
    sent = {"x-api-key": token, "Origin": PAGE}
    status, headers, answer = gateway.request("POST", path, body, key="", headers=sent)
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE), answer
    assert "request-id" in headers["access-control-expose-headers"].split(", ")
    status, headers, _ = gateway.request("POST", path, body, key="", headers={**sent, "Origin": "https://evil.example"})
    assert status == 403
    assert "access-control-allow-origin" not in headers
    both = {**sent, "Authorization": f"Bearer {tenant.key}"}
    status, headers, _ = gateway.request("POST", path, body, key="", headers=both)
    assert (status, headers.get("access-control-allow-origin")) == (400, None)


def test_a_token_without_origins_is_for_no_page(gateway: Gateway, tenant: Tenant) -> None:
    token = trade(gateway, tenant.key)["value"]
    assert ask(gateway, token, PAGE)[0] == 403
    assert ask(gateway, token)[0] == 200


def test_a_preflight_of_any_page_is_answered_and_says_nothing(gateway: Gateway) -> None:
    status, headers, body = gateway.request("OPTIONS", "/v1/chat/completions", key="", headers=ASKED)
    assert (status, body, headers["access-control-allow-origin"]) == (200, b"", PAGE)
    assert "access-control-allow-credentials" not in headers
    for path in ("/v1/client_tokens", "/admin/keys", "/v1/organization/projects"):
        _, headers, _ = gateway.request("OPTIONS", path, key="", headers=ASKED)
        assert "access-control-allow-origin" not in headers


def test_a_changed_one_and_one_of_another_installation_are_refused(gateway: Gateway, tenant: Tenant) -> None:
    token = trade(gateway, tenant.key)["value"]
    head, claims, signature = token.split(".")
    other = trade(gateway, Tenant(gateway).key)["value"].split(".")
    for forged in (f"{head}.{other[1]}.{signature}", f"{head}.{claims}.{other[2]}", f"{head}.{claims}.", token[:-4]):
        assert ask(gateway, forged)[0] == 401


def test_it_opens_nothing_but_inference(gateway: Gateway, tenant: Tenant) -> None:
    token = trade(gateway, tenant.key)["value"]
    wish = {"max_spend_usd": "1"}
    assert gateway.request("POST", "/v1/client_tokens", wish, key=token)[0] == 403
    assert gateway.request("GET", "/v1/limits", key=token)[0] == 403
    for path in ("/admin/keys", "/v1/organization/audit_logs"):
        assert gateway.request("GET", path, key=token)[0] == 401


def test_models_are_at_most_those_of_the_key(gateway: Gateway) -> None:
    tenant = Tenant(gateway, models=[MODEL, "simulator"])
    token = trade(gateway, tenant.key, models=["simulator"])["value"]
    assert ask(gateway, token, model="simulator")[0] == 200
    assert ask(gateway, token)[0] == 403
    status, _, body = gateway.request(
        "POST", "/v1/client_tokens", {"max_spend_usd": "1", "models": ["gpt-4o"]}, key=tenant.key
    )
    assert (status, error_of(body)["code"]) == (403, "model_not_allowed")


@pytest.mark.parametrize("length", [80, 90, 100, 256])
def test_no_token_is_made_that_is_too_long_to_be_read(gateway: Gateway, tenant: Tenant, length: int) -> None:
    models = [f"{number:02d}".ljust(length, "m") for number in range(32)]
    wish = {"max_spend_usd": "1", "models": models}
    status, _, body = gateway.request("POST", "/v1/client_tokens", wish, key=tenant.key)
    if status == 400:
        assert "fewer models" in error_of(body)["message"]
        return
    assert status == 201, body
    assert gateway.request("GET", "/v1/models", key=json.loads(body)["value"])[0] == 200


def test_a_model_is_the_keys_by_whichever_name_the_key_may_ask_for_it(gateway: Gateway) -> None:
    listed, long = "batched", "fake/batched"
    gateway.set_price("fake", listed, "0", "1")
    tenant, other, third = Tenant(gateway, models=[listed]), Tenant(gateway, models=[long]), Tenant(gateway)
    permissions = f"/v1/organization/projects/{third.project_id}/model_permissions"
    header = {"openai-organization": third.organization_id}
    wish = {"mode": "allow_list", "model_ids": [long]}
    assert gateway.request("POST", permissions, wish, key=gateway.admin_key, headers=header)[0] == 200
    for key, models in ((tenant.key, [long]), (tenant.key, [listed, long]), (other.key, [long]), (third.key, [long])):
        assert ask(gateway, key, model=long)[0] == 200
        token = trade(gateway, key, models=models)
        assert ask(gateway, token["value"], model=long)[0] == 200, token
    wish = {"max_spend_usd": "1", "models": [listed]}
    assert gateway.request("POST", "/v1/client_tokens", wish, key=other.key)[0] == 403
    assert ask(gateway, other.key, model=listed)[0] == 403
    assert ask(gateway, trade(gateway, tenant.key, models=[long])["value"])[0] == 403


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_spend_usd": "0"}, "max_spend_usd"),
        ({"max_spend_usd": "-1"}, "max_spend_usd"),
        ({"max_spend_usd": "NaN"}, "max_spend_usd"),
        ({"max_spend_usd": "1e99"}, "max_spend_usd"),
        ({"max_spend_usd": "1e999990"}, "max_spend_usd"),
        ({"max_spend_usd": "0.0000000001"}, "max_spend_usd"),
        ({"max_spend_usd": 1}, "max_spend_usd"),
        ({"expires_in_seconds": 3601}, "expires_in_seconds"),
        ({"expires_in_seconds": 0}, "expires_in_seconds"),
        ({"models": []}, "models"),
        ({"origins": ["*"]}, "origins"),
        ({"origins": ["https://a.example/path"]}, "origins"),
        ({"origins": ["ftp://a.example"]}, "origins"),
        ({"origins": ["https://u:p@a.example"]}, "origins"),
        ({"origins": ["https://["]}, "origins"),
        ({"origins": ["https://a]b"]}, "origins"),
        ({"origins": ["https://\u2100.example"]}, "origins"),
        ({"origins": ["https://a.example:99999"]}, "origins"),
        ({"scopes": ["usage"]}, "scopes"),
    ],
)
def test_what_is_no_token_is_refused(gateway: Gateway, change: dict[str, Any], param: str) -> None:
    status, _, body = gateway.request("POST", "/v1/client_tokens", {"max_spend_usd": "1"} | change)
    assert (status, error_of(body)["param"]) == (400, param)

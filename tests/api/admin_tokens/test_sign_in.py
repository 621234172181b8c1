"""Administrators who come with a token of the identity provider: what it opens, what it does not, and who did it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway, provider_environment
from fakes.issuer import AUDIENCE, ISSUER, Issuer


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(scope="module")
def house(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment(
        "fake",
        "http://127.0.0.1:9",
        METERHOUSE_OIDC_ISSUER=ISSUER,
        METERHOUSE_OIDC_AUDIENCE=AUDIENCE,
        METERHOUSE_OIDC_JWKS=issuer.address,
        METERHOUSE_ADMIN_FAILURE_RATE="1000/minute",
    )
    with Gateway(tmp_path_factory.mktemp("oidc") / "data", environment) as running:
        yield running


def token(issuer: Issuer, **changes: Any) -> str:
    return issuer.token(int(time.time()), **changes)


def ask(house: Gateway, key: str, path: str = "/admin/audit", method: str = "GET", body: object = None) -> Any:
    status, _, answer = house.request(method, path, body, key=key)
    return status, json.loads(answer)


def test_an_operator_s_token_does_what_an_admin_key_does(house: Gateway, issuer: Issuer) -> None:
    status, made = ask(house, token(issuer), "/admin/organizations", "POST", {"name": "By token"})
    assert status == 201
    _, events = ask(house, house.admin_key)
    assert events["data"][0]["target_id"] == made["id"]
    [actor] = [event for event in events["data"] if event["target_id"] == made["id"]]
    assert (actor["actor_kind"], actor["actor_id"], actor["actor_role"]) == ("jwt", "user-1", "operator")


def test_an_owner_s_token_is_bound_to_its_organization(house: Gateway, issuer: Issuer) -> None:
    tenant, other = Tenant(house), Tenant(house)
    mine = token(issuer, meterhouse_role="owner", meterhouse_organization=tenant.organization_id)
    with openai.OpenAI(base_url=house.base_url, api_key="unused", admin_api_key=mine, max_retries=0) as client:
        assert client.admin.organization.usage.costs(start_time=int(time.time()) - 60).object == "page"
    path = f"/admin/ledger/records?organization_id={other.organization_id}"
    assert ask(house, mine, path)[0] == 404
    assert [one["id"] for one in ask(house, mine, "/admin/organizations")[1]["data"]] == [tenant.organization_id]
    assert ask(house, mine, "/admin/tokens/revoke", "POST", {"token_id": "x"})[0] == 403
    nobody = token(issuer, meterhouse_role="owner", meterhouse_organization="org_gone")
    assert ask(house, nobody)[0] == 403


def test_a_token_opens_no_inference_and_nothing_when_it_is_wrong(house: Gateway, issuer: Issuer) -> None:
    good = token(issuer)
    for path in ("/v1/models", "/v1/limits"):
        assert ask(house, good, path)[0] == 401
    assert house.chat("simulator", key=good)[0] == 401
    for wrong in (good[:-4] + "AAAA", token(issuer, aud="other"), token(issuer, exp=5, iat=1), "a.b.c"):
        status, answer = ask(house, wrong)
        assert status == 401
        assert error_of(json.dumps(answer).encode())["code"] == "invalid_api_key"
    assert ask(house, token(issuer, meterhouse_role="nothing"))[0] == 403


def test_a_token_that_was_revoked_is_refused_at_once(house: Gateway, issuer: Issuer) -> None:
    leaked = token(issuer, jti="leaked-1")
    assert ask(house, leaked)[0] == 200
    status, answer = ask(house, house.admin_key, "/admin/tokens/revoke", "POST", {"token_id": "leaked-1"})
    assert (status, answer) == (200, {"object": "token.revoked", "token_id": "leaked-1"})
    assert ask(house, leaked)[0] == 401
    assert ask(house, token(issuer, jti="another"))[0] == 200
    _, events = ask(house, house.admin_key)
    assert (events["data"][0]["action"], events["data"][0]["target_id"]) == ("token.revoked", "leaked-1")


def test_neither_a_token_nor_a_key_id_is_ever_logged(house: Gateway, issuer: Issuer) -> None:
    for one in (token(issuer), token(issuer, aud="other"), token(issuer)[:-4] + "AAAA"):
        ask(house, one)
        log = Path(house.log_path).read_text()
        assert all(part not in log for part in one.split(".")[1:])
        assert one not in log


def test_without_an_issuer_a_token_is_no_credential(gateway: Gateway, issuer: Issuer) -> None:
    assert ask(gateway, token(issuer))[0] == 401
    assert ask(gateway, gateway.admin_key, "/admin/tokens/revoke", "POST", {"token_id": "x"})[0] == 409

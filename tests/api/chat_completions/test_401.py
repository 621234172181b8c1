"""Without a good key there is one answer, whatever the reason; the reason is in the log."""

import time

import pytest

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.keys.secret import make

ASK = {"model": "fake/normal", "messages": [{"role": "user", "content": "Hi"}]}


def refusal(gateway: Gateway, key: str, headers: dict[str, str] | None = None) -> dict[str, str]:
    status, answered, body = gateway.request("POST", "/v1/chat/completions", ASK, key=key, headers=headers)
    assert status == 401, body
    assert answered["www-authenticate"] == "Bearer"
    error = error_of(body)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
    return error


def test_a_request_without_a_key_is_told_how_to_send_one(gateway: Gateway) -> None:
    assert "Authorization: Bearer" in refusal(gateway, "")["message"]


@pytest.mark.parametrize("value", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "sk-mh-dev-1", "Token abc"])
def test_another_scheme_is_no_key(gateway: Gateway, value: str) -> None:
    refusal(gateway, "", {"Authorization": value})


def test_every_bad_key_has_the_same_answer(gateway: Gateway) -> None:
    # Of those that expire soon, one that a busy machine manages to use before.
    expiring = (Tenant(gateway, expires_in_seconds=seconds) for seconds in (1, 4, 16))
    tenant = next(one for one in expiring if gateway.chat("fake/normal", key=one.key)[0] == 200)
    revoked = tenant.issue()
    gateway.request("DELETE", f"/admin/keys/{revoked['id']}", key=gateway.admin_key)
    archived = Tenant(gateway)
    gateway.request("POST", f"/admin/projects/{archived.project_id}/archive", key=gateway.admin_key)
    bad = {
        "unknown": make("dev").value,
        "of another environment": make("live").value,
        "another provider's": "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
        "one character changed": gateway.key[:-1] + ("a" if gateway.key[-1] != "a" else "b"),
        "cut off": gateway.key[:-3],
        "too long": gateway.key + "A" * 300,
        "another secret under a known id": _other_secret(gateway.key),
        "revoked": revoked["value"],
        "of an archived project": archived.key,
        "not ASCII": "sk-mh-dev-\xe9",
    }
    deadline = time.monotonic() + 60
    while gateway.chat("fake/normal", key=tenant.key)[0] != 401:
        assert time.monotonic() < deadline, "the key does not expire"
        time.sleep(0.05)
    bad["expired"] = tenant.key
    answers = {name: refusal(gateway, key)["message"] for name, key in bad.items()}
    assert len(set(answers.values())) == 1, answers


def test_the_key_is_checked_before_the_body_is_judged(gateway: Gateway) -> None:
    status, _, _ = gateway.request("POST", "/v1/chat/completions", b"not json", key="")
    assert status == 401


def test_the_reason_is_in_the_log_and_the_key_is_not(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    fake = make("dev").value
    _, headers, _ = gateway.chat("fake/normal", key=fake, messages=messages)
    line = _line_of(gateway, headers["x-request-id"])
    assert (line["status"], line["error_code"], line["error_owner"]) == (401, "invalid_api_key", "caller")
    assert "unknown" in line["error_detail"]
    assert fake not in gateway.log_path.read_text()
    assert up.truth.by_marker(marker) == []


def test_the_scheme_may_be_written_in_any_case(gateway: Gateway) -> None:
    headers = {"Authorization": f"bearer   {gateway.key}"}
    assert gateway.request("POST", "/v1/chat/completions", ASK, key="", headers=headers)[0] == 200


def _other_secret(key: str) -> str:
    """Return a key with a good checksum and the id of another one."""
    from meterhouse.keys.secret import _checksum  # noqa: PLC0415 - to forge what a caller could compute too

    body = f"{key[: -len('s' * 32 + 'c' * 6)]}{'0' * 32}"
    return body + _checksum(body)


def _line_of(gateway: Gateway, request_id: str) -> dict[str, object]:
    """Return the one line of a request; it is written shortly after the answer."""
    deadline = time.monotonic() + 60
    while not (lines := [line for line in gateway.log_lines() if line.get("request_id") == request_id]):
        assert time.monotonic() < deadline, "no line was written"
        time.sleep(0.01)
    (line,) = lines
    return line

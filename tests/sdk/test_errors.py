"""Every exception class of the SDK by status, and its retries."""

import socket
import time

import openai
import pytest

from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text


def ask(marker: str) -> list:
    return [{"role": "user", "content": f"Hello marker={marker}"}]


def create(client: openai.OpenAI, model: str, marker: str = "e", **fields: object) -> str | None:
    answer = client.chat.completions.create(model=model, messages=ask(marker), **fields)  # type: ignore[call-overload]
    return answer.choices[0].message.content


def test_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, "fake/normal", temperature=3)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (400, "temperature", "invalid_value")
    assert error.type == "invalid_request_error"
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert "temperature" in error.message


@pytest.mark.parametrize("key", ["sk-wrong", "sk-mh-dev-000000000000-" + "0" * 38])
def test_a_wrong_key(gateway: Gateway, key: str) -> None:
    with gateway.client(key) as client, pytest.raises(openai.AuthenticationError) as caught:
        create(client, "fake/normal")
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


def test_a_model_that_the_key_may_not_use(gateway: Gateway) -> None:
    key = gateway.new_key(models=frozenset({"simulator"}))
    with gateway.client(key) as client, pytest.raises(openai.PermissionDeniedError) as caught:
        create(client, "fake/normal")
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (403, "model_not_allowed", "model")


def test_an_unknown_model_and_an_unknown_address(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        create(client, "no-such-model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.batches.list()
    assert caught.value.code == "unknown_url"


def test_a_conflict_is_not_retried(gateway: Gateway) -> None:
    key_id, _ = gateway.new_key_of()
    base_url = f"{gateway.url}/admin"
    sent: list[object] = []
    counting = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with openai.OpenAI(base_url=base_url, api_key=gateway.admin_key, max_retries=2, http_client=counting) as client:
        client.delete(f"/keys/{key_id}", cast_to=object)
        sent.clear()
        with pytest.raises(openai.ConflictError) as caught:
            client.post(f"/keys/{key_id}/rotate", body={}, cast_to=object)
    assert (caught.value.status_code, caught.value.code) == (409, "conflict")
    assert len(sent) == 1


def test_what_the_provider_cannot_process(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        create(client, "fake/error-422")
    assert "Fake failure 422" in caught.value.message


def test_a_rate_that_is_used_up(gateway: Gateway) -> None:
    with gateway.client(gateway.new_key("requests 1/hour")) as client:
        create(client, "fake/normal")
        with pytest.raises(openai.RateLimitError) as caught:
            create(client, "fake/normal")
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (429, "rate_limit_exceeded", "requests")
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_no_price_and_a_budget(gateway: Gateway) -> None:
    with gateway.client(gateway.new_key("spend 1 USD/month")) as client, pytest.raises(openai.APIStatusError) as caught:
        create(client, "fake/normal?tokens=77")
    assert (caught.value.status_code, caught.value.code) == (402, "not_priced")


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("fake/error-500", 502, "upstream_unavailable"),
        ("fake/error-401", 502, "upstream_account"),
        ("fake/error-429?retry_after=1", 503, "upstream_busy"),
        ("fake/reset-before-head", 502, "upstream_unavailable"),
    ],
)
def test_a_provider_that_fails(client: openai.OpenAI, model: str, status: int, code: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        create(client, model)
    assert (caught.value.status_code, caught.value.code) == (status, code)


def test_nobody_listens(gateway: Gateway) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with (
            openai.OpenAI(base_url=base_url, api_key=gateway.key, max_retries=0) as client,
            pytest.raises(openai.APIConnectionError) as caught,
        ):
            create(client, "simulator")
    assert not isinstance(caught.value, openai.APITimeoutError)


def test_the_clients_own_timeout_ends_the_request_here_too(gateway: Gateway, up: FakeUpstream) -> None:
    for seconds in (0.3, 3, 30):  # as much as a busy machine needs to come as far as the provider
        with gateway.client(timeout=seconds) as client, pytest.raises(openai.APITimeoutError):
            create(client, "fake/gate", "own-timeout")
        if up.truth.by_marker("own-timeout"):
            break
    up.wait_for(lambda truth: truth.by_marker("own-timeout")[0].ended_by == "client_gone")


@pytest.mark.parametrize("script", ["error-mid", "reset", "eof-early", "finish-missing", "garbage-not-json"])
def test_a_failure_in_mid_stream(client: openai.OpenAI, script: str) -> None:
    stream = client.chat.completions.create(model=f"fake/{script}?pace_ms=5", messages=ask("mid"), stream=True)
    text = ""

    def read() -> None:
        nonlocal text
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""

    with pytest.raises(openai.APIError) as caught:
        read()
    stream.close()
    assert not isinstance(caught.value, openai.APIStatusError)
    assert caught.value.type == "upstream_error"
    assert caught.value.code is not None
    assert text
    assert answer_text("mid", 20).startswith(text)


async def test_a_failure_in_mid_stream_asynchronously(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        stream = await client.chat.completions.create(
            model="fake/error-mid?pace_ms=5", messages=ask("amid"), stream=True
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


# --- retries


def test_a_provider_that_fails_twice_is_asked_a_third_time(gateway: Gateway, up: FakeUpstream) -> None:
    with gateway.client(max_retries=2) as client:
        assert create(client, "fake/error-500?times=2&tokens=4", "twice") == answer_text("twice", 4)
    assert len(up.truth.by_marker("twice")) == 3


def test_a_stream_that_did_not_begin_is_asked_for_again(gateway: Gateway, up: FakeUpstream) -> None:
    with gateway.client(max_retries=2) as client:
        chunks = client.chat.completions.create(
            model="fake/error-500?times=1&tokens=4", messages=ask("again"), stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer_text("again", 4)
    assert len(up.truth.by_marker("again")) == 2


def test_the_wait_that_the_provider_asked_for_is_kept(gateway: Gateway, up: FakeUpstream) -> None:
    began = time.monotonic()
    with gateway.client(max_retries=2) as client:
        assert create(client, "fake/error-429?times=1&tokens=2&retry_after=1", "patience") == answer_text("patience", 2)
    assert time.monotonic() - began >= 1
    assert len(up.truth.by_marker("patience")) == 2


@pytest.mark.parametrize("script", ["insufficient-quota", "error-401", "error-403"])
def test_an_account_that_waiting_does_not_mend_is_not_tried_again(
    gateway: Gateway, up: FakeUpstream, script: str
) -> None:
    # A model that no other test asks for: the account of its deployment is not asked again for a minute.
    with gateway.client(max_retries=2) as client, pytest.raises(openai.InternalServerError):
        create(client, f"fake/{script}?tokens=11", f"once-{script}")
    assert len(up.truth.by_marker(f"once-{script}")) == 1


def test_a_budget_that_is_spent_is_not_tried_again(gateway: Gateway) -> None:
    gateway.set_price("fake", "normal?tokens=3&first_ms=9", "0", "1000")
    key = gateway.new_key("spend 0.003 USD/month")
    sent: list[object] = []
    counting = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with gateway.client(key, max_retries=2, http_client=counting) as client:
        create(client, "fake/normal?tokens=3&first_ms=9", max_tokens=3)
        sent.clear()
        with pytest.raises(openai.RateLimitError) as caught:
            create(client, "fake/normal?tokens=3&first_ms=9", max_tokens=3)
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(sent) == 1

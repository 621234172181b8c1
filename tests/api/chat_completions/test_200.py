"""A whole answer: the provider's own bytes under the name that was asked for."""

import json

import pytest

from api.asking import CREDENTIAL_CANARY, Capture, Tenant, chunks_of, marked
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text

ODD_BODY = (
    b'{ "object":"chat.completion",  "id" : "cmpl-1", "x_new": {"deep":[1,2.50,1e3,"\\u00e9"]},\n'
    b' "model":%s, "choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"a\\/b",'
    b'"x_thought":null}}], "created":1, "usage":{"total_tokens":5,"prompt_tokens":3,"completion_tokens":2,"x":0.10} }'
)


def test_an_answer_is_a_chat_completion_of_the_asked_model(gateway: Gateway) -> None:
    marker, messages = marked()
    status, headers, body = gateway.chat("fake/normal?tokens=4", messages=messages)
    answer = json.loads(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake/normal?tokens=4"
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"] == {"role": "assistant", "content": answer_text(marker, 4)}
    assert answer["usage"]["completion_tokens"] == 4


def test_the_headers_name_the_request_the_time_and_the_organization(gateway: Gateway, tenant: Tenant) -> None:
    _, headers, _ = gateway.chat("fake/normal", key=tenant.key)
    assert headers["x-request-id"].startswith("req_")
    assert headers["openai-processing-ms"].isdecimal()
    assert headers["openai-version"] == "2020-10-01"
    assert headers["openai-organization"] == tenant.organization_id
    assert not [name for name in headers if name.startswith("x-ratelimit-")], "nothing limits this key"


def test_two_requests_have_two_ids(gateway: Gateway) -> None:
    ids = {gateway.chat("fake/normal")[1]["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_clients_own_request_id_is_not_taken_over(gateway: Gateway) -> None:
    body = {"model": "fake/normal", "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"X-Request-ID": "req_00000000000000000000000000000000"}
    _, answered, _ = gateway.request("POST", "/v1/chat/completions", body, headers=headers)
    assert answered["x-request-id"] != headers["X-Request-ID"]


def test_the_bytes_of_the_provider_are_passed_on_but_for_the_model(gateway: Gateway, up: FakeUpstream) -> None:
    async def run(x: Exchange) -> None:
        await x.whole(200, "application/json", ODD_BODY % b'"odd-body"')

    up.script("odd-body", run)
    _, _, body = gateway.chat("fake/odd-body")
    assert body == ODD_BODY % b'"fake/odd-body"'


def test_the_bytes_of_the_provider_are_untouched_where_the_names_agree(gateway: Gateway, up: FakeUpstream) -> None:
    async def run(x: Exchange) -> None:
        await x.whole(200, "application/json", ODD_BODY % b'"fake/same-name"')

    up.script("same-name", run)
    _, _, body = gateway.chat("fake/same-name")
    assert body == ODD_BODY % b'"fake/same-name"'


def test_a_name_inside_the_text_of_an_answer_is_not_renamed(gateway: Gateway, up: FakeUpstream) -> None:
    content = 'I am "model":"inner-name" and "model": "inner-name".'

    async def run(x: Exchange) -> None:
        message = {"role": "assistant", "content": content, "extra": {"model": "inner-name"}}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "choices": [choice], "model": "inner-name"}
        await x.whole(200, "application/json", json.dumps(answer, separators=(",", ":")).encode())

    up.script("inner-name", run)
    answer = json.loads(gateway.chat("fake/inner-name")[2])
    assert answer["model"] == "fake/inner-name"
    assert answer["choices"][0]["message"]["content"] == content
    assert answer["choices"][0]["message"]["extra"] == {"model": "inner-name"}


def test_an_answer_without_usage_gets_ours(gateway: Gateway) -> None:
    _, headers, body = gateway.chat("fake/usage-missing?tokens=7")
    usage = json.loads(body)["usage"]
    (record,) = gateway.records(headers["x-request-id"])
    assert usage["completion_tokens"] == record.usage.output_tokens == 7
    assert usage["prompt_tokens"] == record.usage.input_tokens > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("model", ["usage-negative", "usage-huge", "usage-text"])
def test_a_usage_that_cannot_be_true_is_replaced_by_the_one_that_is_charged(gateway: Gateway, model: str) -> None:
    usage = json.loads(gateway.chat(f"fake/{model}?tokens=7")[2])["usage"]
    assert usage["completion_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7


def test_a_listed_model_is_served_under_its_bare_name_too(gateway: Gateway) -> None:
    status, _, body = gateway.chat("simulator-instant")
    assert (status, json.loads(body)["model"]) == (200, "simulator-instant")


def test_several_choices_come_back_whole(gateway: Gateway) -> None:
    marker, messages = marked()
    answer = json.loads(gateway.chat("fake/normal?tokens=3", messages=messages, n=3)[2])
    spoken = [choice["message"]["content"] for choice in answer["choices"]]
    assert spoken == [answer_text(marker, 3, choice) for choice in range(3)]


@pytest.mark.parametrize("stream", [False, True])
def test_the_limits_of_a_key_show_in_the_headers(gateway: Gateway, stream: bool) -> None:
    key = Tenant(gateway, limits="requests 50/minute; tokens 100000/hour").key
    _, headers, _ = gateway.chat("fake/normal?tokens=5", key=key, stream=stream, max_tokens=10)
    assert headers["x-ratelimit-limit-requests"] == "50"
    assert headers["x-ratelimit-remaining-requests"] == "49"
    assert headers["x-ratelimit-limit-tokens"] == "100000"
    assert 99_900 <= int(headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert headers["x-ratelimit-reset-tokens"].endswith("s")


def test_a_prefix_that_is_declared_may_end_the_messages(gateway: Gateway) -> None:
    for declared in ({"prefix": True}, {"partial": True}):
        last = {"role": "assistant", "content": "The answer is", **declared}
        messages = [{"role": "user", "content": "Hi"}, last]
        assert gateway.chat("fake/normal", messages=messages)[0] == 200
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The"}]
    assert gateway.chat("fake/normal", messages=messages, continue_final_message=True)[0] == 200


def test_every_kind_of_message_passes(gateway: Gateway, capture: Capture) -> None:
    marker, last = marked()
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}], "name": "boss"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "refusal": None},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
        {"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "AA=="}}]},
        *last,
    ]
    status, _, body = gateway.chat("fake/capture", messages=messages)
    assert status == 200, body
    assert capture.body(marker)["messages"] == messages


def test_the_credential_of_the_provider_is_nowhere_in_an_answer(gateway: Gateway) -> None:
    _, headers, body = gateway.chat("fake/normal")
    assert CREDENTIAL_CANARY not in f"{headers} {body!r}"


def test_a_body_that_is_sent_in_chunks_is_read_whole(gateway: Gateway) -> None:
    import http.client  # noqa: PLC0415 - only here

    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
    parts = [
        b'{"model": "simulator-instant", ',
        b'"messages": [{"role": "user", ',
        b'"content": "Hi"}], "stream": true}',
    ]
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", iter(parts), headers, encode_chunked=True)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200
    assert chunks_of(body)


def test_scripts_of_the_fake_are_reached_by_their_listed_names(gateway: Gateway, up: FakeUpstream) -> None:
    async def run(x: Exchange) -> None:
        await scripts.answer(x)

    up.script("Some/Model:7b", run)
    status, _, body = gateway.chat("fake/Some/Model:7b")
    assert (status, json.loads(body)["model"]) == (200, "fake/Some/Model:7b")

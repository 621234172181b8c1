"""Moderations, images and sound pass through: the model renamed, the form written anew, one record for each request."""

import json
from typing import Any

import pytest

from api.asking import Capture, Tenant, error_of
from fakes.endpoints import PNG, SOUND
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from meterhouse.usage import Exactness, Outcome

BOUNDARY = "the-clients-own"
FORM_TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
FILE = ('name="file"; filename="a.mp3"', b"sound bytes")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/moderations": {"input": "Hello"},
    "/v1/images/generations": {"prompt": "A cat"},
    "/v1/audio/speech": {"input": "Hello", "voice": "alloy"},
}


def form(*parts: tuple[str, bytes]) -> bytes:
    pieces = [
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), head.encode(), content)
        for head, content in parts
    ]
    return b"".join(pieces) + f"--{BOUNDARY}--\r\n".encode()


def post_form(gateway: Gateway, *parts: tuple[str, bytes], path: str = "transcriptions", key: str | None = None) -> Any:
    return gateway.request("POST", f"/v1/audio/{path}", form(*parts), headers=FORM_TYPE, key=key)


def model_part(model: str = "fake/normal") -> tuple[str, bytes]:
    return ('name="model"', model.encode())


def test_a_moderation(gateway: Gateway) -> None:
    body = {"model": "fake/normal", "input": ["one two", "three"]}
    status, headers, answer = gateway.request("POST", "/v1/moderations", body)
    assert (status, json.loads(answer)["model"]) == (200, "fake/normal")
    assert json.loads(answer)["results"][0]["flagged"] is False
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.operation, record.outcome, record.exactness) == (
        "moderations",
        Outcome.COMPLETED,
        Exactness.COUNTED,
    )
    assert (record.usage.input_tokens, record.usage.output_tokens) == (3, 0)


@pytest.mark.parametrize("reports", [False, True])
def test_an_image(gateway: Gateway, reports: bool) -> None:
    model = "fake/normal?usage=always" if reports else "fake/normal"
    body = {"model": model, "prompt": "A cat", "n": 2, "size": "1024x1024"}
    status, headers, answer = gateway.request("POST", "/v1/images/generations", body)
    assert (status, [row["b64_json"] for row in json.loads(answer)["data"]]) == (200, [PNG, PNG])
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.operation, record.exactness) == ("images", Exactness.REPORTED if reports else Exactness.ASSUMED)
    assert record.usage.output_tokens == (272 if reports else 0)


def test_speech_comes_back_byte_for_byte(gateway: Gateway) -> None:
    body = {"model": "fake/normal", "input": "Hello there", "voice": "alloy"}
    status, headers, answer = gateway.request("POST", "/v1/audio/speech", body)
    assert (status, headers["content-type"], answer) == (200, "audio/mpeg", SOUND)
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.operation, record.exactness) == ("audio_speeches", Exactness.ASSUMED)


@pytest.mark.parametrize(
    ("path", "operation"), [("transcriptions", "audio_transcriptions"), ("translations", "audio_translations")]
)
def test_a_sound_is_sent_on_in_a_form_of_our_own(
    gateway: Gateway, capture: Capture, up: FakeUpstream, path: str, operation: str
) -> None:
    sound = b"\x00\xff\r\n--not-a-boundary\r\n" * 20
    status, headers, answer = post_form(
        gateway,
        ('name="file"; filename="a.mp3"', sound),
        model_part("fake/normal?usage=always"),
        ('name="timestamp_granularities[]"', b"word"),
        ('name="timestamp_granularities[]"', b"segment"),
        path=path,
    )
    assert (status, json.loads(answer)["text"]) == (200, f"{len(sound)} bytes of sound")
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.operation, record.exactness) == (operation, Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.input_audio_tokens, record.usage.output_tokens) == (14, 14, 5)
    attempt = up.attempts[-1]
    assert attempt.request["path"] == f"/v1/audio/{path}"
    assert attempt.request["model"] == "normal?usage=always"
    assert attempt.request["fields"] == ["file", "model", "timestamp_granularities[]"]


def test_a_form_is_under_the_rules_of_a_body(gateway: Gateway, up: FakeUpstream) -> None:
    language = ('name="language"', "säo".encode())
    assert post_form(gateway, FILE, model_part(), ('name="user"', b"u1"), language)[0] == 200
    sent = up.attempts[-1].request
    assert sent["user"].startswith("mh-")
    assert sent["fields"] == ["file", "language", "model", "user"]


def test_what_a_row_drops_is_dropped_from_a_form_and_what_it_denies_is_refused(up: FakeUpstream, tmp_path: Any) -> None:
    with Gateway(tmp_path / "data", provider_environment("transformers", up.base_url)) as own:
        parts = (FILE, model_part("transformers/normal"))
        assert post_form(own, *parts, ('name="user"', b"u1"))[0] == 200
        assert up.attempts[-1].request["fields"] == ["file", "model"]
        status, _, body = post_form(own, *parts, ('name="response_format"', b"text"))
        assert (status, error_of(body)["param"]) == (400, "response_format")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/audio/speech", {"input": "Hello", "voice": {"id": "voice_1"}}, "voice"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "audio": {"format": "mp3", "voice": {"id": "voice_1"}}},
            "audio.voice",
        ),
    ],
)
def test_a_voice_that_is_stored_is_refused(gateway: Gateway, path: str, body: dict[str, Any], param: str) -> None:
    status, _, answer = gateway.request("POST", path, {"model": "fake/normal", **body})
    assert (status, error_of(answer)["param"], error_of(answer)["code"]) == (400, param, "unsupported_parameter")


def test_a_text_is_passed_on_as_text(gateway: Gateway) -> None:
    status, headers, answer = post_form(gateway, FILE, model_part(), ('name="response_format"', b"text"))
    assert (status, headers["content-type"], answer) == (200, "text/plain", b"11 bytes of sound\n")
    (record,) = gateway.records(headers["x-request-id"])
    assert record.exactness is Exactness.ASSUMED


def test_a_budget_takes_a_price_per_request_and_no_other(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="spend 1 USD total")
    body = {"model": "fake/normal?tokens=11", "prompt": "A cat"}
    for prices in ({}, {"input_usd": "1", "output_usd": "0"}):
        if prices:
            price = {"provider": "fake", "model": "normal?tokens=11", **prices}
            assert gateway.request("POST", "/admin/prices", price, key=gateway.admin_key)[0] == 201
        status, _, answer = gateway.request("POST", "/v1/images/generations", body, key=tenant.key)
        assert (status, error_of(answer)["code"]) == (402, "not_priced")
    price = {
        "provider": "fake",
        "model": "normal?tokens=11",
        "input_usd": "0",
        "output_usd": "0",
        "request_usd": "0.04",
    }
    assert gateway.request("POST", "/admin/prices", price, key=gateway.admin_key)[0] == 201
    status, headers, _ = gateway.request("POST", "/v1/images/generations", body, key=tenant.key)
    assert status == 200
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.charge_nanos, record.charges) == (40_000_000, (("request", 40_000_000),))
    (limit,) = gateway.limits(tenant.key)
    assert (limit["spent"], limit["reserved"]) == (40_000_000, 0)


@pytest.mark.parametrize(
    ("part", "status"),
    [
        ({"type": "text", "text": "one two"}, 200),
        ({"type": "text", "text": "one two", "more": "x" * 2_000}, 429),
        ({"type": "text", "text": {"of": "x" * 2_000}}, 429),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, 402),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}, "text": "a text beside it"}, 402),
        ({"type": "text", "image_url": {"url": "data:image/png;base64,AA"}, "text": "a text beside it"}, 402),
    ],
)
def test_all_of_a_part_to_be_moderated_is_held(gateway: Gateway, part: dict[str, Any], status: int) -> None:
    model = "normal?tokens=14"
    price = {"provider": "fake", "model": model, "input_usd": "1000", "output_usd": "0"}
    assert gateway.request("POST", "/admin/prices", price, key=gateway.admin_key)[0] == 201
    key = gateway.new_key("spend 1 USD total")
    body = {"model": f"fake/{model}", "input": [part]}
    assert gateway.request("POST", "/v1/moderations", body, key=key)[0] == status


IMAGE_NANOS = 40_000_000


@pytest.mark.parametrize(("special", "came"), [("", 3), ("short", 2), ("generous", 3)])
def test_each_image_that_came_has_its_price(gateway: Gateway, special: str, came: int) -> None:
    model = f"normal?tokens=12&special={special}"
    price = {"provider": "fake", "model": model, "input_usd": "0", "output_usd": "0", "request_usd": "0.04"}
    assert gateway.request("POST", "/admin/prices", price, key=gateway.admin_key)[0] == 201
    tenant = Tenant(gateway, limits="spend 0.2 USD total; requests 9 total")
    body = {"model": f"fake/{model}", "prompt": "A cat", "n": 3}
    status, headers, _ = gateway.request("POST", "/v1/images/generations", body, key=tenant.key)
    assert status == 200
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.charge_nanos, record.charges) == (came * IMAGE_NANOS, (("request", came * IMAGE_NANOS),))
    assert (record.requests, record.overrun_nanos) == (1, 0)
    spent = {limit["kind"]: (limit["spent"], limit["reserved"]) for limit in gateway.limits(tenant.key)}
    assert spent == {"spend": (came * IMAGE_NANOS, 0), "requests": (1, 0)}
    # What is left is enough for fewer, and all that are asked for must fit.
    left = 5 - came
    for count, expected in ((left + 1, 429), (left, 200)):
        status, _, answer = gateway.request("POST", "/v1/images/generations", {**body, "n": count}, key=tenant.key)
        assert status == expected, answer


@pytest.mark.parametrize("answer", [b"{}", b'{"data":null}', b'{"data":{"url":"x"}}'])
def test_an_answer_without_images_is_the_providers_failure_and_charges_none(
    gateway: Gateway, up: FakeUpstream, answer: bytes
) -> None:
    model = f"odd-image-{len(answer)}"
    up.script(model, lambda exchange: exchange.whole(200, "application/json", answer))
    price = {"provider": "fake", "model": model, "input_usd": "0", "output_usd": "0", "request_usd": "0.04"}
    assert gateway.request("POST", "/admin/prices", price, key=gateway.admin_key)[0] == 201
    body = {"model": f"fake/{model}", "prompt": "A cat", "n": 3}
    status, headers, said = gateway.request("POST", "/v1/images/generations", body)
    assert (status, error_of(said)["code"]) == (502, "upstream_protocol_error")
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.charge_nanos) == (Outcome.UPSTREAM_FAILED, 0)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("model", "status"), [("error-500", 502), ("error-429", 503), ("error-400", 400), ("html-200", 502)]
)
def test_a_failing_provider_has_its_status_and_charges_nothing(
    gateway: Gateway, path: str, model: str, status: int
) -> None:
    # A deployment of its own: five failures in a row would open the breaker of one that other tests use.
    named = f"fake/{model}?tokens={40 + len(path)}"
    answered, headers, body = gateway.request("POST", path, {"model": named, **BODIES[path]})
    assert answered == status, error_of(body)
    (record,) = gateway.records(headers["x-request-id"])
    assert record.charge_nanos == record.usage.total_tokens == 0


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/moderations", {"input": [1]}, "input"),
        ("/v1/moderations", {"input": []}, "input"),
        ("/v1/images/generations", {"prompt": ""}, "prompt"),
        ("/v1/images/generations", {"n": 11}, "n"),
        ("/v1/images/generations", {"stream": True}, "stream"),
        ("/v1/audio/speech", {"input": "x" * 4_097}, "input"),
        ("/v1/audio/speech", {"speed": 9}, "speed"),
        ("/v1/audio/speech", {"stream_format": "sse"}, "stream_format"),
    ],
)
def test_what_no_provider_would_take_is_refused(
    gateway: Gateway, path: str, fields: dict[str, Any], param: str
) -> None:
    status, _, body = gateway.request("POST", path, {"model": "fake/normal", **BODIES[path], **fields})
    assert (status, error_of(body)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([FILE], "model"),
        ([model_part()], "file"),
        ([FILE, model_part(""), model_part()], "model"),
        ([FILE, model_part(), model_part("fake/other")], "model"),
        ([FILE, ('name="model"; filename="m"', b"fake/normal")], "model"),
        ([FILE, model_part(), ('name="stream"', b"true")], "stream"),
        ([FILE, model_part("x" * 257)], "model"),
        ([FILE, model_part(), ("nom=1", b"")], None),
        ([FILE, model_part(), ('name="file_ids[]"', b"file-1")], "file_ids[]"),
        ([FILE, model_part(), ('name="vector_store_ids"', b"vs_1")], "vector_store_ids"),
        ([FILE, model_part(), ('name="user"; filename="u"', b"u1")], "user"),
    ],
)
def test_a_form_that_could_be_read_in_two_ways_is_refused(gateway: Gateway, parts: Any, param: str | None) -> None:
    status, _, body = post_form(gateway, *parts)
    assert (status, error_of(body)["param"]) == (400, param)


def test_a_form_is_needed_where_a_file_is(gateway: Gateway) -> None:
    status, _, body = gateway.request("POST", "/v1/audio/transcriptions", {"model": "fake/normal"})
    assert (status, error_of(body)["code"]) == (415, "unsupported_media_type")


def test_an_upload_is_bounded(gateway: Gateway) -> None:
    status, _, body = post_form(gateway, ('name="file"; filename="a"', b"x" * 200_001), model_part())
    assert (status, error_of(body)["code"]) == (413, "request_too_large")


def test_a_provider_without_the_endpoint_is_not_asked(up: FakeUpstream, tmp_path: Any) -> None:
    with Gateway(tmp_path / "data", provider_environment("deepseek", up.base_url)) as own:
        for path, body in BODIES.items():
            status, _, answer = own.request("POST", path, {"model": "deepseek/normal", **body})
            assert (status, error_of(answer)["code"]) == (400, "unsupported_endpoint")
        # Moderations need not name a model; nobody here has OpenAI's.
        status, _, answer = own.request("POST", "/v1/moderations", {"input": "a"})
        assert (status, error_of(answer)["code"]) == (404, "model_not_found")

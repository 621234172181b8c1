"""What a provider's error becomes: its status and text only where the caller is at fault, and never a secret."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import UpstreamAccount, UpstreamBusy, UpstreamDown, UpstreamRefused
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.provider import ActiveProvider
from meterhouse.providers.refusal import MAX_MESSAGE_LENGTH, error_in_stream, to_error

CREDENTIAL = "plainly-unkeylike"
ENDPOINT = ActiveProvider(provider=PROVIDERS["openai"], base_url="http://10.0.0.5:8000/v1", credential=CREDENTIAL)


def convert(status: int, value: object, retry_after_seconds: float | None = None):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return to_error(status, body, ENDPOINT, retry_after_seconds)


SHAPES = {
    "openai": ({"error": {"message": "too long", "type": "t", "param": "messages", "code": "c"}}, "c", "messages"),
    "flat (cerebras)": ({"message": "too long", "type": "t", "param": "messages", "code": "c"}, "c", "messages"),
    "flat (sglang)": ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "400", None),
    "mistral": ({"object": "error", "message": {"detail": [{"loc": ["a"], "msg": "too long"}]}}, None, None),
    "ollama": ({"error": "too long"}, None, None),
    "fastapi text": ({"detail": "too long"}, None, None),
    "fastapi list": ({"detail": [{"loc": ["body", "n"], "msg": "too long", "type": "x"}]}, None, None),
    "gemini list": ([{"error": {"code": 400, "message": "too long", "status": "INVALID"}}], "400", None),
    "vllm": ({"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}, "400", None),
}


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_the_callers_fault_keeps_status_text_code_and_param(shape, status):
    value, code, param = SHAPES[shape]
    error = convert(status, value)
    assert isinstance(error, UpstreamRefused)
    assert "too long" in error.message
    assert (error.status, error.code, error.param) == (status, code, param)
    assert error.should_retry is False
    assert error.type == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"<html>413</html>", b"", b"\xff\xfe", b"[]", b"{}", b"null", b"[" * 100_000, b'"', b"7"]
)
def test_a_refusal_without_readable_json_has_a_fixed_text(body):
    error = convert(413, body)
    assert isinstance(error, UpstreamRefused)
    assert error.message == "The provider openai refused the request with status 413."


@pytest.mark.parametrize("status", [401, 402, 403])
def test_what_is_the_operators_fault_says_so_and_nothing_of_the_provider(status):
    error = convert(status, {"error": {"message": "Incorrect API key provided: sk-proj-abc***xyz1"}})
    assert isinstance(error, UpstreamDown)
    assert error.status == 502
    assert "tell the operator" in error.message
    assert "Incorrect" not in error.message
    assert error.detail == f"status {status}, code None, type None"
    assert error.should_retry is False


@pytest.mark.parametrize(
    ("status", "field", "word"),
    [(429, "code", "insufficient_quota"), (429, "type", "exceeded_current_quota_error"), (400, "code", "Arrearage")],
)
def test_an_empty_account_is_the_operators_fault_whatever_its_status(status, field, word):
    error = convert(status, {"error": {"message": "m", field: word}})
    assert error.status == 502
    assert error.should_retry is False
    assert "operator" in error.message


def test_the_providers_own_rate_limit_is_a_503_with_its_patience():
    error = convert(
        429, {"error": {"message": "Limit in organization org-abcdef12345", "code": "rate_limit_exceeded"}}, 7.5
    )
    assert isinstance(error, UpstreamBusy)
    assert (error.status, error.retry_after_seconds) == (503, 7.5)
    assert "org-" not in error.message + error.detail


def test_a_provider_with_too_much_to_do_is_a_503_too():
    error = convert(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 2.0)
    assert isinstance(error, UpstreamBusy)
    assert (error.status, error.retry_after_seconds) == (503, 2.0)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 405, 409, 204])
def test_everything_else_is_a_502_with_a_fixed_text(status):
    error = convert(status, {"error": {"message": "stack trace of theirs"}}, 3.0)
    assert isinstance(error, UpstreamDown)
    assert error.status == 502
    assert "stack" not in error.message + error.detail
    assert f"status {status}" in error.detail
    assert error.retry_after_seconds == 3.0


@pytest.mark.parametrize(
    "secret",
    [
        CREDENTIAL,
        "sk-proj-Ab12Cd34Ef56Gh78",
        "sk-ab*************wxyz",
        "csk-12345678abcd",
        "gsk_12345678abcd",
        "AIzaSyA1234567890abcd",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "org-Ab12Cd34Ef56",
        "0123456789abcdef0123456789abcdef01234567",
        "10.0.0.5:8000",
    ],
)
def test_no_secret_of_any_form_is_repeated(secret):
    value = {
        "error": {"message": f"refused: Bearer {secret}, key={secret} ({secret})", "code": secret, "param": secret}
    }
    for status in (400, 401, 429, 500):
        error = convert(status, value)
        assert secret not in f"{error.message} {error.detail} {error.code} {error.param}"
    assert "refused" in convert(400, value).message


def test_ordinary_words_are_left_alone():
    text = "messages[0].content: max_completion_tokens must be at most 16384; see https://platform.openai.com/docs/api-reference"
    assert convert(400, {"error": {"message": text}}).message == text


def test_a_text_is_one_line_and_capped():
    error = convert(400, {"error": {"message": "a\r\nb\u2028\x00\x1b[31mc" + " long" * 10_000}})
    assert error.message.startswith("a b [31mc long")
    assert len(error.message) == MAX_MESSAGE_LENGTH
    assert error.message.isprintable()


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["error", "message", "detail", "code", "loc", "msg", "status", "type"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_body_of_a_provider_breaks_it(value):
    for status in (400, 401, 429, 500):
        error = convert(status, value)
        assert 0 < len(error.message) <= MAX_MESSAGE_LENGTH
        assert error.code is None or len(error.code) <= 64
    assert error_in_stream(value if isinstance(value, bytes) else json.dumps(value).encode(), ENDPOINT).message


@pytest.mark.parametrize(
    ("value", "kind", "status"),
    [
        ({"message": "boom", "type": "server_error", "code": None}, UpstreamDown, 502),
        ({"message": "slow down", "code": "rate_limit_exceeded"}, UpstreamBusy, 503),
        ({"message": "slow down", "code": 429}, UpstreamBusy, 503),
        ({"message": "The engine is overloaded", "type": "engine_overloaded_error"}, UpstreamBusy, 503),
        ({"message": "too long", "code": 400, "type": "BadRequestError"}, UpstreamRefused, 400),
        ({"message": "too long", "type": "invalid_request_error"}, UpstreamRefused, 400),
        ({"message": "no money", "code": 402}, UpstreamAccount, 502),
        ({"message": "no money", "code": "insufficient_quota"}, UpstreamAccount, 502),
        ("plain words", UpstreamDown, 502),
    ],
)
def test_an_error_inside_a_stream_is_understood_bare_and_in_its_event(value, kind, status):
    for raw in (value, {"id": "x", "choices": [], "error": value}):
        error = error_in_stream(json.dumps(raw).encode(), ENDPOINT)
        assert type(error) is kind
        assert error.status == status
    assert "boom" not in error.message


@pytest.mark.parametrize(("status", "is_certain"), [(401, True), (402, True), (403, False)])
def test_a_403_may_be_the_inputs_fault(status, is_certain):
    error = convert(status, {"error": {"message": "m"}})
    assert isinstance(error, UpstreamAccount)
    assert error.is_certain is is_certain


@pytest.mark.parametrize(("status", "is_certain"), [(401, True), (402, False), (403, False)])
def test_a_402_of_openrouter_may_be_of_one_requests_max_tokens(status, is_certain):
    endpoint = ActiveProvider(provider=PROVIDERS["openrouter"], base_url="https://openrouter.ai/api/v1")
    value = {"error": {"code": status, "message": "requires more credits, or fewer max_tokens"}}
    body = json.dumps(value).encode()
    for error in (to_error(status, body, endpoint, None), error_in_stream(body, endpoint)):
        assert isinstance(error, UpstreamAccount)
        assert error.is_certain is is_certain

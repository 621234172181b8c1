"""Parser differentials (CVE-2026-45400): bodies that we and a provider would read differently.

What is counted and checked must be what the provider reads: of two keys of one name it may take the other, and what we
hold for the short prompt would pay for the long one.
"""

import json

import pytest

from api.asking import Capture, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

MODEL = b'"model":"fake/normal?tokens=1"'
HI = b'"messages":[{"role":"user","content":"Hi"}]'
TWICE = {
    "at the top": b'{%b,%b,"model":"fake/other"}' % (MODEL, HI),
    "in a message": b'{%b,"messages":[{"role":"user","content":"Hi","content":"%b"}]}' % (MODEL, b"long " * 99),
    "in a part": b'{%b,"messages":[{"role":"user","content":[{"type":"text","text":"a","text":"b"}]}]}' % MODEL,
    "in a tool": b'{%b,%b,"tools":[{"type":"function","function":{"name":"f","name":"g"}}]}' % (MODEL, HI),
    "in what is unknown": b'{%b,%b,"x":{"a":[{"b":1,"b":2}]}}' % (MODEL, HI),
    "written otherwise": b'{%b,%b,"x":{"ab":1,"a\\u0062":2}}' % (MODEL, HI),
}
NOT_JSON = {
    "NaN": b"NaN",
    "infinity": b"-Infinity",
    "a number beyond every range": b"1e999",
    "a leading zero": b"01",
    "a lone high surrogate": b'"\\ud800 and more text"',
    "a lone low surrogate": b'"\\udc00 and more text"',
    "surrogates the wrong way round": b'"\\udc00\\ud800 and more"',
    "no UTF-8": b'"\xff\xfe"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "an overlong slash": b'"\xc0\xaf"',
    "a bare control character": b'"\x01"',
    "a comment": b"1/*x*/",
    "a trailing comma": b"[1,]",
    "single quotes": b"'a'",
    "an unknown escape": b'"\\x41"',
}
WHERE = {
    "unknown": b'{%b,%b,"x":%%b}' % (MODEL, HI),
    "message": b'{%b,"messages":[{"role":"user","content":"Hi","name":%%b}]}' % MODEL,
    "schema": b'{%b,%b,"tools":[{"type":"function","function":{"name":"f","parameters":{"a":%%b}}}]}' % (MODEL, HI),
}
ENCODED = {
    "utf-16": (b"{%b,%b}" % (MODEL, HI)).decode().encode("utf-16"),
    "utf-32": (b"{%b,%b}" % (MODEL, HI)).decode().encode("utf-32-le"),
    "utf-8 with a mark": b"\xef\xbb\xbf{%b,%b}" % (MODEL, HI),
    "something behind": b"{%b,%b}{}" % (MODEL, HI),
    "a NUL behind": b"{%b,%b}\x00" % (MODEL, HI),
}


def refused(gateway: Gateway, up: FakeUpstream, body: bytes, path: str = "/v1/chat/completions") -> str:
    before = len(up.attempts)
    status, _, answer = gateway.request("POST", path, body)
    error = error_of(answer)
    assert (status, error["type"], len(up.attempts)) == (400, "invalid_request_error", before), error
    return str(error["code"])


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_key_that_is_there_twice(gateway: Gateway, up: FakeUpstream, path: str, name: str) -> None:
    assert refused(gateway, up, TWICE[name], path) == "invalid_json"


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_json_does_not_have_wherever_it_stands(gateway: Gateway, up: FakeUpstream, name: str) -> None:
    for place in WHERE.values():
        refused(gateway, up, place % NOT_JSON[name])


@pytest.mark.parametrize("name", ENCODED)
def test_another_encoding(gateway: Gateway, up: FakeUpstream, name: str) -> None:
    assert refused(gateway, up, ENCODED[name]) == "invalid_json"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
def test_a_body_that_is_encoded_is_not_read(gateway: Gateway, coding: str) -> None:
    headers = {"content-encoding": coding}
    status, _, body = gateway.request("POST", "/v1/chat/completions", b"\x1f\x8b" + b"\0" * 99, headers=headers)
    assert (status, error_of(body)["code"]) == (415, "unsupported_media_type")


def test_what_is_unusual_and_json_passes_unchanged(gateway: Gateway, capture: Capture) -> None:
    """The control: a NUL, a pair of surrogates and the last character are text, and reach the provider as they are."""
    marker, messages = marked()
    messages.insert(0, {"role": "user", "content": "\x00 \U0001f600 \uffff \u2028"})
    body = json.dumps({"model": "fake/capture", "messages": messages, "x": [1e308, -0.0, 2**63, "\x7f"]}).encode()
    assert gateway.request("POST", "/v1/chat/completions", body)[0] == 200
    sent = capture.body(marker)
    assert sent["messages"] == messages
    assert sent["x"] == [1e308, -0.0, 2**63, "\x7f"]

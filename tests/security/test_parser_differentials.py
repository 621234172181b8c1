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


OTHER_LETTERS = {
    "the model": b'{%b,%b,"MODEL":"fake/other"}' % (MODEL, HI),
    "how many answers": b'{%b,%b,"N":50}' % (MODEL, HI),
    "a stream": b'{%b,%b,"Stream":true}' % (MODEL, HI),
    "a long s": b'{%b,%b,"\xc5\xbftream":true}' % (MODEL, HI),
    "what is stored": b'{%b,%b,"Previous_Response_ID":"resp_1"}' % (MODEL, HI),
    "whose it is": b'{%b,%b,"User":"somebody"}' % (MODEL, HI),
    "all messages": b'{%b,%b,"Messages":[{"role":"user","content":"%b"}]}' % (MODEL, HI, b"long " * 99),
    "in a message": b'{%b,"messages":[{"role":"user","content":"Hi","Content":"%b"}]}' % (MODEL, b"long " * 99),
    "in a part": b'{%b,"messages":[{"role":"user","content":[{"type":"text","text":"a","Text":"b"}]}]}' % MODEL,
    "alone in a part": b'{%b,"messages":[{"role":"user","content":[{"type":"text","tEXT":"b"}]}]}' % MODEL,
    "in a call": b'{%b,"messages":[{"role":"user","content":"Hi"},{"role":"assistant","tool_calls":[{"id":"1",'
    b'"type":"function","function":{"name":"f","arguments":"","Arguments":"long"}}]},'
    b'{"role":"tool","tool_call_id":"1","content":"Hi"}]}' % MODEL,
}
"""Servers written in Go take a name in any letters, and of several the last: what we had checked was another value."""


@pytest.mark.parametrize("name", OTHER_LETTERS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_name_in_other_letters(gateway: Gateway, up: FakeUpstream, path: str, name: str) -> None:
    assert refused(gateway, up, OTHER_LETTERS[name], path) == "unsupported_parameter"


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("completions", b'"prompt":"a"'),
        ("responses", b'"input":"a"'),
        ("embeddings", b'"input":"a"'),
        ("moderations", b'"input":"a"'),
        ("images/generations", b'"prompt":"a"'),
        ("audio/speech", b'"input":"a","voice":"alloy"'),
    ],
)
def test_a_name_in_other_letters_on_every_wire(gateway: Gateway, up: FakeUpstream, path: str, given: bytes) -> None:
    body = b'{%b,%b,"Model":"fake/other"}' % (MODEL, given)
    assert refused(gateway, up, body, f"/v1/{path}") == "unsupported_parameter"


def test_a_name_of_the_bound_in_other_letters_stays_here(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    body = {"model": "fake/capture", "messages": messages, "max_tokens": 5, "max_token\u017f": 900, "MAX_TOKENS": 900}
    assert gateway.request("POST", "/v1/chat/completions", body)[0] == 200
    assert [name for name in capture.body(marker) if "max" in name.casefold()] == ["max_tokens"]


def test_names_of_nobody_may_have_any_letters(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    parts = [{"type": "text", "text": messages[0]["content"], "cacheControl": {"Text": 1}}]
    body = {"model": "fake/capture", "messages": [{"role": "user", "content": parts, "Id": {"Role": 1}}], "topK": 5}
    assert gateway.request("POST", "/v1/chat/completions", body)[0] == 200
    assert capture.body(marker)["topK"] == 5

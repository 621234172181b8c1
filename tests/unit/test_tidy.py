"""A usage beside a stream's text is left out, wherever it stands and however it is spelled.

And what is no text, or no choice, is no reason to fail an answer.
"""

import json

import pytest

from meterhouse.http.chunk import decode_chunk
from meterhouse.http.tidy import Tidying, leave_out_usage, tidy
from meterhouse.http.whole import WholeAnswer
from meterhouse.usage import Usage

TEXT = b'"choices":[{"index":0,"delta":{"content":"Hi"}}]'
USAGE = b'{"prompt_tokens":1,"completion_tokens":2}'
QUOTED = json.dumps("so: " + ',"usage":' + USAGE.decode()).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"{" + TEXT + b',"usage":' + USAGE + b"}",
        b'{"choices": [{"index": 0, "delta": {"content": "Hi"}}], "usage": ' + USAGE + b"}",
        b'{"usage":' + USAGE + b"," + TEXT + b"}",
        b"{" + TEXT + b' , "usage"\t:' + USAGE + b" }",
        b"{" + TEXT + b',"usage":' + USAGE + b',"x":{"a":1,"usage":' + USAGE + b"}}",
        b'{"choices":[{"index":0,"delta":{"content":' + QUOTED + b'}}],"usage":' + USAGE + b"}",
    ],
)
def test_all_but_the_usage_stays(payload: bytes) -> None:
    wanted = json.loads(payload)
    del wanted["usage"]
    assert json.loads(leave_out_usage(payload, decode_chunk(payload).usage)) == wanted


def test_what_usually_comes_keeps_its_bytes() -> None:
    assert leave_out_usage(
        b"{" + TEXT + b',"usage":' + USAGE + b"}", decode_chunk(b'{"usage":' + USAGE + b"}").usage
    ) == (b"{" + TEXT + b"}")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":[{"delta":{"content":"Hi"},"finish_reason":"end"},null]}',
        b'{"choices":[{"message":{"content":"Hi","tool_calls":[{"id":""},1]},"finish_reason":"end"}]}',
        b'{"choices":[{"delta":{"content":"Hi","\xff":1,"reasoning":"so"}}]}',
        b'{"choices":[{"finish_reason":"end"}],"\xff":1}',
        b'{"model"  :"m","\xff":1}',
    ],
)
def test_what_cannot_be_read_for_it_passes_as_it_came(payload: bytes) -> None:
    chunk, reasons = decode_chunk(payload), {"end": "stop"}
    assert tidy(payload, chunk, "asked", reasons) == payload
    assert Tidying("asked", reasons).tidy(payload, chunk) == payload
    assert WholeAnswer(payload, chunk, "asked", reasons, has_usage=True).body(Usage()) == payload


def test_a_body_with_a_name_that_is_no_text_is_given_no_usage() -> None:
    usage = b'"usage" :{"prompt_tokens":1}'
    payload = b'{"choices":[],"\xff":1,' + usage + b"}"
    chunk = decode_chunk(payload)
    assert leave_out_usage(payload, chunk.usage) == payload
    assert WholeAnswer(payload, chunk, "asked", {}, has_usage=False).body(Usage()) == payload

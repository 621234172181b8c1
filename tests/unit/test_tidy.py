"""A usage beside a stream's text is left out, wherever it stands and however it is spelled."""

import json

import pytest

from meterhouse.http.chunk import decode_chunk
from meterhouse.http.tidy import leave_out_usage

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

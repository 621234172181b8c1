"""What the simple endpoints make of a provider's chunks."""

import json
from collections.abc import Callable

import pytest

from meterhouse.translate.simple_chat import write_content, write_named


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_content, b'data: {"content":"Hi"}\n\n'),
        (write_named, b'event: message\ndata: {"content":"Hi","done":false}\n\n'),
    ],
)
def test_an_error_that_is_null_is_none(write: Callable[[bytes], bytes], said: bytes) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}], "error": None}
    assert write(json.dumps(chunk).encode()) == said

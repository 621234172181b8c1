"""Compressed bodies are not read: what they unpack to has no bound."""

import gzip
import json

import pytest

from api.asking import error_of
from fakes.gateway import Gateway

BODY = json.dumps({"model": "fake/normal", "messages": [{"role": "user", "content": "Hi"}]}).encode()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"])
def test_an_encoded_body_is_refused(gateway: Gateway, encoding: str) -> None:
    headers = {"Content-Encoding": encoding}
    status, _, body = gateway.request("POST", "/v1/chat/completions", gzip.compress(BODY), headers=headers)
    error = error_of(body)
    assert (status, error["type"], error["code"]) == (415, "invalid_request_error", "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
def test_identity_is_no_encoding(gateway: Gateway, encoding: str) -> None:
    headers = {"Content-Encoding": encoding}
    assert gateway.request("POST", "/v1/chat/completions", BODY, headers=headers)[0] == 200

"""Clients that people have besides the SDK, in their own words: requests, httpx and curl, streamed and not."""

import json
import shutil
import subprocess

import httpx2
import pytest
import requests

from api.asking import chunks_of, marked, text_of
from fakes.gateway import Gateway
from fakes.words import answer_text

TOKENS = 20
"""Of the answer of ``normal``."""


def test_requests_reads_the_simple_stream_line_by_line(gateway: Gateway) -> None:
    marker, messages = marked()
    said = ""
    with requests.post(
        f"{gateway.url}/api/chat",
        json={"messages": messages, "model": "fake/normal"},
        headers={"Authorization": f"Bearer {gateway.key}"},
        stream=True,
        timeout=60,
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines(decode_unicode=True):
            if line and line.startswith("data: "):
                data = line[6:]
                if data == "[DONE]":
                    break
                said += json.loads(data)["content"]
    assert said == answer_text(marker, TOKENS)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_requests_asks_as_openai_is_asked(gateway: Gateway, is_streamed: bool) -> None:
    marker, messages = marked()
    with requests.post(
        f"{gateway.url}/v1/chat/completions",
        json={"model": "fake/normal", "messages": messages, "temperature": 0.7, "stream": is_streamed},
        headers={"Authorization": f"Bearer {gateway.key}"},
        stream=is_streamed,
        timeout=60,
    ) as answer:
        if is_streamed:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: ")]
            said = text_of([json.loads(line) for line in lines if line != b"[DONE]"])
        else:
            said = answer.json()["choices"][0]["message"]["content"]
    assert said == answer_text(marker, TOKENS)


def test_requests_gets_a_body_that_says_what_is_wrong(gateway: Gateway) -> None:
    answer = requests.post(f"{gateway.url}/chat", json={}, headers={"Authorization": "Bearer nobody"}, timeout=60)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_httpx_reads_the_events_as_they_come(gateway: Gateway) -> None:
    marker, [said] = marked()
    pieces = []
    async with (
        httpx2.AsyncClient(base_url=gateway.url, headers={"Authorization": f"Bearer {gateway.key}"}) as client,
        client.stream("POST", "/stream", json={"message": said["content"], "model": "fake/normal"}) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line[6:])
                pieces.append(event["content"])
                if event["done"]:
                    break
    assert "".join(pieces) == answer_text(marker, TOKENS)


def test_curl_prints_the_stream(gateway: Gateway) -> None:
    marker, messages = marked()
    curl = shutil.which("curl")
    assert curl, "curl is missing: Debian's package is curl"
    body = json.dumps({"model": "fake/normal", "messages": messages, "stream": True})
    command = [curl, "--silent", "--show-error", "--no-buffer", f"{gateway.url}/v1/chat/completions"]
    command += ["-H", f"Authorization: Bearer {gateway.key}", "-H", "Content-Type: application/json", "-d", body]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert text_of(chunks_of(printed)) == answer_text(marker, TOKENS)

"""Requests and streams through nginx, with HTTP/1.1 and HTTP/2, by the official SDK and by plain clients."""

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from fakes.fleet import ServeProcess
from fakes.gateway import MESSAGES
from fakes.nginx_server import NginxServer
from fakes.upstream import FakeUpstream

VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


@VERSIONS
def test_the_sdk_talks_and_streams(edge: NginxServer, fleet: ServeProcess, http2: bool) -> None:
    with edge.client(fleet.key, http2=http2) as client:
        whole = client.chat.completions.with_raw_response.create(model="fake/normal", messages=MESSAGES)
        assert whole.http_response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert whole.headers["x-request-id"].startswith("req_")
        assert whole.headers["openai-organization"]
        chunks = list(
            client.chat.completions.create(
                model="fake/normal?tokens=30", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        )
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 30
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="no-such-model", messages=MESSAGES)
        assert caught.value.code == "model_not_found"


def test_the_sdk_trusts_the_authority_by_the_environment_alone(
    edge: NginxServer, fleet: ServeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(edge.ca))
    with openai.OpenAI(base_url=edge.base_url, api_key=fleet.key, max_retries=0) as client:
        assert client.models.list().data


@VERSIONS
def test_what_has_been_said_arrives_while_the_rest_is_not_said_yet(
    edge: NginxServer, fleet: ServeProcess, up: FakeUpstream, http2: bool
) -> None:
    with edge.client(fleet.key, http2=http2) as client:
        stream = client.chat.completions.create(
            model="fake/normal?tokens=4&gate=2", messages=MESSAGES, stream=True, timeout=60
        )
        texts = [next_text(stream) for _ in range(2)]
        assert all(texts)
        up.wait_for(lambda truth: truth.attempts[-1].is_held)
        up.release()
        assert len(list(stream)) >= 2


def next_text(stream: openai.Stream[Any]) -> str:
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            return str(chunk.choices[0].delta.content)
    return ""


def test_many_streams_share_one_connection(edge: NginxServer, fleet: ServeProcess) -> None:
    """HTTP/2: 20 streams that all wait for one another."""

    async def run() -> list[bytes]:
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(verify=edge.trust(), http2=True, limits=limits, timeout=20) as client:
            body = {"model": "fake/gate?gate=2&count=20", "messages": MESSAGES, "stream": True}
            head = {"authorization": f"Bearer {fleet.key}"}
            asked = (client.post(f"{edge.base_url}/chat/completions", json=body, headers=head) for _ in range(20))
            return [answer.content for answer in await asyncio.gather(*asked)]

    assert all(body.endswith(b"data: [DONE]\n\n") for body in asyncio.run(run()))

"""Rows 27 and 31: nginx is reloaded or killed in mid-stream, a worker is killed, and no POST is ever sent twice."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from edge.wire import error_of, read_answer
from fakes.daemon import is_alive, wait_until
from fakes.fleet import ServeProcess
from fakes.h2_client import H2Client
from fakes.nginx_server import NginxServer
from fakes.upstream import FakeUpstream
from fakes.words import answer_text

TEXT = "Say it. marker={}"


def ask_for(marker: str, model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": TEXT.format(marker)}]}


def text_of(stream: openai.Stream[Any]) -> Iterator[str]:
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content


def rows_of(fleet: ServeProcess, request_id: str) -> list[dict[str, Any]]:
    return [row for row in fleet.read_ledger() if row["request_id"] == request_id.removeprefix("req_")]


def test_a_reload_cuts_no_stream_and_loses_no_byte(
    own_edge: NginxServer, fleet: ServeProcess, up: FakeUpstream
) -> None:
    order = {"stream": True, "stream_options": {"include_usage": True}}
    slow = "fake/normal?tokens=40&gate=5"
    with own_edge.client(fleet.key) as client, own_edge.client(fleet.key) as other, H2Client(own_edge) as second:
        stream = client.chat.completions.create(**ask_for("reload", slow), **order)
        pieces = text_of(stream)
        said = [next(pieces)]
        number = second.post("/v1/chat/completions", {**ask_for("reload", slow), **order}, fleet.key)
        second.read_until(number, b"delta")
        draining = own_edge.reload()
        assert draining
        assert other.chat.completions.create(**ask_for("reload-new", "fake/normal")).choices
        up.release()
        assert "".join([*said, *pieces]) == answer_text("reload", 40)
        body = second.read_until(number)
        assert second.was_told_to_go
        request_ids = [stream.response.headers["x-request-id"], second.headers[number]["x-request-id"]]
    events = [json.loads(line) for line in body.decode().removesuffix("data: [DONE]\n\n").split("data: ")[1:]]
    assert "".join(row["delta"].get("content") or "" for event in events for row in event["choices"]) == answer_text(
        "reload", 40
    )
    assert body.endswith(b"data: [DONE]\n\n")
    for request_id in request_ids:
        (row,) = fleet.wait_for(lambda request_id=request_id: rows_of(fleet, request_id))
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("completed", "reported", 40)
    wait_until(lambda: not any(map(is_alive, draining)), "the end of old workers of nginx")


def test_a_killed_nginx_is_a_client_that_leaves(own_edge: NginxServer, fleet: ServeProcess, up: FakeUpstream) -> None:
    with own_edge.client(fleet.key) as client:
        stream = client.chat.completions.create(**ask_for("nginx-dies", "fake/normal?tokens=40&gate=5"), stream=True)
        pieces = text_of(stream)
        next(pieces)
        own_edge.kill()
        with pytest.raises(openai.APIConnectionError):
            list(pieces)
        request_id = stream.response.headers["x-request-id"]
    (row,) = fleet.wait_for(lambda: rows_of(fleet, request_id))
    up.release()
    assert row["outcome"] == "client_gone"
    assert row["output_tokens"] >= 1
    own_edge.start()
    with own_edge.client(fleet.key) as client:
        assert client.chat.completions.create(**ask_for("after", "fake/normal")).choices


def test_a_connection_whose_stream_ends_while_its_worker_drains_takes_one_more_request(
    fleet: ServeProcess, up: FakeUpstream, socket_path: Path
) -> None:
    """nginx may send a request on it the moment the stream has ended, and would not send it again."""
    body = json.dumps({**ask_for("draining", "fake/normal?tokens=9&gate=5"), "stream": True})
    head = f"host: localhost\r\nauthorization: Bearer {fleet.key}\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(socket_path))
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        data = connection.recv(65_536)
        old = set(fleet.serving())
        fleet.reload()
        fleet.wait_workers(but=old)
        time.sleep(0.5)  # nothing tells when the old ones have begun to drain
        up.release()
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += connection.recv(65_536)
        connection.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode())
        status, headers, _ = read_answer(connection)
    assert status == 200
    assert headers["connection"] == "close"


# --- row 31: exactly one attempt, whenever the worker dies


@pytest.fixture
def warm_edge(tmp_path: Path, socket_path: Path, fleet: ServeProcess) -> Iterator[NginxServer]:
    """One worker of nginx, which has a connection to a worker of the gateway in reserve."""
    with NginxServer(tmp_path / "nginx", socket=socket_path, values={"WORKERS": "1"}) as edge:
        assert edge.request("GET", "/v1/models", key=fleet.key)[0] == 200
        yield edge


def kill_all(fleet: ServeProcess) -> None:
    workers = fleet.serving()
    for pid in workers:
        fleet.kill(pid)
    fleet.wait_workers(but=set(workers))


def test_a_worker_that_dies_before_it_reads_a_post(
    warm_edge: NginxServer, fleet: ServeProcess, up: FakeUpstream
) -> None:
    for pid in fleet.serving():
        fleet.pause(pid)
    with warm_edge.client(fleet.key, timeout=20) as client:
        failures: list[BaseException | None] = []

        def send() -> None:
            try:
                client.chat.completions.create(**ask_for("unread", "fake/normal"))
            except openai.APIStatusError as error:
                failures.append(error)
            else:
                failures.append(None)

        sending = threading.Thread(target=send)
        sending.start()
        time.sleep(0.3)  # nothing tells when nginx has sent it: nobody reads it
        kill_all(fleet)
        sending.join(20)
    (failure,) = failures
    assert isinstance(failure, openai.InternalServerError)
    assert (failure.status_code, failure.type) == (502, "server_error")
    assert failure.request_id is not None
    assert not up.truth.by_marker("unread")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_worker_that_dies_after_it_read_a_post(
    warm_edge: NginxServer, fleet: ServeProcess, up: FakeUpstream, stream: bool
) -> None:
    marker = f"read-{stream}"
    with warm_edge.client(fleet.key, timeout=20) as client:
        killer = threading.Thread(
            target=lambda: (up.truth.wait_for(lambda truth: truth.by_marker(marker)), kill_all(fleet))
        )
        killer.start()
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**ask_for(marker, "fake/gate"), stream=stream)
        killer.join(20)
    up.release()
    assert caught.value.status_code == 502
    assert error_of(caught.value.response.content)["code"] == "unavailable"
    assert len(up.truth.by_marker(marker)) == 1


def test_a_worker_that_dies_in_mid_stream_ends_the_stream_and_nothing_else(
    warm_edge: NginxServer, fleet: ServeProcess, up: FakeUpstream
) -> None:
    with warm_edge.client(fleet.key, timeout=20) as client:
        stream = client.chat.completions.create(**ask_for("streaming", "fake/normal?tokens=9&gate=5"), stream=True)
        pieces = text_of(stream)
        next(pieces)
        kill_all(fleet)
        with pytest.raises(openai.APIConnectionError):
            list(pieces)
        assert client.chat.completions.create(**ask_for("after-that", "fake/normal")).choices
    up.release()
    assert len(up.truth.by_marker("streaming")) == 1

"""Requests that are admitted in one turn of the loop share the write of their INTENTs, and its failure."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from failure.bench import Bench, new_marker, wait_for
from failure.raw_client import ask
from fakes.files import FaultyFiles
from fakes.gateway import read_ledger
from meterhouse.usage import Outcome

TOGETHER = 8
PATH = "/v1/chat/completions"
INTENT = b"\x01\xdc\x00\x12\x01"
"""How an INTENT begins: the version, an array of 18, its tag."""


class CountedFiles(FaultyFiles):
    """Remembers how many INTENTs were to be written in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.most_intents = 0

    def pwrite(self, descriptor: int, data: bytes, offset: int, /) -> int:  # type: ignore[override]
        self.most_intents = max(self.most_intents, data.count(INTENT))
        return super().pwrite(descriptor, data, offset)


@pytest.fixture(scope="module")
def files() -> CountedFiles:
    return CountedFiles()


class Crowd:
    """Clients whose connections stand, and who ask all at once: their requests are seen in one turn of the loop."""

    def __init__(self, house: Bench, stack: ExitStack) -> None:
        self.house = house
        address = urlsplit(house.gateway.url)
        self.clients = [
            stack.enter_context(closing(HTTPConnection(address.hostname or "", address.port, timeout=30)))
            for _ in range(TOGETHER)
        ]
        self.ask_and_let_go(lambda: None)
        assert {status for status, _, _ in self.answers()} == {200}
        wait_for(lambda: house.open_connections == 0)

    def ask_and_let_go(self, meanwhile: Callable[[], None], *, stream: bool = False) -> None:
        """Ask while the gateway's loop stands still, do something before it goes on."""
        standing, go_on = threading.Event(), threading.Event()

        def stand_still() -> None:
            standing.set()
            assert go_on.wait(30)

        holding = threading.Thread(target=self.house.gateway.call, args=(stand_still,))
        holding.start()
        assert standing.wait(30)
        headers = {"authorization": f"Bearer {self.house.gateway.key}", "content-type": "application/json"}
        for client in self.clients:
            body = json.dumps(ask("fake/normal", new_marker(), stream=stream))
            client.request("POST", PATH, body, headers)
        meanwhile()
        go_on.set()
        holding.join()

    def answers(self) -> list[tuple[int, dict[str, str], bytes]]:
        """Return all answers: status, headers, body."""
        answers = [client.getresponse() for client in self.clients]
        return [(answer.status, dict(answer.headers), answer.read()) for answer in answers]


@pytest.fixture
def crowd(bench: Bench) -> Iterator[Crowd]:
    with ExitStack() as stack:
        yield Crowd(bench, stack)


@pytest.fixture(params=[False, True], ids=["body", "stream"])
def stream(request: Any) -> bool:
    return request.param


def test_the_intents_of_one_turn_are_one_write(crowd: Crowd, files: CountedFiles, stream: bool) -> None:
    files.most_intents = 0
    crowd.ask_and_let_go(lambda: None, stream=stream)
    assert [status for status, _, _ in crowd.answers()] == [200] * TOGETHER
    assert files.most_intents > 1


def test_what_the_disk_does_not_take_is_refused_and_no_provider_hears_of_it(
    crowd: Crowd, files: CountedFiles, stream: bool
) -> None:
    house = crowd.house
    asked, files.most_intents = len(house.up.attempts), 0
    try:
        crowd.ask_and_let_go(files.fail_writes, stream=stream)
        answers = crowd.answers()
    finally:
        files.heal()
    for status, headers, body in answers:
        assert (status, json.loads(body)["error"]["code"]) == (503, "ledger_unavailable")
        assert headers.get("x-should-retry") != "false"
    assert len(house.up.attempts) == asked
    assert files.most_intents > 1
    wait_for(lambda: house.gateway.request("GET", "/health/ready")[0] == 200)
    house.gateway.run(house.gateway.parts.records.ship_all)
    for _, headers, _ in answers:
        (record,) = house.gateway.records(headers["x-request-id"])
        assert (record.outcome, record.attempt, record.charge_nanos) == (Outcome.NOT_SENT, 0, 0)


def test_a_write_that_fails_once_goes_into_the_reserve_and_everybody_is_served(
    crowd: Crowd, files: CountedFiles, stream: bool
) -> None:
    crowd.ask_and_let_go(lambda: files.fail_writes(1, torn_bytes=40), stream=stream)
    answers = crowd.answers()
    assert [status for status, _, _ in answers] == [200] * TOGETHER
    for _, headers, _ in answers:
        (record,) = crowd.house.gateway.records(headers["x-request-id"])
        assert record.outcome is Outcome.COMPLETED


def test_clients_that_leave_at_once_leave_a_record_of_each_request_that_reached_the_provider(
    crowd: Crowd, stream: bool
) -> None:
    house = crowd.house

    def rows() -> list[str]:
        house.gateway.run(house.gateway.parts.records.ship_all)
        return [row["request_id"] for row in read_ledger(house.gateway.data)]

    def leave() -> None:
        for client in crowd.clients:
            client.sock.shutdown(socket.SHUT_RDWR)

    before, asked = rows(), len(house.up.attempts)
    crowd.ask_and_let_go(leave, stream=stream)
    wait_for(lambda: house.live == 0)
    wait_for(lambda: house.open_connections == 0)
    after = rows()
    assert len(set(after)) == len(after)
    assert len(house.up.attempts) - asked <= len(after) - len(before) <= TOGETHER

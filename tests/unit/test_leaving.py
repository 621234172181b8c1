"""Who wants to know that a client has left hears it once: at once, later, or not at all any more."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.types import Scope

from meterhouse.http.flow import Flow
from meterhouse.http.leaving import CLIENT, Leaving, leaving_of


class Hearing:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def leave(self, subject: str, /) -> None:
        self.heard.append(subject)


@pytest.fixture
async def flow() -> AsyncIterator[Flow]:
    mine, other = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=mine)
    yield Flow(transport)
    transport.close()
    other.close()


def client_of(scope: Scope) -> Leaving:
    found = leaving_of(scope)
    assert found is not None
    return found


async def test_it_is_told_when_it_happens_and_once(flow: Flow) -> None:
    scope: Scope = {CLIENT: Leaving(flow)}
    hearing = Hearing()
    client_of(scope).watch(hearing, "mine")
    assert hearing.heard == []
    client_of(scope).tell()
    client_of(scope).tell()
    assert hearing.heard == ["mine"]


async def test_who_asks_too_late_hears_it_at_once(flow: Flow) -> None:
    scope: Scope = {CLIENT: Leaving(flow)}
    hearing = Hearing()
    client_of(scope).tell()
    client_of(scope).watch(hearing, "mine")
    assert hearing.heard == ["mine"]


async def test_who_no_longer_asks_hears_nothing(flow: Flow) -> None:
    scope: Scope = {CLIENT: Leaving(flow)}
    hearing = Hearing()
    client_of(scope).watch(hearing, "mine")
    client_of(scope).forget()
    client_of(scope).tell()
    assert hearing.heard == []


async def test_a_connection_is_read_while_somebody_waits_for_its_end(flow: Flow) -> None:
    scope: Scope = {CLIENT: Leaving(flow)}
    flow.pause_reading()
    client_of(scope).watch(Hearing(), "mine")
    assert not flow.read_paused


async def test_a_connection_that_closes_is_not_read_on(flow: Flow) -> None:
    flow.pause_reading()
    flow._transport.close()
    flow.resume_reading()  # raises where a closed transport is read
    assert flow.read_paused


def test_a_server_that_says_nothing_has_none() -> None:
    assert leaving_of({}) is None

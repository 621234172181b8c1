"""The end of a passed-through completion: it waits for the record, and what fails after it takes nothing back."""

import json

import pytest

from failure.raw_client import Client as RawClient
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Outcome


def stream_one(gateway: Gateway, model: str, marker: str, **fields: object) -> RawClient:
    body = {"model": model, "prompt": f"Say marker={marker}", "stream": True, **fields}
    return RawClient(gateway.url, gateway.key, body, path="/v1/completions")


def text_of(client: RawClient) -> str:
    return "".join(row["text"] for chunk in client.chunks for row in chunk["choices"])


@pytest.mark.parametrize("fault", ["error", "not-json"])
def test_what_fails_in_the_same_read_as_the_end_takes_nothing_back(gateway: Gateway, fault: str) -> None:
    model = f"fake/one-write?tokens=3&fault={fault}&at=finish&usage=finish"
    client = stream_one(gateway, model, f"ends-{fault}").read_all()
    assert client.has_done
    assert (text_of(client), client.finish_reasons) == (answer_text(f"ends-{fault}", 3), ["stop"])
    (record,) = gateway.records(client.request_id)
    assert (record.outcome, record.usage.output_tokens) == (Outcome.COMPLETED, 3)


def chunk(text: str, reason: str | None = None) -> bytes:
    row = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    data = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "fewer", "choices": [row]}
    return f"data: {json.dumps(data)}\n\n".encode()


async def give_one_choice(exchange: Exchange) -> None:
    await exchange.head(200, {"content-type": "text/event-stream"})
    await exchange.emit(chunk("One "))
    await exchange.emit(chunk("choice.", "stop"))
    await exchange.hold("finish")
    await exchange.emit(b"data: [DONE]\n\n")
    await exchange.end()


def test_an_end_waits_for_the_record_where_fewer_choices_come_than_were_asked_for(
    gateway: Gateway, up: FakeUpstream
) -> None:
    up.script("fewer", give_one_choice)
    client = stream_one(gateway, "fake/fewer", "ends-fewer", n=2)
    client.read_until(lambda c: "One " in text_of(c))
    client.read_for(0.2)
    assert client.finish_reasons == []
    assert up.release(name="fewer") == 1
    client.read_all()
    assert client.has_done
    assert (text_of(client), client.finish_reasons) == ("One choice.", ["stop"])
    (record,) = gateway.records(client.request_id)
    assert record.outcome is Outcome.COMPLETED


async def give_no_finish(exchange: Exchange) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    only = json.loads(chunk("Words.").removeprefix(b"data: ")) | {"usage": usage}
    await exchange.head(200, {"content-type": "text/event-stream"})
    await exchange.emit(f"data: {json.dumps(only)}\n\ndata: [DONE]\n\n".encode())
    await exchange.end()


def test_text_that_came_with_a_done_that_ends_nothing_is_not_lost(gateway: Gateway, up: FakeUpstream) -> None:
    up.script("unfinished", give_no_finish)
    client = stream_one(gateway, "fake/unfinished", "ends-unfinished").read_all()
    assert b"Words." in client.body
    assert (client.status, client.has_done) == (200, False)
    (record,) = gateway.records(client.request_id)
    assert (record.outcome, record.usage.output_tokens) == (Outcome.UPSTREAM_FAILED, 1)

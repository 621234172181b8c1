"""Budgets and quotas on either way: what is held, what is cut, what has no bound."""

import pytest

from api.responses.post import PATH, Post, marked
from failure.raw_client import Client
from fakes import scripts
from fakes.exchange import Exchange
from fakes.responses_wire import read_stream
from fakes.upstream import FakeUpstream
from meterhouse.usage import Outcome

IMAGE = {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"}
FILE = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,AAAA"}


@pytest.fixture(scope="module")
def deaf(up: FakeUpstream) -> str:
    """A script that ignores the bound of the answer."""

    async def run(exchange: Exchange) -> None:
        wire = scripts.open_wire(exchange)
        wire.limit = None
        await (scripts.stream if exchange.request.is_streamed else scripts.whole)(exchange, wire)

    up.script("deaf", run)
    return "deaf?tokens=50"


def test_an_answer_that_goes_past_its_allowance_is_cut_as_one_that_reached_its_bound(
    post: Post, provider: str, deaf: str
) -> None:
    key = post.gateway.new_key("tokens 3000 total")
    headers, events = post.stream(f"{provider}/{deaf}&fault=stall&at=40", key=key, max_output_tokens=10)
    response = events[-1].response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (record,) = post.gateway.records(headers["x-request-id"])
    assert record.outcome is Outcome.CUT
    assert response.usage.output_tokens == record.usage.output_tokens <= 10
    (limit,) = post.gateway.limits(key)
    assert (limit["spent"], limit["reserved"]) == (record.usage.total_tokens, 0)


def test_a_cut_answer_has_all_that_was_told(post: Post, provider: str, deaf: str, up: FakeUpstream) -> None:
    key = post.gateway.new_key("tokens 3000 total")
    model = f"{provider}/{deaf}&gate=5&fault=stall&at=40"
    body = {"model": model, "input": "Hello", "stream": True, "max_output_tokens": 10}
    client = Client(post.gateway.url, key, body, path=PATH)
    client.read_until(lambda c: c.body.count(b"event: response.output_text.delta") >= 5)
    up.release(name="deaf")
    events = read_stream(client.read_all().body)
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told
    assert events[-1].response.output_text == told


@pytest.mark.parametrize("part", [IMAGE, FILE])
def test_what_has_no_bound_is_refused_for_a_key_with_a_budget(post: Post, provider: str, part: dict[str, str]) -> None:
    key = post.gateway.new_key("spend 1 USD total")
    for model in ("normal?tokens=2", "normal?tokens=3"):
        post.gateway.set_price(provider, model, "1", "4")
    content = [{"type": "input_text", "text": "See"}, part]
    fields = {"input": [{"role": "user", "content": content}]}
    status, error = post.refused(f"{provider}/normal?tokens=2", key=key, **fields)
    assert (status, error["code"], error["param"]) == (402, "not_priced", "input")
    assert post.whole(f"{provider}/normal?tokens=2", **fields)[1].status == "completed"


def test_a_prompt_is_held_by_its_bytes(post: Post, provider: str) -> None:
    _, said = marked()
    key = post.gateway.new_key("tokens 1100 total")
    status, error = post.refused(f"{provider}/normal?tokens=1", key=key, input=said, instructions="x" * 1_000)
    assert (status, error["code"]) == (429, "rate_limit_exceeded")
    assert "too large" in error["message"]

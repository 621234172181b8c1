"""What is dropped between thoughts and text was generated all the same: it is counted before it is dropped."""

import json
from concurrent.futures import ThreadPoolExecutor

from api.asking import events_of
from api.limits.arrange import Bench
from fakes import scripts
from fakes.exchange import Exchange

ANSWERS = 6
LIMIT_TOKENS = 40_000
BLANKS = "\n" * 64


async def think_then_blanks(exchange: Exchange) -> None:
    """Think, wait for all others, send blanks up to ``max_tokens`` and the finish, and the usage a little later."""
    wire = scripts.open_wire(exchange)
    await exchange.head(200, {"content-type": wire.content_type})
    await exchange.emit(wire.token(0, {"content": "<think>a</think>"}, None))
    await exchange.flush()
    await exchange.hold("blanks")
    asked = exchange.request.body["max_tokens"]
    events = [wire.token(0, {"content": BLANKS}, None)] * (asked // len(BLANKS))
    await exchange.write(b"".join(exchange.frame(event) for event in [*events, wire.finish(0, "length", None)]))
    await exchange.pause(50)
    usage = {"prompt_tokens": 8, "completion_tokens": asked, "total_tokens": 8 + asked}
    await exchange.emit(wire.alone(usage))
    await exchange.emit(wire.done())
    await exchange.end()


async def break_in_a_tag(exchange: Exchange) -> None:
    wire = scripts.open_wire(exchange)
    await exchange.head(200, {"content-type": wire.content_type})
    await exchange.emit(wire.token(0, {"content": "<think>a</thi"}, None))
    await exchange.flush()
    await exchange.end()


def test_blanks_behind_the_thoughts_do_not_overspend(bench: Bench) -> None:
    bench.up.script("blanks", think_then_blanks)
    bench.gateway.set_price("llamacpp", "blanks", "0.000001", "4")
    tenant = bench.tenant(key=f"spend {LIMIT_TOKENS * 4_000 / 10**9:.3f} USD/month")

    def ask(_: int) -> int:
        messages = [{"role": "user", "content": "marker=blanks"}]
        model, limit = "llamacpp/blanks", 16_000
        answer = bench.gateway.chat(model, key=tenant.key, messages=messages, max_tokens=limit, stream=True)
        return answer[0]

    with ThreadPoolExecutor(ANSWERS) as threads:
        asked = threads.map(ask, range(ANSWERS))
        bench.wait(lambda: sum(attempt.is_held for attempt in bench.up.truth.by_marker("blanks")) == ANSWERS)
        bench.up.release()
        assert list(asked) == [200] * ANSWERS
    (limit,) = bench.gateway.limits(tenant.key)
    assert limit["reserved"] == 0
    assert limit["spent"] <= limit["amount"]


def test_what_is_held_back_of_a_stream_that_breaks_goes_out_before_the_error(bench: Bench) -> None:
    bench.up.script("breaks", break_in_a_tag)
    tenant = bench.tenant()
    _, _, body = bench.gateway.chat(
        "llamacpp/breaks", key=tenant.key, messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    *chunks, failure = [json.loads(event) for event in events_of(body)]
    said = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["reasoning_content"] for delta in said] == ["a", "</thi"]
    assert "error" in failure

"""A price that changes while an answer is being streamed, and one that begins later."""

import threading
import time
from collections.abc import Callable

from api.asking import marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

SLOW = "gate?gate=3&tokens=6"


def set_price(gateway: Gateway, output_usd: str, model: str, start: int | None = None) -> None:
    body = {"provider": "fake", "model": model, "input_usd": "0", "output_usd": output_usd, "effective_from": start}
    status, _, answer = gateway.request("POST", "/admin/prices", body, key=gateway.admin_key)
    assert status == 201, answer


def ask_across(gateway: Gateway, up: FakeUpstream, change: Callable[[], None]) -> int:
    """Stream an answer, change something in its middle, and return what it was charged."""
    marker, messages = marked()
    answers: list[dict[str, str]] = []
    asking = threading.Thread(
        target=lambda: answers.append(gateway.chat(f"fake/{SLOW}", messages=messages, stream=True)[1])
    )
    asking.start()
    up.wait_for(lambda truth: any(attempt.is_held for attempt in truth.by_marker(marker)))
    change()
    up.release(name="gate")
    asking.join(60)
    (record,) = gateway.records(answers[0]["x-request-id"])
    return record.charge_nanos


def test_a_running_stream_keeps_the_price_of_its_admission(gateway: Gateway, up: FakeUpstream) -> None:
    set_price(gateway, "1", SLOW)
    assert ask_across(gateway, up, lambda: set_price(gateway, "7", SLOW)) == 6 * 1_000
    assert ask_across(gateway, up, lambda: set_price(gateway, "1", SLOW)) == 6 * 7_000


def test_a_price_begins_at_its_moment_without_anybody_doing_anything(gateway: Gateway) -> None:
    charges: list[int] = []
    for seconds in (3, 10, 30):
        model = f"normal?tokens=10&first_ms={seconds}"
        set_price(gateway, "1", model)
        start = int(time.time()) + seconds
        set_price(gateway, "5", model, start)
        charges.clear()
        while not charges or charges[-1] == 10_000:
            _, headers, _ = gateway.chat(f"fake/{model}")
            (record,) = gateway.records(headers["x-request-id"])
            assert record.charge_nanos == 10 * (5_000 if record.admitted_at_ms >= start * 1000 else 1_000)
            charges.append(record.charge_nanos)
        if charges[0] == 10_000:
            break  # or the machine was too busy to ask before it began
    assert (charges[0], charges[-1]) == (10_000, 50_000)


def test_a_price_cannot_begin_where_another_was_in_force(gateway: Gateway) -> None:
    body = {"provider": "fake", "model": "had-one", "input_usd": "1", "output_usd": "1"}
    past = int(time.time()) - 3600
    assert gateway.request("POST", "/admin/prices", body | {"effective_from": past}, key=gateway.admin_key)[0] == 201
    status, _, answer = gateway.request(
        "POST", "/admin/prices", body | {"effective_from": past + 60}, key=gateway.admin_key
    )
    assert (status, b"effective_from" in answer) == (400, True)

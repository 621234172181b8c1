"""What is said of requests that have ended: of a few at a time, in their order, and before any figure is read."""

import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from fakes.journals import make_record
from meterhouse.errors import Overloaded
from meterhouse.http.exchange import Exchange, Observer
from meterhouse.telemetry.live import Live
from meterhouse.telemetry.logs import RequestLog
from meterhouse.telemetry.metrics import Metrics
from meterhouse.telemetry.traces import Tracing

SECRET = "sk-mh-live-8Jd2kXw0-" + "Zx81" * 8


class House:
    """An observer, and whom it tells."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.log = RequestLog(format="json", level="info", stream=self.stream, call_later=lambda *_: None)
        self.metrics = Metrics()
        self.tracing = Tracing(endpoint=None, ratio=0.0)
        live = Live(None, lambda: (), lambda _: None, lambda _: None)
        self.observer = Observer(
            (self.log, self.metrics, self.tracing), live, None, lambda *timer: self.timers.append(timer)
        )

    def finish(self, name: str, error: Overloaded | None = None, model: str = "", tally: object = None) -> None:
        exchange = Exchange(
            name, f"req_{name}", self.tracing.new_trace(None), "GET", None, time.monotonic_ns(), time.time_ns()
        )
        exchange.status, exchange.error = 200 if error is None else 503, error
        exchange.model, exchange.tally = model, tally
        self.observer.finish(exchange)

    def told(self) -> list[str]:
        self.log.close()
        return [json.loads(line)["request_id"].removeprefix("req_") for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def house() -> House:
    return House()


def test_what_went_well_is_told_a_moment_later_and_all_at_once(house: House) -> None:
    for name in "abc":
        house.finish(name)
    assert house.told() == []
    ((seconds, flush),) = house.timers
    assert seconds == Observer.WAIT_SECONDS
    flush()
    assert house.told() == ["a", "b", "c"]
    house.finish("d")
    assert len(house.timers) == 2


def test_a_secret_that_a_client_says_for_a_model_is_not_in_the_line(house: House) -> None:
    tally = SimpleNamespace(records=(make_record(),), attempts=[], asked_ns=0, admitted_ns=0, is_streamed=False)
    house.finish("a", model=f"bench/{SECRET}", tally=tally)
    house.finish("b", model="bench/plain", tally=tally)
    house.observer.flush()
    assert house.told() == ["a", "b"]
    assert SECRET not in house.stream.getvalue().decode()
    assert "bench/plain" in house.stream.getvalue().decode()


def test_no_more_than_a_few_wait(house: House) -> None:
    for number in range(Observer.MOST_WAITING * 2 + 1):
        house.finish(str(number))
    assert house.told() == [str(number) for number in range(Observer.MOST_WAITING * 2)]


def test_what_went_wrong_is_told_at_once_and_after_what_ended_before_it(house: House) -> None:
    house.finish("a")
    house.finish("b", Overloaded("too much"))
    assert house.told() == ["a", "b"]


def test_figures_are_read_with_all_that_has_ended(house: House) -> None:
    for requests, read in ((1, house.metrics.render), (2, house.metrics.snapshot), (3, house.metrics.render)):
        house.finish("a")
        read()
        (count,) = [count.value for count in house.metrics._requests._children.values()]
        assert count == requests


def test_one_that_cannot_be_told_of_takes_no_other_with_it(house: House) -> None:
    for name in "abcd":
        house.finish(name)
    house.observer._waiting[1].began_ns = 1 << 80  # no time that there is
    with pytest.raises((OverflowError, ValueError)):
        house.observer.flush()
    assert house.told() == ["a", "c", "d"]


def test_an_observer_that_ends_tells_the_rest_and_has_nobody_wait_from_then_on(house: House) -> None:
    with house.observer:
        house.finish("a")
    house.finish("b")
    assert house.told() == ["a", "b"]


def test_a_line_has_the_time_at_which_its_request_ended(house: House) -> None:
    house.finish("a")
    ended = datetime.now(UTC)
    time.sleep(0.002)
    house.observer.flush()
    house.log.close()
    assert datetime.fromisoformat(json.loads(house.stream.getvalue())["timestamp"]) <= ended

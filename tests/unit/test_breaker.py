"""A breaker opens, probes and closes on an injected clock; a retry budget bounds extra attempts."""

import asyncio
import random

import pytest

from meterhouse.errors import UpstreamAccount, UpstreamBusy, UpstreamDown, UpstreamRefused, UpstreamTimeout
from meterhouse.providers.breaker import MAX_BREAKERS, Breaker, Breakers, RetryBudget
from meterhouse.providers.http_client import StaleConnection
from meterhouse.providers.prices import PriceBook
from meterhouse.providers.provider import ProviderSetting, RouteSetting, RouteTarget
from meterhouse.providers.routes import Wishes, build_snapshot

DOWN = UpstreamDown("down")
REFUSED = UpstreamRefused("no", status=400, code=None, param=None)


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def breaker(ticks: Ticks) -> Breaker:
    return Breaker(ticks)


def attempt(breaker: Breaker, error: BaseException | None) -> bool:
    leave = breaker.try_acquire()
    if leave is None:
        return False
    breaker.record(leave, error)
    return True


def trip(breaker: Breaker) -> None:
    for _ in range(5):
        assert attempt(breaker, DOWN)
    assert breaker.is_open


@pytest.mark.parametrize("error", [DOWN, UpstreamTimeout("late")])
def test_five_failures_in_a_row_open_it(breaker, error):
    for _ in range(4):
        attempt(breaker, error)
    assert not breaker.is_open
    attempt(breaker, error)
    assert breaker.is_open
    assert breaker.try_acquire() is None


def test_a_success_between_failures_starts_the_row_again(breaker):
    for error in (DOWN, DOWN, DOWN, DOWN, None, DOWN, DOWN, DOWN, DOWN):
        attempt(breaker, error)
    assert not breaker.is_open


def test_more_than_half_of_twenty_within_the_window_open_it(breaker, ticks):
    outcomes = [None, DOWN] * 9 + [None, None]
    for outcome in outcomes:
        attempt(breaker, outcome)
    assert not breaker.is_open
    ticks.now = 10
    for outcome in (DOWN, DOWN, DOWN):
        attempt(breaker, outcome)
    assert breaker.is_open


def test_what_is_older_than_the_window_does_not_count(breaker, ticks):
    for outcome in [DOWN, None] * 9:
        attempt(breaker, outcome)
    ticks.now = 31
    for outcome in (DOWN, DOWN, DOWN, None, DOWN):
        attempt(breaker, outcome)
    assert not breaker.is_open


@pytest.mark.parametrize("neutral", [REFUSED, asyncio.CancelledError(), UpstreamBusy("busy"), StaleConnection("gone")])
def test_refusals_cancellations_and_rate_limits_never_open_it(breaker, neutral):
    for _ in range(100):
        assert attempt(breaker, neutral)
    assert not breaker.is_open


def test_after_the_pause_one_probe_at_a_time_passes(breaker, ticks):
    trip(breaker)
    ticks.now = 4.9
    assert breaker.try_acquire() is None
    ticks.now = 5.0
    probe = breaker.try_acquire()
    assert probe is not None
    assert breaker.try_acquire() is None
    breaker.record(probe, None)
    assert not breaker.is_open
    assert breaker.try_acquire() is not None


def test_a_failed_probe_doubles_the_pause_up_to_a_minute(breaker, ticks):
    trip(breaker)
    for pause in (5, 10, 20, 40, 60, 60):
        ticks.now += pause - 0.1
        assert breaker.try_acquire() is None
        ticks.now += 0.1
        assert attempt(breaker, DOWN)
    ticks.now += 60
    assert attempt(breaker, None)
    trip(breaker)
    ticks.now += 5
    assert attempt(breaker, None)


def test_a_probe_that_says_nothing_makes_room_for_the_next(breaker, ticks):
    trip(breaker)
    ticks.now = 5
    assert attempt(breaker, REFUSED)
    assert breaker.is_open
    assert breaker.try_acquire() is not None
    assert breaker.try_acquire() is None
    ticks.now = 65
    assert breaker.try_acquire() is not None


def test_the_result_of_an_attempt_from_before_the_opening_changes_nothing(breaker, ticks):
    late = breaker.try_acquire()
    trip(breaker)
    breaker.record(late, None)
    assert breaker.is_open
    ticks.now = 5
    probe = breaker.try_acquire()
    breaker.record(late, DOWN)
    breaker.record(late, REFUSED)
    assert breaker.try_acquire() is None
    breaker.record(probe, None)
    assert not breaker.is_open


def test_after_closing_it_starts_with_a_clean_record(breaker, ticks):
    for outcome in [None, DOWN] * 10 + [DOWN]:
        attempt(breaker, outcome)
    assert breaker.is_open
    ticks.now = 5
    attempt(breaker, None)
    for outcome in (DOWN, DOWN, DOWN, DOWN):
        attempt(breaker, outcome)
    assert not breaker.is_open


def test_busy_and_open_deployments_come_last_and_recover(ticks):
    names = ("first", "second", "third")
    settings = [ProviderSetting(name=name, base_url="http://x", models=("m",)) for name in names]
    snapshot = build_snapshot(settings, is_simulator_on=False, prices=PriceBook([]), built_at_ms=0)
    deployments = snapshot.resolve("m", 0).deployments
    breakers = Breakers(ticks)

    def order() -> list[str]:
        return [deployment.provider.name for deployment in breakers.order(deployments)]

    assert order() == ["first", "second", "third"]
    trip(breakers.of("first/m"))
    assert order() == ["second", "third", "first"]
    attempt(breakers.of("second/m"), UpstreamBusy("busy", retry_after_seconds=20))
    assert order() == ["third", "second", "first"]
    ticks.now = 19.9
    assert order() == ["third", "second", "first"]
    ticks.now = 20
    assert order() == ["second", "third", "first"]
    attempt(breakers.of("first/m"), None)
    assert order() == ["first", "second", "third"]


def test_patience_is_bounded_whatever_the_provider_asks(breaker, ticks):
    attempt(breaker, UpstreamBusy("busy", retry_after_seconds=86_400))
    ticks.now = 59
    assert breaker.is_busy
    ticks.now = 60
    assert not breaker.is_busy


def test_names_made_up_by_callers_do_not_grow_without_bound(ticks):
    breakers = Breakers(ticks)
    kept = breakers.of("openai/kept")
    for number in range(MAX_BREAKERS + 10):
        breakers.of(f"openai/{number}")
        assert breakers.of("openai/kept") is kept
    assert len(breakers._breakers) == MAX_BREAKERS


def test_names_made_up_by_callers_close_no_breaker(ticks):
    breakers = Breakers(ticks)
    trip(breakers.of("openai/down"))
    for number in range(MAX_BREAKERS + 10):
        breakers.of(f"openai/{number}")
    assert breakers.of("openai/down").is_open
    assert len(breakers._breakers) == MAX_BREAKERS


def test_a_probe_that_nobody_made_is_left_to_the_next(ticks, breaker):
    trip(breaker)
    ticks.now = 5
    leave = breaker.try_acquire()
    assert breaker.try_acquire() is None
    breaker.give_back(leave)
    again = breaker.try_acquire()
    breaker.give_back(leave)
    assert breaker.try_acquire() is None
    breaker.record(again, None)
    assert not breaker.is_open


def test_extra_attempts_are_a_tenth_with_a_small_floor(ticks):
    budget = RetryBudget(ticks)
    assert [budget.try_spend() for _ in range(5)] == [True, True, True, False, False]
    for _ in range(100):
        budget.requests.add()
    assert [budget.try_spend() for _ in range(9)] == [True] * 7 + [False] * 2
    ticks.now = 11
    assert [budget.try_spend() for _ in range(4)] == [True, True, True, False]


def test_a_refused_account_takes_the_deployment_out_at_once_and_for_longer(breaker, ticks):
    told = []
    breaker._on_change = lambda state, reason: told.append((state, reason))
    attempt(breaker, UpstreamAccount("no", detail="status 402"))
    condition = breaker.condition()
    assert (condition.state, condition.reason) == ("account", "upstream_account: status 402")
    assert breaker.account_error is not None
    for pause in (60, 120, 240, 480, 600, 600):
        assert breaker.condition().retry_in_seconds == pause
        ticks.now += pause - 0.1
        assert breaker.try_acquire() is None
        ticks.now += 0.1
        assert attempt(breaker, UpstreamAccount("no"))
    ticks.now += 600
    assert attempt(breaker, None)
    assert breaker.condition().state == "closed"
    assert breaker.account_error is None
    assert [state for state, _ in told] == ["account"] * 7 + ["closed"]


def test_a_refusal_that_may_be_the_inputs_fault_is_one_failure_among_others(breaker):
    forbidden = UpstreamAccount("no")
    forbidden.is_certain = False
    for _ in range(4):
        attempt(breaker, forbidden)
    assert not breaker.is_open, "a caller could take a deployment away from all others"
    attempt(breaker, forbidden)
    assert breaker.condition().state == "open"


def routed(*targets: tuple[str, int, int]):
    """Return the deployments of a written route: (provider, order, weight)."""
    settings = [ProviderSetting(name=name, base_url="http://x", models=("m",)) for name, _, _ in targets]
    made = [
        RouteTarget(provider=name, upstream_model="m", order=order, weight=weight) for name, order, weight in targets
    ]
    wishes = Wishes(routes=(RouteSetting(model="m", targets=tuple(made)),))
    snapshot = build_snapshot(settings, is_simulator_on=False, prices=PriceBook([]), built_at_ms=0, wishes=wishes)
    return snapshot.resolve("m", 0).deployments


def first_of(breakers: Breakers, deployments) -> str:
    return breakers.order(deployments)[0].provider.name


def test_a_lower_order_goes_first_whatever_the_weights(ticks):
    deployments = routed(("spare", 1, 1_000), ("main", 0, 1))
    for draw in (0.0001, 0.5, 0.9999):
        assert first_of(Breakers(ticks, draw=lambda draw=draw: draw), deployments) == "main"


def test_of_the_same_order_the_least_busy_for_its_weight_goes_first(ticks):
    deployments = routed(("large", 0, 3), ("small", 0, 1))
    breakers = Breakers(ticks)
    large, small = breakers.of("large/m"), breakers.of("small/m")
    for large.in_flight, small.in_flight, expected in ((2, 1, "large"), (4, 1, "small"), (5, 2, "large")):
        assert first_of(breakers, deployments) == expected


def test_among_equals_chance_decides_by_weight(ticks):
    deployments = routed(("large", 0, 3), ("small", 0, 1))
    breakers = Breakers(ticks, draw=random.Random(7).random)
    count = sum(first_of(breakers, deployments) == "large" for _ in range(4_000))
    assert 2_900 < count < 3_100


def test_how_many_are_out_is_told_by_provider(ticks):
    breakers = Breakers(ticks)
    trip(breakers.of("a/1"))
    trip(breakers.of("a/2"))
    attempt(breakers.of("b/1"), UpstreamAccount("no"))
    breakers.of("b/2")
    assert breakers.count_out() == {"a": 2, "b": 1}
    assert breakers.count_without_account() == {"b": 1}
    assert breakers.condition_of("nobody/knows").state == "closed"
    assert len(breakers._breakers) == 4


def test_a_budget_says_what_it_gave_and_refused(ticks):
    budget = RetryBudget(ticks)
    for _ in range(5):
        budget.try_spend()
    assert (budget.spent, budget.refused) == (3, 2)


def test_a_provider_that_is_set_anew_is_tried_at_once_and_the_others_are_not(ticks):
    told = []
    breakers = Breakers(ticks, on_change=lambda name, state, _: told.append((name, state)))
    for name in ("a/x", "a/y", "ab/x"):
        attempt(breakers.of(name), UpstreamAccount("no"))
    late = breakers.of("a/x")
    breakers.forget({"a"})
    assert [breakers.of(name).is_open for name in ("a/x", "a/y", "ab/x")] == [False, False, True]
    assert sorted(told[3:]) == [("a/x", "closed"), ("a/y", "closed")]
    late.retire()
    assert len(told) == 5, "a retired one says nothing"

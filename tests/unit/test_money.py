"""Prices and charges, against exact fractions."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.money import (
    Component,
    Meterable,
    Price,
    charge,
    dearest_nanos_per_million,
    format_usd,
    hold_nanos,
    parse_usd,
)
from meterhouse.usage import Usage

SATURDAY_NOON_MS = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp() * 1000)
FALLS_BACK_TO = {"cached_input": "input", "cache_write": "input", "input_audio": "input", "output_audio": "output"}


def price_of(*components: Component) -> Price:
    return Price("price_1", "fake", "model", components, 0, "test")


def price_with(**rates: int) -> Price:
    """One plain component for each rate in nanos per million."""
    return price_of(*(Component(Meterable(kind), rate) for kind, rate in rates.items()))


def cost(price: Price, usage: Usage, at_ms: int = SATURDAY_NOON_MS, tier: str | None = None) -> int:
    return charge(price, usage, admitted_at_ms=at_ms, service_tier=tier).nanos


def at(hour: int, minute: int, *, day: int = 21) -> int:
    return int(datetime(2026, 11, day, hour, minute, tzinfo=UTC).timestamp() * 1000)


# --- arithmetic


def test_a_million_tokens_cost_the_rate() -> None:
    price = price_with(input=2_500_000_000, output=10_000_000_000)
    assert cost(price, Usage(input_tokens=1_000_000)) == 2_500_000_000
    assert cost(price, Usage(input_tokens=1_000, output_tokens=100)) == 2_500_000 + 1_000_000


@pytest.mark.parametrize(("rate", "nanos"), [(499_999, 0), (500_000, 1), (1_499_999, 1), (1_500_000, 2)])
def test_half_a_nano_is_rounded_up(rate: int, nanos: int) -> None:
    assert cost(price_with(input=rate), Usage(input_tokens=1)) == nanos


def test_the_sum_is_rounded_once_and_not_each_part() -> None:
    price = price_with(input=400_000, output=400_000, cached_input=400_000)
    usage = Usage(input_tokens=2, cached_input_tokens=1, output_tokens=1)
    found = charge(price, usage, admitted_at_ms=0, service_tier=None)
    assert found.nanos == 1
    assert found.by_component == ((Meterable.CACHED_INPUT, 1),)


def test_parts_of_the_input_and_output_are_not_charged_twice() -> None:
    price = price_with(input=1_000_000, cached_input=100_000, cache_write=2_000_000, output=3_000_000)
    usage = Usage(input_tokens=100, cached_input_tokens=50, cache_write_tokens=20, output_tokens=10, reasoning_tokens=9)
    found = charge(price, usage, admitted_at_ms=0, service_tier=None)
    assert dict(found.by_component) == {"input": 30, "cached_input": 5, "cache_write": 40, "output": 30}
    assert found.nanos == 105


def test_audio_has_its_own_rates_inside_input_and_output() -> None:
    price = price_with(input=1_000_000, input_audio=9_000_000, output=2_000_000, output_audio=20_000_000)
    usage = Usage(input_tokens=10, input_audio_tokens=4, output_tokens=5, output_audio_tokens=1)
    assert cost(price, usage) == 6 + 36 + 8 + 20


def test_a_price_per_request_is_charged_once() -> None:
    price = price_with(input=1_000_000, request=7_000_000)
    assert dict(charge(price, Usage(input_tokens=3), admitted_at_ms=0, service_tier=None).by_component) == {
        "input": 3,
        "request": 7,
    }


def test_a_price_per_request_is_charged_for_each_unit() -> None:
    price = price_with(input=1_000_000, request=7_000_000)
    usage = Usage(input_tokens=3)
    for units, nanos in ((0, 3), (1, 10), (4, 31)):
        assert charge(price, usage, admitted_at_ms=0, service_tier=None, request_units=units).nanos == nanos


@pytest.mark.parametrize(("kind", "field"), [("cached_input", "input"), ("cache_write", "input")])
def test_a_part_without_a_rate_costs_what_its_whole_costs(kind: str, field: str) -> None:
    price = price_with(**{field: 1_000_000})
    assert cost(price, Usage(input_tokens=10, **{f"{kind}_tokens": 4})) == 10


def test_what_has_no_rate_at_all_costs_nothing() -> None:
    found = charge(price_with(output=1_000_000), Usage(input_tokens=10), admitted_at_ms=0, service_tier=None)
    assert (found.nanos, found.by_component) == (0, ())


# --- when a component applies


def test_the_highest_tier_that_the_whole_input_reaches_applies_to_all_of_it() -> None:
    price = price_of(
        Component(Meterable.INPUT, 1_000_000),
        Component(Meterable.INPUT, 2_000_000, from_input_tokens=1_000),
        Component(Meterable.OUTPUT, 3_000_000),
        Component(Meterable.OUTPUT, 5_000_000, from_input_tokens=1_000),
    )
    assert cost(price, Usage(input_tokens=999, output_tokens=10)) == 999 + 30
    assert cost(price, Usage(input_tokens=1_000, output_tokens=10)) == 2_000 + 50


@pytest.mark.parametrize(
    ("moment", "nanos"),
    [(at(22, 59), 10), (at(23, 0), 1), (at(0, 0, day=22), 1), (at(0, 59, day=22), 1), (at(1, 0, day=22), 10)],
)
def test_a_window_may_run_across_midnight(moment: int, nanos: int) -> None:
    night = Component(Meterable.INPUT, 100_000, utc_minutes=(23 * 60, 60))
    assert cost(price_of(Component(Meterable.INPUT, 1_000_000), night), Usage(input_tokens=10), moment) == nanos


@pytest.mark.parametrize(("moment", "nanos"), [(at(9, 59), 10), (at(10, 0), 1), (at(11, 59), 1), (at(12, 0), 10)])
def test_a_window_holds_from_its_first_to_before_its_last_minute(moment: int, nanos: int) -> None:
    day = Component(Meterable.INPUT, 100_000, utc_minutes=(600, 720))
    assert cost(price_of(Component(Meterable.INPUT, 1_000_000), day), Usage(input_tokens=10), moment) == nanos


def test_a_component_may_hold_on_some_weekdays_only() -> None:
    weekend = Component(Meterable.INPUT, 100_000, weekdays=(5, 6))
    saturday_night = Component(Meterable.OUTPUT, 100_000, weekdays=(5,), utc_minutes=(0, 60))
    price = price_of(
        Component(Meterable.INPUT, 1_000_000), Component(Meterable.OUTPUT, 1_000_000), weekend, saturday_night
    )
    usage = Usage(input_tokens=10, output_tokens=10)
    assert cost(price, usage, at(12, 0, day=20)) == 20
    assert cost(price, usage, at(12, 0, day=21)) == 11
    assert cost(price, usage, at(0, 30, day=21)) == 2


def test_a_service_tier_has_its_own_rate_and_an_unknown_one_the_standard_rate() -> None:
    flex = Component(Meterable.INPUT, 500_000, service_tier="flex")
    price = price_of(Component(Meterable.INPUT, 1_000_000), flex)
    usage = Usage(input_tokens=10)
    assert (cost(price, usage, tier="flex"), cost(price, usage, tier="priority"), cost(price, usage)) == (5, 10, 10)


def test_a_service_tier_comes_before_a_window_and_a_window_before_an_input_tier() -> None:
    components = (
        Component(Meterable.INPUT, 1_000_000, from_input_tokens=5),
        Component(Meterable.INPUT, 2_000_000, utc_minutes=(0, 1439)),
        Component(Meterable.INPUT, 3_000_000, service_tier="flex"),
    )
    for order in (components, components[::-1]):
        assert cost(price_of(*order), Usage(input_tokens=10), tier="flex") == 30
        assert cost(price_of(*order), Usage(input_tokens=10)) == 20
        assert cost(price_of(*order[:3]), Usage(input_tokens=10), at(23, 59)) == 10


def test_a_part_whose_rate_does_not_apply_now_falls_back_as_well() -> None:
    price = price_of(
        Component(Meterable.INPUT, 1_000_000), Component(Meterable.CACHED_INPUT, 100_000, service_tier="flex")
    )
    usage = Usage(input_tokens=10, cached_input_tokens=10)
    assert (cost(price, usage), cost(price, usage, tier="flex")) == (10, 1)


# --- against fractions

rates = st.integers(0, 10**13)
counts = st.integers(0, 10**7)
tiers = st.sampled_from([None, "flex", "priority"])
moments = st.integers(0, 4 * 10**12)
components = st.builds(
    Component,
    kind=st.sampled_from(Meterable),
    nanos_per_million=rates,
    from_input_tokens=st.sampled_from([0, 0, 1_000, 200_000]),
    utc_minutes=st.none() | st.tuples(st.integers(0, 1439), st.integers(0, 1439)).filter(lambda w: w[0] != w[1]),
    service_tier=tiers,
    weekdays=st.none() | st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
)
prices = st.lists(components, max_size=10).map(lambda rows: price_of(*rows))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """A usage that can be true: the parts are parts."""
    plain, cached, written, heard = (draw(counts) for _ in range(4))
    said, spoken = draw(counts), draw(counts)
    return Usage(
        input_tokens=plain + cached + written + heard,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        input_audio_tokens=heard,
        output_tokens=said + spoken,
        output_audio_tokens=spoken,
        reasoning_tokens=draw(st.integers(0, said)),
    )


def applies(component: Component, usage: Usage, at_ms: int, tier: str | None) -> bool:
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    is_now = True
    if component.utc_minutes is not None:
        start, end = component.utc_minutes
        length = (end - start) % 1440
        is_now = (moment.hour * 60 + moment.minute - start) % 1440 < length
    return (
        component.from_input_tokens <= usage.input_tokens
        and component.service_tier in {None, tier}
        and is_now
        and (component.weekdays is None or moment.weekday() in component.weekdays)
    )


def rate_of(price: Price, kind: str, usage: Usage, at_ms: int, tier: str | None) -> int:
    """Return the rate of a kind by the rule as it is written: service tier, window, highest tier, then fall back."""
    found = [c for c in price.components if c.kind == kind and applies(c, usage, at_ms, tier)]
    if not found:
        return rate_of(price, FALLS_BACK_TO[kind], usage, at_ms, tier) if kind in FALLS_BACK_TO else 0
    found.sort(key=lambda c: c.from_input_tokens, reverse=True)
    found.sort(key=lambda c: c.utc_minutes is None and c.weekdays is None)
    found.sort(key=lambda c: c.service_tier is None)
    return found[0].nanos_per_million


def exact(price: Price, usage: Usage, at_ms: int, tier: str | None) -> Fraction:
    amounts = {
        "input": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens - usage.input_audio_tokens,
        "cached_input": usage.cached_input_tokens,
        "cache_write": usage.cache_write_tokens,
        "input_audio": usage.input_audio_tokens,
        "output": usage.output_tokens - usage.output_audio_tokens,
        "output_audio": usage.output_audio_tokens,
        "request": 1,
    }
    return sum(
        (Fraction(amount * rate_of(price, kind, usage, at_ms, tier), 10**6) for kind, amount in amounts.items()),
        Fraction(0),
    )


@given(prices, usages(), moments, tiers)
def test_a_charge_is_the_exact_sum_rounded_half_up(price: Price, usage: Usage, at_ms: int, tier: str | None) -> None:
    assert cost(price, usage, at_ms, tier) == floor(exact(price, usage, at_ms, tier) + Fraction(1, 2))


@given(prices, usages(), moments, tiers)
def test_components_add_up_to_the_charge_and_none_is_negative(
    price: Price, usage: Usage, at_ms: int, tier: str | None
) -> None:
    found = charge(price, usage, admitted_at_ms=at_ms, service_tier=tier)
    assert sum(nanos for _, nanos in found.by_component) == found.nanos
    assert all(nanos > 0 for _, nanos in found.by_component)
    assert len({kind for kind, _ in found.by_component}) == len(found.by_component)


@given(prices, usages(), moments, tiers)
def test_the_dearest_rates_hold_whatever_will_be_charged(
    price: Price, usage: Usage, at_ms: int, tier: str | None
) -> None:
    held = (
        hold_nanos(usage.input_tokens, price.dearest_input_nanos_per_million)
        + hold_nanos(usage.output_tokens, price.dearest_output_nanos_per_million)
        + price.dearest_request_nanos
    )
    assert cost(price, usage, at_ms, tier) <= held


@given(counts, rates)
def test_a_hold_is_rounded_up(tokens: int, rate: int) -> None:
    assert hold_nanos(tokens, rate) == ceil(Fraction(tokens * rate, 10**6))


def test_the_dearest_rate_of_a_part_without_rates_is_that_of_its_whole() -> None:
    price = price_with(input=3, output=5, output_audio=9)
    assert dearest_nanos_per_million(price, Meterable.CACHED_INPUT) == 3
    assert dearest_nanos_per_million(price, Meterable.REQUEST) == 0
    assert (price.dearest_input_nanos_per_million, price.dearest_output_nanos_per_million) == (3, 9)


# --- dollars


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (25_000_000_000, "25"), (-10_000_000, "-0.01")],
)
def test_dollars_are_written_short_and_exact(nanos: int, text: str) -> None:
    assert format_usd(nanos) == text


@given(st.integers(-(10**18), 10**18))
def test_dollars_lose_no_nano(nanos: int) -> None:
    assert Decimal(format_usd(nanos)) * 10**9 == nanos
    assert parse_usd(format_usd(nanos)) == nanos


@pytest.mark.parametrize(
    ("text", "nanos"),
    [(" 1.50 ", 1_500_000_000), ("-0.25", -250_000_000), ("1e3", 10**12), ("0", 0), ("1E+17", 10**26)],
)
def test_dollars_are_read_exactly(text: str, nanos: int) -> None:
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "NaN", "sNaN", "Infinity", "1.0000000001", "1e-999999"),
        "1.00000000000000000000000000000001",
        # Of a few characters an integer that it takes minutes to make, in which the process does nothing else.
        *("1e18", "1e20000", "-1e20000", "9e9999999999"),
    ],
)
def test_what_is_no_amount_of_dollars(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of dollars"):
        parse_usd(text)


def test_a_price_is_encoded_once_and_whole() -> None:
    component = Component(Meterable.INPUT, 2_000_000, 128_000, (60, 120), "priority", (5, 6))
    price = price_of(component, Component(Meterable.OUTPUT, 8_000_000))
    assert msgspec.msgpack.decode(price.encoded, type=Price) == price
    assert price.encoded is price.encoded

"""How long an answer a budget or token quota allows, and what is held for it."""

from fractions import Fraction
from math import ceil, floor

from hypothesis import given
from hypothesis import strategies as st

from fakes.meter_oracle import build_demand
from meterhouse.limits.sizing import size_demand


def demand_of(**changes: object):
    values: dict[str, object] = {"held_input_tokens": 100, "output_tokens": 50_000, "rate_output_tokens": 4_096}
    return build_demand((), **(values | changes))


def test_without_a_budget_or_token_quota_nothing_is_clamped_or_held() -> None:
    sizes = size_demand(demand_of(), None, None)
    assert (sizes.allowance_tokens, sizes.output_tokens, sizes.held_nanos) == (None, None, 0)
    assert sizes.rate_tokens == 10 + 4_096


def test_an_answer_may_cost_a_quarter_of_what_is_free() -> None:
    assert size_demand(demand_of(), 40_000, None).allowance_tokens == 10_000
    assert size_demand(demand_of(), None, 40_003).allowance_tokens == 10_000
    assert size_demand(demand_of(choices=2), 40_000, None).allowance_tokens == 5_000
    assert size_demand(demand_of(output_nanos_per_million=3_000_000), 40_000, None).allowance_tokens == 3_333


def test_the_smallest_free_amount_decides() -> None:
    assert size_demand(demand_of(), 40_000, 20_000).allowance_tokens == 5_000
    assert size_demand(demand_of(), 12_000, 40_000).allowance_tokens == 3_000


def test_what_is_asked_is_never_exceeded() -> None:
    assert size_demand(demand_of(output_tokens=70), 40_000, None).allowance_tokens == 70


def test_the_floor_is_1024_or_what_is_asked_if_that_is_less() -> None:
    assert size_demand(demand_of(), 2_000, None).allowance_tokens == 1_024
    assert size_demand(demand_of(output_tokens=600), 2_000, None).allowance_tokens == 600


def test_a_large_input_leaves_what_the_rest_buys() -> None:
    assert size_demand(demand_of(held_input_tokens=8_000), 10_000, None).allowance_tokens == 2_000
    assert size_demand(demand_of(held_input_tokens=8_000), None, 10_000).allowance_tokens == 2_000


def test_a_price_for_the_request_itself_is_held_too() -> None:
    sizes = size_demand(demand_of(output_tokens=50, request_nanos=7), 40_000, None)
    assert (sizes.held_nanos, sizes.smallest_nanos) == (157, 157)


def test_a_free_output_is_bounded_by_no_budget() -> None:
    assert size_demand(demand_of(output_nanos_per_million=0), 1, None).allowance_tokens == 50_000


def test_a_streamed_answer_first_holds_a_slice_of_each_choice() -> None:
    sizes = size_demand(demand_of(is_streamed=True, choices=3), 400_000, None)
    assert (sizes.allowance_tokens, sizes.output_tokens) == (33_333, 3 * 2_048)
    assert size_demand(demand_of(is_streamed=True, output_tokens=500), 400_000, None).output_tokens == 500


def test_a_whole_or_a_hidden_answer_is_held_at_once() -> None:
    assert size_demand(demand_of(choices=3), 400_000, None).output_tokens == 3 * 33_333
    assert size_demand(demand_of(is_streamed=True, holds_whole_allowance=True), 400_000, None).output_tokens == 50_000


def test_a_rate_is_debited_no_more_output_than_is_allowed() -> None:
    assert size_demand(demand_of(choices=2), 10_000, None).rate_tokens == 10 + 2 * 1_250


PRICES = st.integers(0, 5_000_000)
FREE = st.none() | st.integers(-1_000, 200_000)


@given(
    st.integers(0, 3_000),
    st.integers(0, 9_000),
    st.integers(1, 4),
    PRICES,
    PRICES,
    FREE,
    FREE,
)
def test_the_allowance_is_exactly_the_rule_in_fractions(  # noqa: PLR0917 - one number each
    held_input: int, asked: int, choices: int, in_price: int, out_price: int, budget: int | None, quota: int | None
) -> None:
    demand = demand_of(
        held_input_tokens=held_input,
        output_tokens=asked,
        choices=choices,
        input_nanos_per_million=in_price,
        output_nanos_per_million=out_price,
    )
    sizes = size_demand(demand, budget, quota)
    if budget is None and quota is None:
        assert sizes.allowance_tokens is None
        return
    least = min(asked, 1_024)
    buys: list[int] = []
    if quota is not None:
        buys += [floor(Fraction(quota, 4 * choices)), floor(Fraction(quota - held_input, choices))]
    if budget is not None and out_price:
        per_token = Fraction(out_price, 1_000_000) * choices
        input_nanos = ceil(held_input * Fraction(in_price, 1_000_000))
        buys += [floor(Fraction(budget, 4) / per_token), floor((budget - input_nanos) / per_token)]
    allowance = min(asked, max([least, min(buys, default=asked)]))
    assert sizes.allowance_tokens == allowance
    assert sizes.output_tokens == allowance * choices
    if quota is not None and quota >= sizes.smallest_tokens:
        assert sizes.held_tokens <= quota
    if budget is not None and budget >= sizes.smallest_nanos:
        assert sizes.held_nanos <= budget

"""Default prices are exact, dated, tiered, and have one id for the same content."""

from datetime import UTC, datetime, time
from decimal import Decimal

import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from meterhouse.money import Component, Meterable, Price, charge
from meterhouse.providers.catalog import MODELS, PROVIDERS
from meterhouse.providers.prices import PriceBook, convert_model, load_default_prices, make_price, price_at
from meterhouse.usage import Usage


def milliseconds(year: int, month: int, day: int) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000)


NOW = milliseconds(2026, 11, 20)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return load_default_prices(PROVIDERS.values())


def convert(**fields: object):
    model = ModelInfo(id="m", match=ClauseEquals(equals="m"), **fields)
    return convert_model("openai", model, "test")


def test_gpt_4o_costs_what_openai_publishes_in_whole_nanos(book):
    price = price_at(book.find("openai", "gpt-4o"), NOW)
    standard = {c.kind: c.nanos_per_million for c in price.components if c.service_tier is None}
    assert standard == {
        Meterable.INPUT: 2_500_000_000,
        Meterable.CACHED_INPUT: 1_250_000_000,
        Meterable.OUTPUT: 10_000_000_000,
    }
    assert price.source.startswith("genai-prices ")
    assert price.id.startswith("price_")


def test_every_model_has_a_price_but_for_those_of_dashscope_which_the_source_does_not_know(book):
    unpriced = {(provider, model) for provider, model in MODELS if price_at(book.find(provider, model), NOW) is None}
    free = {("openai", "omni-moderation-latest")}
    assert {provider for provider, _ in unpriced - free} == {"dashscope"}


def test_the_simulator_has_its_own_price(book):
    price = price_at(book.find("simulator", "simulator"), 0)
    usage = Usage(input_tokens=1_000_000, cached_input_tokens=400_000, output_tokens=1_000_000)
    assert charge(price, usage, admitted_at_ms=0, service_tier=None).nanos == 600_000_000 + 40_000_000 + 4_000_000_000
    assert price.source == "simulator"


def test_a_long_prompt_pays_the_long_rate_from_the_first_token_above_the_tier(book):
    price = price_at(book.find("openai", "gpt-6-luna"), NOW)

    def cost(tokens: int) -> int:
        return charge(price, Usage(input_tokens=tokens), admitted_at_ms=NOW, service_tier=None).nanos

    assert cost(272_000) == 272_000 * 100
    assert cost(272_001) == 272_001 * 200


def test_a_lower_price_holds_from_its_day_on_and_the_older_one_before(book):
    prices = book.find("openai", "gpt-5.6-sol")
    change = milliseconds(2026, 8, 21)

    def input_rate(at_ms: int) -> int:
        price = price_at(prices, at_ms)
        return next(c.nanos_per_million for c in price.components if c.kind == "input" and not c.from_input_tokens)

    assert input_rate(change - 1) == 5_000_000_000
    assert input_rate(change) == 4_000_000_000
    assert [p.effective_from_ms for p in prices] == sorted(p.effective_from_ms for p in prices)


def test_a_service_tier_of_its_own_is_charged_only_when_it_served(book):
    price = price_at(book.find("openai", "gpt-4o"), NOW)
    usage = Usage(output_tokens=1_000_000)
    assert charge(price, usage, admitted_at_ms=NOW, service_tier="priority").nanos == 17_000_000_000
    assert charge(price, usage, admitted_at_ms=NOW, service_tier="default").nanos == 10_000_000_000


def test_a_dated_snapshot_has_its_models_price_unless_it_has_its_own(book):
    assert book.find("openai", "gpt-4o-2024-11-20") == book.find("openai", "gpt-4o")
    assert book.find("openai", "gpt-6-luna-2026-12-01") == book.find("openai", "gpt-6-luna")
    assert book.find("openai", "gpt-4o-2024-05-13") != book.find("openai", "gpt-4o")


def test_a_price_that_an_operator_sets_holds_under_every_name_of_the_model(book):
    def price_of(model: str, usd: int) -> Price:
        components = (Component(Meterable.INPUT, usd * 10**9), Component(Meterable.OUTPUT, usd * 10**9))
        return make_price("openai", model, components, effective_from_ms=NOW, source="operator")

    dear, dated = price_of("gpt-4o", 99), price_of("gpt-4o-2024-11-20", 7)
    overlaid = book.overlaid([dear])
    for name in ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "gpt-4o-2031-01-01"):
        assert price_at(overlaid.find("openai", name), NOW) == dear, name
        assert price_at(overlaid.find("openai", name), NOW - 1) == price_at(book.find("openai", name), NOW - 1)
    for name in ("gpt-4o-mini", "gpt-4o-2024-05-13"):
        assert overlaid.find("openai", name) == book.find("openai", name)
    for prices in ([dear, dated], [dated, dear]):
        overlaid = book.overlaid(prices)
        assert price_at(overlaid.find("openai", "gpt-4o-2024-11-20"), NOW) == dated
        assert price_at(overlaid.find("openai", "gpt-4o-2024-08-06"), NOW) == dear
    assert book.overlaid([dated]).find("openai", "gpt-4o") == book.find("openai", "gpt-4o")


def test_what_cannot_be_priced_exactly_is_unpriced(book):
    assert book.find("openai", "gpt-image-1") == ()
    assert book.find("openai", "gpt-9-unheard-of") == ()
    assert book.find("ollama", "gpt-4o") == ()
    assert convert(prices=ModelPrice(input_mtok=Decimal("0.0000000001"), output_mtok=Decimal(1))) == []
    assert convert(prices=ModelPrice(input_mtok=Decimal(1), output_image_mtok=Decimal(5))) == []
    assert convert(prices=ModelPrice(output_mtok=Decimal(1))) == []


def test_windows_of_the_day_become_components_in_utc_minutes():
    night = TimeOfDateConstraint(start_time=time(16, 30, tzinfo=UTC), end_time=time(0, 30, tzinfo=UTC))
    [price] = convert(
        prices=[
            ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(2))),
            ConditionalPrice(night, prices=ModelPrice(input_mtok=Decimal(1))),
        ]
    )
    assert price.components == (
        Component(Meterable.INPUT, 2_000_000_000),
        Component(Meterable.INPUT, 1_000_000_000, 0, (990, 30)),
    )


def test_a_price_per_request_and_for_sound_is_kept():
    [price] = convert(
        prices=ModelPrice(
            input_mtok=Decimal(1),
            input_audio_mtok=Decimal(40),
            output_audio_mtok=Decimal(80),
            cache_write_mtok=Decimal("1.25"),
            requests_kcount=Decimal(5),
        )
    )
    rates = {c.kind: c.nanos_per_million for c in price.components}
    assert rates[Meterable.REQUEST] == 5 * 1_000_000_000 * 1_000
    assert rates[Meterable.INPUT_AUDIO] == 40_000_000_000
    assert rates[Meterable.OUTPUT_AUDIO] == 80_000_000_000
    assert rates[Meterable.CACHE_WRITE] == 1_250_000_000
    assert charge(price, Usage(), admitted_at_ms=0, service_tier=None).nanos == 5_000_000


def test_variants_begin_on_their_day_and_batches_are_no_part_of_a_price():
    start = StartDateConstraint(start_date=datetime(2026, 10, 12, tzinfo=UTC).date())
    prices = convert(
        prices=ModelPrice(input_mtok=TieredPrices(base=Decimal(1), tiers=[Tier(start=200, price=Decimal(2))])),
        price_variants=[
            PriceVariant({"service_tier": "flex"}, ModelPrice(input_mtok=Decimal("0.5")), start),
            PriceVariant({"processing": "batch"}, ModelPrice(input_mtok=Decimal("0.1"))),
        ],
    )
    assert [price.effective_from_ms for price in prices] == [0, milliseconds(2026, 10, 12)]
    assert {c.service_tier for c in prices[0].components} == {None}
    assert {c.service_tier for c in prices[1].components} == {None, "flex"}
    assert min(c.nanos_per_million for c in prices[1].components) == 500_000_000


def test_the_id_follows_the_content_and_not_who_says_it():
    lines = (Component(Meterable.INPUT, 5),)
    first = make_price("openai", "m", lines, effective_from_ms=0, source="a")
    assert make_price("openai", "m", lines, effective_from_ms=0, source="b").id == first.id
    assert make_price("openai", "m", (Component(Meterable.INPUT, 6),), effective_from_ms=0, source="a").id != first.id
    assert make_price("openai", "m", lines, effective_from_ms=1, source="a").id != first.id


def test_before_the_first_start_there_is_no_price():
    price = make_price("p", "m", (Component(Meterable.INPUT, 5),), effective_from_ms=100, source="a")
    assert price_at((price,), 99) is None
    assert price_at((price,), 100) is price
    assert price_at((), 100) is None


def test_of_two_prices_with_one_start_the_later_said_holds():
    old, new = (
        make_price("p", "m", (Component(Meterable.INPUT, rate),), effective_from_ms=0, source="a") for rate in (5, 6)
    )
    assert PriceBook([old, new]).find("p", "m") == (new,)
    assert list(PriceBook([old, new])) == [new]

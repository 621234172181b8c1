"""Default prices: genai-prices' data as components in integer nanos, and the simulator's own.

Invariant: every rate is exact; a rate that is no whole number of nanos per million, and a model with a rate that no
component can say (images, hours of sound), is left unpriced rather than priced wrongly. Not here: charging (money),
an operator's prices (the database).
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from meterhouse.money import MILLION, NANOS_PER_USD, Component, Meterable, Price
from meterhouse.providers.catalog import PROVIDERS, SIMULATOR, list_models_of, undated
from meterhouse.providers.provider import Provider

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, MatchLogic, ModelInfo, ModelPrice

_KINDS = {
    "input_mtok": Meterable.INPUT,
    "cache_read_mtok": Meterable.CACHED_INPUT,
    "cache_write_mtok": Meterable.CACHE_WRITE,
    "output_mtok": Meterable.OUTPUT,
    "input_audio_mtok": Meterable.INPUT_AUDIO,
    "output_audio_mtok": Meterable.OUTPUT_AUDIO,
}
_PER_THOUSAND_REQUESTS = "requests_kcount"
_IGNORED = frozenset(
    {
        "web_searches_kcount",  # a request that may search the web is refused as not priced
        "storage_searches_kcount",
        "cache_audio_read_mtok",  # cheaper than the audio that it is a part of
        "cache_write_1h_mtok",  # a cache of an hour is refused
    }
)


class PriceBook:
    """Prices by provider and upstream model; immutable once made."""

    def __init__(self, prices: Iterable[Price], aliases: Iterable[tuple[str, str, str]] = ()) -> None:
        """Take prices, and (provider, alias, model) for other names of a model that has some.

        Of two prices with the same start the later one in the list holds.
        """
        found: dict[tuple[str, str], dict[int, Price]] = {}
        for price in prices:
            found.setdefault((price.provider, price.model), {})[price.effective_from_ms] = price
        self._prices = {key: tuple(starts[at] for at in sorted(starts)) for key, starts in found.items()}
        for provider, alias, model in aliases:
            if (provider, model) in self._prices:
                self._prices.setdefault((provider, alias), self._prices[provider, model])

    def find(self, provider: str, upstream_model: str) -> tuple[Price, ...]:
        """Return a model's prices, oldest first; a dated snapshot without its own has its model's; () when unpriced."""
        prices = self._prices.get((provider, upstream_model))
        if prices is not None:
            return prices
        base = undated(upstream_model)
        return self._prices.get((provider, base), ()) if base is not None else ()

    def overlaid(self, prices: Iterable[Price]) -> "PriceBook":
        """Return a book in which a model has only these prices from the first of them on.

        So it has under its other names, unless one has prices of its own among these.
        """
        book = PriceBook(prices)
        names: dict[int, list[tuple[str, str]]] = {}
        for key, known in self._prices.items():
            names.setdefault(id(known), []).append(key)  # a model's names share one row of prices
        found: dict[tuple[str, str], tuple[Price, ...]] = {}
        for key, own in book._prices.items():
            before = [price for price in self.find(*key) if price.effective_from_ms < own[0].effective_from_ms]
            found[key] = row = (*before, *own)
            default = self._prices.get(key)
            if default is not None and default[0].model == key[1]:
                found |= {name: row for name in names[id(default)] if name not in book._prices}
        book._prices = self._prices | found
        return book

    def __iter__(self) -> Iterator[Price]:
        return (price for prices in dict.fromkeys(self._prices.values()) for price in prices)


def price_at(prices: Sequence[Price], at_ms: int) -> Price | None:
    """Return the newest price that has begun."""
    if prices and prices[-1].effective_from_ms <= at_ms:
        return prices[-1]  # almost always, and every request asks some times
    position = bisect_right(prices, at_ms, key=lambda price: price.effective_from_ms)
    return prices[position - 1] if position else None


def make_price(
    provider: str,
    model: str,
    components: Iterable[Component],
    *,
    effective_from_ms: int,
    source: str,
    times_before: int = 0,
) -> Price:
    """Make a price whose id is a hash of what it costs, so that the same price has one id whoever says it.

    ``times_before`` tells apart one that is set anew after another had taken its place.
    """
    lines = tuple(components)
    again = (times_before,) if times_before else ()
    content = msgspec.json.encode((provider, model, lines, effective_from_ms, *again))
    digest = hashlib.sha256(content).hexdigest()[:20]
    return Price(f"price_{digest}", provider, model, lines, effective_from_ms, source)


def simulator_prices() -> list[Price]:
    """Return the simulator's prices: 1.00, cached 0.10, output 4.00 USD per million tokens."""
    components = (
        Component(Meterable.INPUT, 1_000_000_000),
        Component(Meterable.CACHED_INPUT, 100_000_000),
        Component(Meterable.OUTPUT, 4_000_000_000),
    )
    return [
        make_price(SIMULATOR, row.upstream_model, components, effective_from_ms=0, source="simulator")
        for row in list_models_of(PROVIDERS[SIMULATOR])
    ]


def load_default_prices(providers: Iterable[Provider]) -> PriceBook:
    """Return the default prices of these provider rows, and the simulator's.

    genai-prices is imported in here because its data costs 0.2 s to import, which a command that prices nothing
    should not wait for.
    """
    from genai_prices import __version__ as version  # noqa: PLC0415 - see above
    from genai_prices.data import providers as sources  # noqa: PLC0415 - see above

    models = {source.id: source.models for source in sources}
    prices = simulator_prices()
    aliases: list[tuple[str, str, str]] = []
    for provider in providers:
        for model in models.get(provider.price_source or "", ()):
            made = convert_model(provider.name, model, f"genai-prices {version}")
            prices += made
            aliases += [(provider.name, alias, model.id) for alias in _exact_names(model.match) if made]
    return PriceBook(prices, aliases)


def convert_model(provider: str, model: "ModelInfo", source: str) -> list[Price]:
    """Turn a model of genai-prices into one price per start date; [] when a rate cannot be said exactly."""
    conditional = _conditional(model)
    variants = [variant for variant in model.price_variants or () if list(variant.when) == ["service_tier"]]
    starts = {_start_ms(part.constraint) for part in conditional} | {_start_ms(part.constraint) for part in variants}
    prices = []
    for start in sorted(starts | {0}):
        components: list[Component] | None = _standard_components(conditional, start)
        if components is None:
            return []
        for variant in variants:
            if _start_ms(variant.constraint) > start:
                continue
            special = _components(variant.prices, service_tier=variant.when["service_tier"])
            if special is None:
                return []
            components += [line for line in special if line not in components]
        prices.append(make_price(provider, model.id, components, effective_from_ms=start, source=source))
    return prices


def _conditional(model: "ModelInfo") -> "list[ConditionalPrice]":
    from genai_prices.types import ConditionalPrice  # noqa: PLC0415 - see load_default_prices

    if isinstance(model.prices, list):
        return model.prices
    return [ConditionalPrice(prices=model.prices)]


def _standard_components(conditional: "list[ConditionalPrice]", start_ms: int) -> list[Component] | None:
    """Return the lines that hold from a start on: the last dated price that has begun, and the windows of the day."""
    current: ModelPrice = conditional[0].prices
    windows: list[Component] = []
    for part in conditional:
        window = _window(part.constraint)
        if window is None:
            current = part.prices if _start_ms(part.constraint) <= start_ms else current
            continue
        lines = _components(part.prices, utc_minutes=window)
        if lines is None:
            return None
        windows += lines
    standard = _components(current)
    if standard is None or not any(line.kind is Meterable.INPUT for line in standard):
        return None
    return standard + windows


def _components(
    prices: "ModelPrice", *, service_tier: str | None = None, utc_minutes: tuple[int, int] | None = None
) -> list[Component] | None:
    lines = []
    for key, value in sorted(vars(prices).items()):
        if value is None or key in _IGNORED or key.startswith("_"):
            continue
        kind = Meterable.REQUEST if key == _PER_THOUSAND_REQUESTS else _KINDS.get(key)
        if kind is None:
            return None
        scale = NANOS_PER_USD * (MILLION // 1_000 if kind is Meterable.REQUEST else 1)
        for from_tokens, usd in _tiers(value):
            nanos = usd * scale
            if nanos != int(nanos):
                return None
            lines.append(Component(kind, int(nanos), from_tokens, utc_minutes, service_tier))
    return lines


def _tiers(value: Any) -> Iterator[tuple[int, Decimal]]:
    """Yield (first input token of the tier, USD); genai-prices' tiers begin above their start, ours at it."""
    if isinstance(value, Decimal):
        yield 0, value
        return
    yield 0, value.base
    for tier in value.tiers:
        yield tier.start + 1, tier.price


def _start_ms(constraint: object) -> int:
    day = getattr(constraint, "start_date", None)
    if not isinstance(day, date):
        return 0
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1_000


def _window(constraint: object) -> tuple[int, int] | None:
    start, end = getattr(constraint, "start_time", None), getattr(constraint, "end_time", None)
    if not isinstance(start, time) or not isinstance(end, time):
        return None
    return _utc_minute(start), _utc_minute(end)


def _utc_minute(moment: time) -> int:
    offset = moment.utcoffset()
    shift = int(offset.total_seconds()) // 60 if offset is not None else 0
    return (moment.hour * 60 + moment.minute - shift) % 1_440


def _exact_names(match: "MatchLogic") -> Iterator[str]:
    """Yield the names that a model is known by exactly; a pattern could give a new model an old price."""
    for clause in getattr(match, "or_", None) or [match]:
        name = getattr(clause, "equals", None)
        if isinstance(name, str):
            yield name

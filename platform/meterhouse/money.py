"""Prices and charges in integer nanos of USD (1 USD = 10^9 nanos).

A price is a list of components. A charge is the sum of integers, one division, round half up; the components'
charges are differences of the running rounded sum, so that they always add up to the charge.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from enum import StrEnum
from functools import cached_property

import msgspec

from meterhouse.usage import Usage

NANOS_PER_USD = 1_000_000_000
MILLION = 1_000_000
MOST_USD_DIGITS = 18
"""Of whole dollars in a text: more than there are, and few enough that nanos of them are exact in a ``Decimal``."""


class Meterable(StrEnum):
    """What a component of a price counts."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"
    INPUT_AUDIO = "input_audio"
    OUTPUT_AUDIO = "output_audio"
    REQUEST = "request"


_FALLBACK = {
    Meterable.CACHED_INPUT: Meterable.INPUT,
    Meterable.CACHE_WRITE: Meterable.INPUT,
    Meterable.INPUT_AUDIO: Meterable.INPUT,
    Meterable.OUTPUT_AUDIO: Meterable.OUTPUT,
}

_KINDS: tuple[Meterable, ...] = (
    Meterable.INPUT,
    Meterable.CACHED_INPUT,
    Meterable.CACHE_WRITE,
    Meterable.INPUT_AUDIO,
    Meterable.OUTPUT,
    Meterable.OUTPUT_AUDIO,
    Meterable.REQUEST,
)


_WHOLE_KINDS: tuple[Meterable, ...] = (Meterable.INPUT, Meterable.OUTPUT, Meterable.REQUEST)
"""All that there is of most usages, which tell of no parts of their input and output; in the order of ``_KINDS``."""


class Component(msgspec.Struct, frozen=True, array_like=True):
    """One line of a price: nanos per million tokens (or requests), and when the line applies."""

    kind: Meterable
    nanos_per_million: int
    from_input_tokens: int = 0
    """Applies when the request's whole input has at least this many tokens."""
    utc_minutes: tuple[int, int] | None = None
    """Applies from the first to before the second minute of the UTC day; the second may be the smaller."""
    service_tier: str | None = None
    weekdays: tuple[int, ...] | None = None
    """Applies on these UTC weekdays (0 = Monday)."""


class Price(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """What a model of a provider costs from a time on; superseded, never edited.

    What every request asks of it is worked out once and kept beside its fields.
    """

    id: str
    provider: str
    model: str
    components: tuple[Component, ...]
    effective_from_ms: int
    source: str

    @cached_property
    def encoded(self) -> msgspec.Raw:
        """All of it as msgpack: it goes into every INTENT, so that an adopter needs no database to charge."""
        return msgspec.Raw(msgspec.msgpack.encode(self))

    @cached_property
    def lines(self) -> Mapping[Meterable, tuple[Component, ...]]:
        """The components of each kind; a kind that has none is charged as what it is a part of."""
        own = {kind: tuple(c for c in self.components if c.kind == kind) for kind in Meterable}
        return {kind: lines or own.get(_FALLBACK.get(kind, kind), ()) for kind, lines in own.items()}

    @cached_property
    def certain_nanos_per_million(self) -> tuple[int | None, ...]:
        """The rate of each of ``_KINDS`` that applies whatever is asked and whenever; None: that depends.

        It is that of the kind's one component without a condition, or 0 where it has none at all. Most prices have no
        others.
        """
        return tuple(_certain_nanos_per_million(self.lines[kind]) for kind in _KINDS)

    @cached_property
    def certain_of_whole_kinds(self) -> tuple[int | None, ...]:
        """The same of each of ``_WHOLE_KINDS``."""
        return tuple(_certain_nanos_per_million(self.lines[kind]) for kind in _WHOLE_KINDS)

    @cached_property
    def dearest_input_nanos_per_million(self) -> int:
        """The highest rate that an input token could meet, whatever becomes of it."""
        kinds = (Meterable.INPUT, Meterable.CACHED_INPUT, Meterable.CACHE_WRITE, Meterable.INPUT_AUDIO)
        return max(dearest_nanos_per_million(self, kind) for kind in kinds)

    @cached_property
    def dearest_output_nanos_per_million(self) -> int:
        """The highest rate that an output token could meet."""
        return max(dearest_nanos_per_million(self, kind) for kind in (Meterable.OUTPUT, Meterable.OUTPUT_AUDIO))

    @cached_property
    def dearest_request_nanos(self) -> int:
        """The most that a request could cost beside its tokens."""
        return hold_nanos(1, dearest_nanos_per_million(self, Meterable.REQUEST))


class PossiblePrices(msgspec.Struct, frozen=True, dict=True):
    """What a request may be charged by, over all that may serve it; None: somebody's price is not known.

    The same object is given for most requests of a route, so that what they ask of it is worked out once.
    """

    prices: tuple[Price | None, ...]

    @cached_property
    def known(self) -> tuple[Price, ...]:
        """The prices that there are."""
        return tuple(price for price in self.prices if price is not None)

    @cached_property
    def is_whole(self) -> bool:
        """Whether everybody's price is known."""
        return None not in self.prices

    @cached_property
    def dearest_input_nanos_per_million(self) -> int:
        """The highest rate that an input token could meet; 0 without a price."""
        return max((price.dearest_input_nanos_per_million for price in self.known), default=0)

    @cached_property
    def dearest_output_nanos_per_million(self) -> int:
        """The highest rate that an output token could meet; 0 without a price."""
        return max((price.dearest_output_nanos_per_million for price in self.known), default=0)

    @cached_property
    def dearest_request_nanos(self) -> int:
        """The most that a request could cost beside its tokens; 0 without a price."""
        return max((price.dearest_request_nanos for price in self.known), default=0)


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """A charge in nanos, and the same by component (they add up to it exactly)."""

    nanos: int = 0
    by_component: tuple[tuple[Meterable, int], ...] = ()


def charge(
    price: Price, usage: Usage, *, admitted_at_ms: int, service_tier: str | None, request_units: int = 1
) -> Charge:
    """Compute what a usage costs: sum of integers, one division, half up.

    ``request_units`` is how often the price of a request is charged: once, or for each image that one brought.
    """
    running = 0
    rounded = 0
    parts: tuple[tuple[Meterable, int], ...] = ()
    cached, cache_write = usage.cached_input_tokens, usage.cache_write_tokens
    input_audio, output_audio = usage.input_audio_tokens, usage.output_audio_tokens
    kinds, rates = _WHOLE_KINDS, price.certain_of_whole_kinds
    counts: tuple[int, ...] = usage.input_tokens, usage.output_tokens, request_units
    if cached or cache_write or input_audio or output_audio:
        kinds, rates = _KINDS, price.certain_nanos_per_million
        fresh = usage.input_tokens - cached - cache_write - input_audio
        written = usage.output_tokens - output_audio
        counts = max(0, fresh), cached, cache_write, input_audio, max(0, written), output_audio, request_units
    for kind, count, certain in zip(kinds, counts, rates, strict=True):
        if certain is not None:
            running += count * certain
        elif count:
            component = _applicable(price, kind, usage.input_tokens, admitted_at_ms, service_tier)
            running += count * component.nanos_per_million if component is not None else 0
        total = (running + MILLION // 2) // MILLION
        if total != rounded:
            parts += ((kind, total - rounded),)
            rounded = total
    return Charge(rounded, parts)


def dearest_nanos_per_million(price: Price, kind: Meterable) -> int:
    """Return the highest rate that could apply to a kind, over all tiers, windows and service tiers."""
    return max((c.nanos_per_million for c in price.lines[kind]), default=0)


def hold_nanos(tokens: int, nanos_per_million: int) -> int:
    """Return what must be held for a number of tokens: rounded up, so that a hold never falls short."""
    return -(-tokens * nanos_per_million // MILLION)


def parse_usd(text: str) -> int:
    """Read dollars as nanos, exactly: ``1.5``, ``-0.25``.

    Raises:
        ValueError: It is no number, finer than a nano, or has more than ``MOST_USD_DIGITS`` before the point.
    """
    try:
        usd = Decimal(text.strip())
        # Before it becomes an integer: one of a million digits takes minutes, and a dozen characters can ask for it.
        if usd.is_finite() and usd.adjusted() < MOST_USD_DIGITS:
            nanos = int(usd * NANOS_PER_USD)
            if Decimal(nanos).scaleb(-9) == usd:
                return nanos
    except (DecimalException, OverflowError):
        pass
    raise ValueError(f"'{text[:40]}' is no amount of dollars, or finer than a billionth of one")


def format_usd(nanos: int) -> str:
    """Write nanos as dollars without losing any: ``1.5``, ``0.000000001``."""
    sign = "-" if nanos < 0 else ""
    whole, part = divmod(abs(nanos), NANOS_PER_USD)
    decimals = f"{part:09d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def _certain_nanos_per_million(lines: tuple[Component, ...]) -> int | None:
    if not lines:
        return 0
    line = lines[0]
    is_certain = len(lines) == 1 and line == Component(line.kind, line.nanos_per_million)
    return line.nanos_per_million if is_certain else None


def _applicable(
    price: Price, kind: Meterable, input_tokens: int, admitted_at_ms: int, service_tier: str | None
) -> Component | None:
    """Choose the most specific component that applies: service tier, then window, then the highest input tier."""
    best: Component | None = None
    for component in price.lines[kind]:
        if component.from_input_tokens > input_tokens:
            continue
        if component.service_tier is not None and component.service_tier != service_tier:
            continue
        if not _in_window(component, admitted_at_ms):
            continue
        if best is None or _rank(component) > _rank(best):
            best = component
    if best is None and (fallback := _FALLBACK.get(kind)) is not None:
        return _applicable(price, fallback, input_tokens, admitted_at_ms, service_tier)
    return best


def _rank(component: Component) -> tuple[bool, bool, int]:
    has_window = component.utc_minutes is not None or component.weekdays is not None
    return component.service_tier is not None, has_window, component.from_input_tokens


def _in_window(component: Component, admitted_at_ms: int) -> bool:
    if component.utc_minutes is None and component.weekdays is None:
        return True
    moment = datetime.fromtimestamp(admitted_at_ms / 1000, UTC)
    if component.weekdays is not None and moment.weekday() not in component.weekdays:
        return False
    if component.utc_minutes is None:
        return True
    start, end = component.utc_minutes
    minute = moment.hour * 60 + moment.minute
    return start <= minute < end if start < end else minute >= start or minute < end

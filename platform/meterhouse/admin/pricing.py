"""From dollars as an operator writes them to a price in nanos."""

from collections.abc import Mapping
from decimal import Decimal, Inexact, InvalidOperation, localcontext

from meterhouse.errors import Malformed
from meterhouse.money import MILLION, NANOS_PER_USD, Component, Meterable

MAX_USD = 1_000_000
MAX_REQUEST_USD = 9_000
"""Of a single request: a million of them still are a 64-bit integer of nanos, which is what a journal can hold."""


def components_from_usd(amounts: Mapping[Meterable, str | None]) -> tuple[Component, ...]:
    """Read USD per million tokens (per single request for ``request``), exactly.

    Raises:
        Malformed: An amount is no decimal, negative, absurd, or finer than a nano.
    """
    return tuple(
        Component(kind=kind, nanos_per_million=_nanos_per_million(kind, text))
        for kind, text in amounts.items()
        if text is not None
    )


def _nanos_per_million(kind: Meterable, text: str) -> int:
    name = f"{kind.value}_usd"
    try:
        usd = Decimal(text.strip().lstrip("$"))
    except InvalidOperation:
        raise Malformed(
            f"'{text}' is no amount of dollars. Write a decimal, for example \"2.50\".", param=name
        ) from None
    most = MAX_REQUEST_USD if kind is Meterable.REQUEST else MAX_USD
    if not usd.is_finite() or not 0 <= usd <= most:
        raise Malformed(f"A price lies from 0 to {most} dollars.", param=name)
    try:
        with localcontext() as exact:
            exact.traps[Inexact] = True
            nanos = usd * NANOS_PER_USD * (MILLION if kind is Meterable.REQUEST else 1)
            return int(nanos.to_integral_exact())
    except Inexact:
        raise Malformed("A price cannot be finer than a billionth of a dollar.", param=name) from None

"""From a price as an operator asks for it to the price that is written: its amounts, and from when it may hold.

Invariant: what has been charged is never priced anew. A price begins now or later; it may begin in the past only where
the model had no price at all then, so that ``prices rerate`` can charge what was used meanwhile. Not here: writing it.
"""

from collections.abc import Iterable, Sequence
from itertools import count

from meterhouse.admin.pricing import components_from_usd
from meterhouse.admin.schemas import PriceRequest
from meterhouse.errors import Malformed
from meterhouse.money import Meterable, Price
from meterhouse.providers.prices import make_price

OPERATOR_SOURCE = "operator"
FURTHEST_MS = 10 * 366 * 86_400_000


def plan_price(order: PriceRequest, now_ms: int, known: Iterable[Price]) -> Price:
    """Make the price that an operator asks for.

    Args:
        order: as it was asked; without a start it holds from now on.
        now_ms: the present.
        known: every price that was ever set, in the order in which they were.

    Raises:
        Malformed: An amount is none, or it begins where another price was in force, or too far ahead.
    """
    own = [price for price in known if (price.provider, price.model) == (order.provider, order.model)]
    if order.effective_from is None:
        return operator_price(order, now_ms, own)
    start_ms = order.effective_from * 1000
    if start_ms > now_ms + FURTHEST_MS:
        raise Malformed("A price begins within ten years.", param="effective_from")
    if start_ms < now_ms and any(price.effective_from_ms < now_ms for price in own):
        raise Malformed(
            "A price can begin in the past only where the model had none, and it has had one: what was charged stays. "
            "Leave effective_from out, or name a moment to come.",
            param="effective_from",
        )
    return operator_price(order, start_ms, own)


def operator_price(order: PriceRequest, at_ms: int, own: Sequence[Price] = ()) -> Price:
    """Make the price that an operator asks for, from a moment on; raises Malformed for an amount that is none.

    It is one that its model has already (``own``, in the order in which they were set) if that is the last one that an
    operator set for this moment: a price that another has superseded would not hold by being set again.
    """
    components = components_from_usd(
        {
            Meterable.INPUT: order.input_usd,
            Meterable.OUTPUT: order.output_usd,
            Meterable.CACHED_INPUT: order.cached_input_usd,
            Meterable.CACHE_WRITE: order.cache_write_usd,
            Meterable.REQUEST: order.request_usd,
        }
    )
    ids = {price.id for price in own}
    last = [price for price in own if (price.effective_from_ms, price.source) == (at_ms, OPERATOR_SOURCE)][-1:]
    made = (
        make_price(
            order.provider, order.model, components, effective_from_ms=at_ms, source=OPERATOR_SOURCE, times_before=times
        )
        for times in count()
    )
    return next(price for price in made if price.id not in ids or price in last)

"""From a request to what it must hold (design.md 6, "What a request holds").

Pure arithmetic on sizes; it knows neither prices' origin nor counters. A rate window is debited with an estimate, a
budget or quota holds what cannot be exceeded.
"""

from meterhouse.asked import Asked
from meterhouse.errors import NotPriced
from meterhouse.identity import Principal
from meterhouse.metering import Demand, ModelBounds
from meterhouse.money import Meterable, PossiblePrices, Price
from meterhouse.request import InputSize

BYTES_PER_TOKEN = 3
TOKENS_PER_MESSAGE = 16
_STANDARD_TIERS = (None, "auto", "default")
UNASKED_RATE_TOKENS = 4_096
"""What a rate window is debited at first for an answer whose length the caller did not bound; the settlement
corrects it. Debiting a model's maximum (up to 384,000) would refuse such requests for ever."""


def build_demand(
    request_id: str,
    principal: Principal,
    asked: Asked,
    size: InputSize,
    prices: PossiblePrices,
    bounds: ModelBounds,
) -> Demand:
    """Estimate what a request will use over any deployment that may serve it.

    ``size`` is the request's own, or what it grows to on its way.

    Raises:
        NotPriced: The principal has a budget, and something asked for has no price or no bound.
    """
    is_plain = not size.images and not size.unbounded_parts and asked.unpriced is None and asked.service_tier is None
    if principal.has_budget and not (is_plain and prices.is_whole):
        _check_priced(asked, is_priced=prices.is_whole)
        _check_bounded(asked, size, bounds, prices.known)
        _check_tier(asked, prices.known)
    output_tokens = rate_output_tokens = asked.output_tokens
    if output_tokens is None or rate_output_tokens is None:
        output_tokens = bounds.max_output_tokens
        rate_output_tokens = min(output_tokens, UNASKED_RATE_TOKENS)
    media = size.images * (bounds.image_tokens or 0)
    # By position: msgspec looks for each keyword among all that are given, which takes five times as long.
    return Demand(
        request_id,
        principal.organization_id,
        principal.project_id,
        principal.root_key_id,
        bounds.model or asked.model,
        principal.limits,
        estimate_input_tokens(size),
        size.text_bytes + size.tokens + TOKENS_PER_MESSAGE * size.messages + media,
        output_tokens,
        rate_output_tokens,
        asked.choices,
        asked.is_streamed,
        bounds.thinks_hidden,
        prices.dearest_input_nanos_per_million,
        prices.dearest_output_nanos_per_million,
        asked.request_units * prices.dearest_request_nanos,
    )


def estimate_input_tokens(size: InputSize) -> int:
    """Text bytes / 3, rounded up, and what came as tokens."""
    return -(-size.text_bytes // BYTES_PER_TOKEN) + size.tokens


def _check_tier(asked: Asked, prices: tuple[Price, ...]) -> None:
    tier = asked.service_tier
    if tier in _STANDARD_TIERS:
        return
    if any(all(line.service_tier != tier for line in price.components) for price in prices):
        raise NotPriced(
            f"The service tier '{tier}' has no price for '{asked.model}', and this key has a budget. "
            "Leave service_tier out.",
            param="service_tier",
        )


def _check_priced(asked: Asked, *, is_priced: bool) -> None:
    if not is_priced:
        raise NotPriced(
            f"The model '{asked.model}' has no price, and this key has a budget. "
            "Ask the operator to set a price for it, or use a priced model.",
            param="model",
        )
    if asked.unpriced is not None:
        raise NotPriced(f"{asked.unpriced.message} This key has a budget.", param=asked.unpriced.param)


def _check_bounded(asked: Asked, size: InputSize, bounds: ModelBounds, prices: tuple[Price, ...]) -> None:
    is_unbounded = bool(size.unbounded_parts) or (size.images > 0 and bounds.image_tokens is None)
    if is_unbounded and any(_costs_by_token(price) for price in prices):
        raise NotPriced(
            f"The cost of an audio, file or image part cannot be bounded for '{asked.model}', "
            "and this key has a budget. Remove the part, or use a key without a budget.",
            param=asked.input_name,
        )


def _costs_by_token(price: Price) -> bool:
    return any(line.kind is not Meterable.REQUEST and line.nanos_per_million for line in price.components)

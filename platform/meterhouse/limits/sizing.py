"""How much of each unit a demand holds, and how long an answer it may allow (design.md 6, "Output allowance").

Pure integer arithmetic, divisions rounded down and holds rounded up, so that a hold never falls short of what the
allowance can cost. Not here: counters, and the judgement.
"""

from meterhouse.metering import Demand, Kind, Settlement
from meterhouse.money import MILLION, hold_nanos

ALLOWANCE_SHARE = 4
"""An answer may cost a quarter of what is free, so that one request cannot take all of it from the others."""


class Sizes:
    """What one demand asks of rates, budgets and token quotas, given what is free."""

    __slots__ = (
        "allowance_tokens",
        "held_nanos",
        "held_tokens",
        "output_tokens",
        "rate_tokens",
        "smallest_nanos",
        "smallest_tokens",
    )

    def __init__(self, rate_tokens: int) -> None:
        self.rate_tokens = rate_tokens
        """What a rate of tokens is debited."""
        self.allowance_tokens: int | None = None
        """Per choice; None where nothing is held in full."""
        self.output_tokens: int | None = None
        """Over all choices, held at first."""
        self.smallest_tokens = 0
        """The least that can be held: the input and the floor of each choice."""
        self.smallest_nanos = 0
        self.held_tokens = 0
        self.held_nanos = 0


def size_demand(demand: Demand, budget_free_nanos: int | None, quota_free_tokens: int | None) -> Sizes:
    """Size a demand; the free amounts are the smallest over all budgets and token quotas, None where there is none."""
    choices = demand.choices
    if budget_free_nanos is None and quota_free_tokens is None:
        return Sizes(demand.rate_input_tokens + demand.rate_output_tokens * choices)
    asked = demand.output_tokens
    floor = min(asked, demand.FLOOR_TOKENS)
    bought = asked
    if quota_free_tokens is not None:
        of_share = quota_free_tokens // (ALLOWANCE_SHARE * choices)
        bought = min(bought, of_share, (quota_free_tokens - demand.held_input_tokens) // choices)
    if budget_free_nanos is not None and demand.output_nanos_per_million:
        rate = demand.output_nanos_per_million * choices
        of_share = budget_free_nanos * MILLION // (ALLOWANCE_SHARE * rate)
        bought = min(bought, of_share, (budget_free_nanos - spend_nanos(demand, 0)) * MILLION // rate)
    allowance = min(asked, max(floor, bought))
    is_sliced = demand.is_streamed and not demand.holds_whole_allowance
    output = (min(allowance, demand.SLICE_TOKENS) if is_sliced else allowance) * choices
    sizes = Sizes(demand.rate_input_tokens + min(demand.rate_output_tokens, allowance) * choices)
    sizes.allowance_tokens = allowance
    sizes.output_tokens = output
    sizes.smallest_tokens = demand.held_input_tokens + floor * choices
    sizes.held_tokens = demand.held_input_tokens + output
    if budget_free_nanos is not None:
        sizes.smallest_nanos = spend_nanos(demand, floor * choices)
        sizes.held_nanos = spend_nanos(demand, output)
    return sizes


def spend_nanos(demand: Demand, output_tokens: int) -> int:
    """Return the money that holds a demand with this much output over all choices."""
    return (
        hold_nanos(demand.held_input_tokens, demand.input_nanos_per_million)
        + hold_nanos(output_tokens, demand.output_nanos_per_million)
        + demand.request_nanos
    )


def held_amount(kind: Kind, demand: Demand, output_tokens: int) -> int:
    """Return what a quota or budget of a kind holds for a demand with this much output over all choices."""
    if kind is Kind.SPEND:
        return spend_nanos(demand, output_tokens)
    if kind is Kind.TOKENS:
        return demand.held_input_tokens + output_tokens
    return 1


def settled_amount(kind: Kind, settlement: Settlement) -> int:
    """Return what a settlement moves a limit of a kind to."""
    if kind is Kind.SPEND:
        return settlement.charge_nanos
    if kind is Kind.TOKENS:
        return settlement.total_tokens
    return settlement.requests

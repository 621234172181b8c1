"""What the model of a meter keeps of a request, and what each limit counts of it, in fractions."""

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from meterhouse.metering import Demand, Kind, Limit, Reservation, Settlement, Use
from meterhouse.usage import Exactness


@dataclass(eq=False)
class Request:
    """Everything that ever happened to one request."""

    demand: Demand
    reservation: Reservation
    expires_at_ms: int
    use: Use | None = None
    reaped_at_ms: int | None = None
    settlement: Settlement | None = None
    rate_windows: dict[Limit, tuple[int, int]] = field(default_factory=dict)
    """By rate: the window's number and what it was debited there."""
    is_orphan: bool = False
    """The worker that had it is gone."""
    heard_at_ms: int | None = None
    """When it was reaped, or renewed since."""
    is_of_the_ledger: bool = False
    """It was silent for long when something was learned, so a settlement that comes yet changes nothing by itself."""

    def give_to_ledger(self) -> None:
        """Leave what becomes of its quotas and budgets to the ledger, and its rates as they are."""
        self.is_of_the_ledger = True
        self.rate_windows.clear()

    @property
    def is_live(self) -> bool:
        return self.reaped_at_ms is None and self.settlement is None

    @property
    def is_usable(self) -> bool:
        """Whether its worker can still extend and renew it."""
        return self.is_live and not self.is_orphan

    @property
    def held_output_tokens(self) -> int:
        held = self.reservation.held_output_tokens
        return self.demand.output_tokens * self.demand.choices if held is None else held

    @property
    def applied(self) -> Settlement:
        """What quotas and budgets were moved to so far."""
        if self.settlement is not None:
            return self.settlement
        if self.reaped_at_ms is not None and self.use is not None and self.use.is_sent:
            return Settlement(1, self.use.total_tokens, self.use.charge_nanos, Exactness.COUNTED)
        return Settlement(0, 0, 0, Exactness.COUNTED)


def amount_of(limit: Limit, settlement: Settlement) -> int:
    return {
        Kind.REQUESTS: settlement.requests,
        Kind.TOKENS: settlement.total_tokens,
        Kind.SPEND: settlement.charge_nanos,
    }[limit.kind]


def hold_of(limit: Limit, demand: Demand, output_tokens: int) -> int:
    if limit.kind is Kind.TOKENS:
        return demand.held_input_tokens + output_tokens
    if limit.kind is Kind.SPEND:
        return (
            ceil(demand.held_input_tokens * Fraction(demand.input_nanos_per_million, 10**6))
            + ceil(output_tokens * Fraction(demand.output_nanos_per_million, 10**6))
            + demand.request_nanos
        )
    return 1

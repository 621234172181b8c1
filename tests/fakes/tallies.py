"""Requests under way, as the ledger's writers see them."""

from meterhouse.identity import Principal
from meterhouse.metering import Reservation
from meterhouse.money import Price
from meterhouse.request import Attempt, Tally


def running(request_id: str, organization_id: str, price: Price | None = None) -> Tally:
    """Return a stream that has forwarded three events of three bytes each."""
    attempt = Attempt(1, "fake", "fake/model", "model", price, 1, first_event_ns=2, output_events=3, output_bytes=9)
    return Tally(
        request_id=request_id,
        principal=Principal(organization_id, "proj_1", "key_1", "key_1", frozenset(), None, (), None),
        model="asked",
        operation="chat",
        is_streamed=True,
        reservation=Reservation("id", 1_795_000_000_000, None, None, 0, ()),
        input_tokens_estimate=3,
        held_input_tokens=9,
        is_input_countable=True,
        trace_id="a" * 32,
        started_ns=1,
        asked_ns=1,
        admitted_ns=1,
        attempts=[attempt],
    )

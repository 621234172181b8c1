"""What the memory meter does beyond the contract: it never forgets a reaped reservation before its settlement."""

from fakes.meter_bench import LEASE_MS, Bench, open_bench
from fakes.meter_oracle import settlement_of
from meterhouse.metering import Use


async def test_a_new_limit_counts_what_was_reaped_and_not_settled() -> None:
    async with open_bench(Bench()) as bench:
        reservation = await bench.admit()
        await bench.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=25, charge_nanos=70)})
        bench.clock.move(ms=LEASE_MS)
        await bench.sweep()
        assert await bench.counts("spend 1 USD/month") == (70, 0)
        bench.settle(reservation, settlement_of(25, 90))
        assert await bench.counts("spend 1 USD/month") == (90, 0)

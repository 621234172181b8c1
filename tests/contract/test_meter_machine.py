"""Any order of what workers and servers do to a meter, on both meters; the rules and the model are in the fakes.

``METERHOUSE_TEST_EXAMPLES`` asks for that many examples of each instead of the few of an ordinary run.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from fakes.link_bench import until
from fakes.meter_bench import LEASE_MS, Bench, RedisBench, ServerClock
from fakes.meter_machine import MeterMachine
from fakes.meter_model import Request, amount_of, hold_of
from fakes.meter_oracle import ORGANIZATION, Oracle, Record, admitted, is_in_scope
from fakes.servers import RedisServer
from meterhouse.limits.layout import ACTIVE_KEY, encode_settle, keys_of
from meterhouse.limits.redis import RedisMeter
from meterhouse.limits.scripts import load_scripts
from meterhouse.metering import LedgerSums, Limit, Nature, Period, Reservation, Settlement, Use
from meterhouse.usage import Exactness

MEMORY_EXAMPLES = 60
REDIS_EXAMPLES = 20
RARELY = st.sampled_from([False, False, True])


class MemoryMachine(MeterMachine):
    """One process, which takes everything with it when it dies."""

    @rule(share=st.integers(0, 100), happens=st.sampled_from([False, False, False, True]))
    def crash_and_restart(self, share: int, happens: bool) -> None:
        """The journal's adopter writes what was lost; a new meter knows what the ledger knows."""
        if not happens:
            return
        for request in self.requests:
            if request.settlement is None:
                tokens = request.held_output_tokens * share // 100
                request.settlement = Settlement(1, tokens, tokens, Exactness.COUNTED)
                self.count_overrun(request, request.settlement, held=request.reaped_at_ms is None)
                self.write_record(request)
        self.rates.clear()
        self.runner.run(self.bench.restart())


class ModelledOracle(Oracle):
    """A ledger in which everything that was settled or reaped is written down in the same moment.

    What was silent for two thirds of a lease when a learning began is its to account for from then on.
    """

    requests: Sequence[Request] = ()

    async def sum_before(self, periods: Sequence[Period], before_ms: int, excluded: Collection[str]) -> LedgerSums:
        for request in self.requests:
            is_quiet = request.heard_at_ms is not None and request.heard_at_ms <= before_ms - LEASE_MS * 2 // 3
            if is_quiet and request.demand.request_id in excluded:
                request.give_to_ledger()
        return await super().sum_before(periods, before_ms, excluded)

    @property
    def records(self) -> list[Record]:  # type: ignore[override]
        return [
            Record(request.demand, request.reservation.admitted_at_ms, request.applied)
            for request in self.requests
            if not request.is_live
        ]

    @records.setter
    def records(self, records: list[Record]) -> None:
        assert not records


class RedisMachine(MeterMachine):
    """A worker that may die, and a server that may lose everything."""

    before_end_ms = 50
    bench: RedisBench
    oracle: ModelledOracle

    def __init__(self, server: RedisServer, folder: Path) -> None:
        server.flush()
        oracle = ModelledOracle()
        super().__init__(RedisBench(clock=ServerClock(server), oracle=oracle, server=server, folder=folder))
        oracle.requests = self.requests
        self.runner.run(self.bench.create())
        self.asked = 0

    def prepare(self, limits: Sequence[Limit]) -> None:
        """Have unknown limits learned, and let the millisecond pass in which that was: later requests say so."""
        self.runner.run(self.bench.meter.list_states(ORGANIZATION, limits))
        if self.oracle.calls != self.asked or self.bench.flushes:
            self.asked, self.bench.flushes = self.oracle.calls, 0
            self.clock.move(ms=3)

    async def tell(self, reservation: Reservation, settlement: Settlement) -> None:
        """A script that the server has forgotten is sent again, after what was asked meanwhile."""
        await super().tell(reservation, settlement)
        await self.redis_meter.settlements.drain()

    def write_record(self, request: Request) -> None:
        """The ledger reads it from the model; what was learned since the reaping misses what the settlement changes."""

    def settle_one(self, request: Request, share: int, exactness: Exactness, *, is_sent: bool) -> None:
        super().settle_one(request, share, exactness, is_sent=is_sent)
        if request.is_of_the_ledger:
            self.runner.run(self.bench.reconcile())
            self.asked = self.oracle.calls
            self.clock.move(ms=3)

    def can_renew(self, request: Request) -> bool:
        """One that the ledger accounts for is held again some time after that if it is renewed yet: not here."""
        return super().can_renew(request) and not request.is_of_the_ledger

    def note_renewal(self, request: Request, use: Use) -> None:
        super().note_renewal(request, use)
        if request.reaped_at_ms is not None and request.settlement is None and not request.is_orphan:
            request.heard_at_ms = self.clock.now_ms()

    def settle_again(self, request: Request, settlement: Settlement) -> None:
        """The answer was lost, and the settlement is sent again."""
        payload = encode_settle([(request.demand.request_id, settlement)])
        self.runner.run(self.call_settle(payload))

    async def call_settle(self, payload: bytes) -> None:
        await self.bench.link.call(load_scripts().settle, keys_of(ORGANIZATION), payload)

    def resolve(self, request: Request, settlement: Settlement, *, is_reaping: bool) -> None:
        super().resolve(request, settlement, is_reaping=is_reaping)
        if is_reaping:
            request.heard_at_ms = self.clock.now_ms()

    @property
    def redis_meter(self) -> RedisMeter:
        assert isinstance(self.meter, RedisMeter)
        return self.meter

    def sweep(self, looks_at_all_limits: bool) -> None:
        self.runner.run(self.note_activity())
        super().sweep(looks_at_all_limits)

    async def note_activity(self) -> None:
        await self.bench.link.command("ZADD", ACTIVE_KEY, self.clock.now_ms(), ORGANIZATION)

    # --- what befalls workers and servers

    @precondition(lambda self: any(request.is_live for request in self.requests))
    @rule(happens=RARELY)
    def crash(self, happens: bool) -> None:
        """A worker dies; another takes its place, and knows none of its reservations."""
        if happens:
            for request in self.requests:
                request.is_orphan = True
            self.runner.run(self.bench.replace_worker())

    @precondition(lambda self: any(request.is_live and request.is_orphan for request in self.requests))
    @rule(data=st.data())
    def come_again_elsewhere(self, data: st.DataObject) -> None:
        """A reservation of a dead worker is asked for again: it is the same one."""
        lost = [request for request in self.requests if request.is_live and request.is_orphan]
        request = data.draw(st.sampled_from(lost))
        before, again = request.reservation, admitted(self.runner.run(self.meter.reserve(request.demand)))
        fields = ("request_id", "admitted_at_ms", "allowance_tokens", "held_output_tokens", "held_nanos")
        assert [getattr(again, name) for name in fields] == [getattr(before, name) for name in fields]
        request.reservation, request.is_orphan = again, False

    @rule(happens=RARELY)
    def lose_everything(self, happens: bool) -> None:
        """FLUSHALL."""
        if happens:
            self.bench.server.flush()
            self.lose()

    @rule(happens=st.sampled_from([False, False, False, False, False, True]))
    def restart_empty(self, happens: bool) -> None:
        if happens:
            self.runner.run(self.restart_server())
            self.lose()

    @rule()
    def forget_scripts(self) -> None:
        self.redis_server.cli("SCRIPT", "FLUSH", "SYNC")

    @rule()
    def reconcile(self) -> None:
        """What is exact stays as it is."""
        self.runner.run(self.note_activity())
        self.reap_expired()
        before = self.bench.learner.figures.counter_drift_total
        self.runner.run(self.bench.reconcile())
        assert self.bench.learner.figures.counter_drift_total == before
        self.clock.move(ms=3)

    @property
    def redis_server(self) -> RedisServer:
        assert isinstance(self.bench.server, RedisServer)
        return self.bench.server

    async def restart_server(self) -> None:
        run_id = self.bench.link.run_id
        self.redis_server.restart()
        await until(lambda: self.bench.link.is_up and self.bench.link.run_id != run_id)

    def lose(self) -> None:
        """Redis is empty. What this worker has is registered again; what dead ones had is in the ledger."""
        self.clock.move(ms=3)
        self.rates.clear()
        for request in self.requests:
            request.rate_windows.clear()
            if request.settlement is not None:
                continue
            if request.is_orphan:
                self.resolve_lost(request)
            else:
                self.hold_again(request)
        self.prepare(sorted(self.met, key=repr))

    def resolve_lost(self, request: Request) -> None:
        if request.is_live:
            use = request.use
            is_sent = use is not None and use.is_sent
            truth = Settlement(1, use.total_tokens, use.charge_nanos, Exactness.COUNTED) if use and is_sent else None
            self.resolve(request, truth or Settlement(0, 0, 0, Exactness.COUNTED), is_reaping=True)

    def hold_again(self, request: Request) -> None:
        """Also what was reaped is held again: its worker has it still."""
        if request.reaped_at_ms is not None:
            applied = request.applied
            request.reaped_at_ms, request.heard_at_ms, request.is_of_the_ledger = None, None, False
            for limit in {*self.limits["key_1"], *self.limits["key_2"]}:
                if is_in_scope(limit, request.demand) and limit.nature in {Nature.QUOTA, Nature.BUDGET}:
                    self.add_overrun(
                        limit,
                        request,
                        hold_of(limit, request.demand, request.held_output_tokens) - amount_of(limit, applied),
                    )
        request.expires_at_ms = self.clock.now_ms() + LEASE_MS


def examples(usual: int) -> settings:
    count = os.environ.get("METERHOUSE_TEST_EXAMPLES")
    # The ordinary run takes the same examples each time; a longer one looks for new ones.
    return settings(
        max_examples=int(count or usual),
        derandomize=count is None,
        stateful_step_count=40,
        deadline=None,
        database=None,
    )


def test_any_order_in_memory() -> None:
    run_state_machine_as_test(lambda: MemoryMachine(Bench()), settings=examples(MEMORY_EXAMPLES))


def test_any_order_on_redis(timed_redis_server: RedisServer, tmp_path: Path) -> None:
    run_state_machine_as_test(lambda: RedisMachine(timed_redis_server, tmp_path), settings=examples(REDIS_EXAMPLES))


@pytest.mark.parametrize("share", [5, 130])
def test_what_the_ledger_took_over_moves_no_rate(timed_redis_server: RedisServer, tmp_path: Path, share: int) -> None:
    """Whether its settlement tells less or more than was debited, on the meter as in the model."""
    machine = RedisMachine(timed_redis_server, tmp_path)
    try:
        sizes = {"output_tokens": 300, "held_input_tokens": 90, "choices": 1}
        machine.reserve_one(
            key="key_1", model="large", knows_all_limits=True, is_hidden=False, is_streamed=False, **sizes
        )
        machine.wait(60_000)
        machine.sweep(looks_at_all_limits=True)
        machine.wait(60_000)
        machine.reconcile()
        machine.settle_one(machine.requests[0], share, Exactness.REPORTED, is_sent=True)
        machine.every_limit_stands_where_the_model_says()
    finally:
        machine.teardown()

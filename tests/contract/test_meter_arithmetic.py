"""The arithmetic of the scripts is that of ``limits.sizing``, ``money`` and ``limits.window``, to the last nano.

Numbers in Lua are doubles; prices, limits and counts here go to the edges of what the platform accepts.
"""

import asyncio
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from fakes.meter_bench import LEASE_MS, RedisBench, ServerClock
from fakes.meter_oracle import Record, build_demand, key_limits, settlement_of
from fakes.servers import RedisServer
from meterhouse.limits.limit import MAX_AMOUNT
from meterhouse.limits.memory import MemoryMeter
from meterhouse.limits.sizing import size_demand
from meterhouse.limits.window import period_of
from meterhouse.metering import Demand, Kind, Limit, Refusal, Reservation, Scope, Window
from meterhouse.money import format_usd, hold_nanos

MOST_TOKENS = 20_000_000
MOST_NANOS_PER_MILLION = 600_000_000_000
MOST_CHOICES = 128
TOKENS = st.integers(0, 5_000) | st.integers(0, MOST_TOKENS)
PRICES = st.sampled_from([0, 1, 150_000, 999_999_999, 10**9, MOST_NANOS_PER_MILLION - 1, MOST_NANOS_PER_MILLION])
AMOUNTS = st.integers(1, 10_000) | st.integers(1, MAX_AMOUNT) | st.integers(1, 10**10) | st.just(MAX_AMOUNT)
DEMANDS = st.fixed_dictionaries(
    {
        "rate_input_tokens": TOKENS,
        "held_input_tokens": TOKENS,
        "output_tokens": TOKENS,
        "rate_output_tokens": TOKENS,
        "choices": st.sampled_from([1, 1, 2, 3, 127, MOST_CHOICES]),
        "is_streamed": st.booleans(),
        "holds_whole_allowance": st.booleans(),
        "input_nanos_per_million": PRICES | st.integers(0, MOST_NANOS_PER_MILLION),
        "output_nanos_per_million": PRICES | st.integers(0, MOST_NANOS_PER_MILLION),
        "request_nanos": st.integers(0, 10**9),
    }
)


class Pair:
    """A meter in memory and one on Redis, which are told the same at the same time."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.clock = ServerClock(server)
        self.bench = RedisBench(clock=self.clock, server=server, folder=folder)
        self.runner.run(self.bench.open())
        self.organizations = count(1)

    def close(self) -> None:
        self.runner.run(self.bench.close())
        self.runner.close()

    def begin(self, text: str, spent: int) -> None:
        """Take a new organization, of which the ledger knows one old request."""
        self.organization_id = f"org_{next(self.organizations)}"
        self.oracle = self.bench.oracle
        self.limits = key_limits(text, self.organization_id)
        self.oracle.records = [Record(self.demand({}), self.clock.now_ms() - 1, settlement_of(spent))]
        self.memory = MemoryMeter(self.clock, self.oracle.seed, lease_ms=LEASE_MS)
        self.held: list[tuple[Reservation, Reservation]] = []
        self.runner.run(self.bench.meter.list_states(self.organization_id, self.limits))
        self.runner.run(self.memory.list_states(self.organization_id, self.limits))
        self.move(3)

    def move(self, ms: int) -> None:
        self.clock.move(ms=ms)

    def demand(self, changes: dict[str, object]) -> Demand:
        return build_demand(
            self.limits, organization_id=self.organization_id, root_key_id=self.organization_id, **changes
        )

    def decide(self, changes: dict[str, object]) -> None:
        """Reserve and extend on both; they must say the same."""
        demand = self.demand(changes)
        expected = self.runner.run(self.memory.reserve(demand))
        found = self.runner.run(self.bench.meter.reserve(demand))
        assert found == expected
        if not isinstance(expected, Refusal) and not isinstance(found, Refusal):
            extended = self.runner.run(self.memory.extend(expected, demand.output_tokens // 3 + 1))
            assert self.runner.run(self.bench.meter.extend(found, demand.output_tokens // 3 + 1)) is extended
            assert found == expected

    def end(self) -> None:
        """Both stand at the same."""
        expected = self.runner.run(self.memory.list_states(self.organization_id, self.limits))
        assert self.runner.run(self.bench.meter.list_states(self.organization_id, self.limits)) == expected
        self.runner.run(self.memory.close())


@pytest.fixture(scope="module")
def pair(timed_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    timed_redis_server.flush()
    pair = Pair(timed_redis_server, tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


def run_lua(server: RedisServer, parts: Sequence[str], body: str, cases: Sequence[Sequence[int]]) -> list[list[int]]:
    """Evaluate ``body`` for each case ``c``, which returns a table of whole numbers."""
    lua = files("meterhouse.limits").joinpath("lua")
    text = "\n".join(lua.joinpath(f"{part}.lua").read_text() for part in parts)
    script = f"""
    local fmod, floor = math.fmod, math.floor
    {text}
    local out = {{}}
    for i, c in ipairs(cmsgpack.unpack(ARGV[1])) do out[i] = (function() {body} end)() end
    return out
    """
    found: list[list[int]] = server.cli("EVAL", script, 0, msgspec.msgpack.encode(cases))
    return found


def near(random: Random, most: int) -> int:
    """A number of any magnitude up to ``most``, often at an edge."""
    size = random.randrange(1, most.bit_length() + 1)
    return min(most, random.choice([random.getrandbits(size), 2**size - 1, 2 ** (size - 1), most, most - 1]))


def test_a_product_is_divided_exactly(redis_server: RedisServer) -> None:
    random = Random(20_260_101)
    cases = []
    while len(cases) < 20_000:
        x, y, z = near(random, MAX_AMOUNT), near(random, 86_400_000), max(1, near(random, MAX_AMOUNT))
        if x * y // z < 2**53:
            cases.append((x, y, z))
    body = "local quotient, is_cut = muldiv(c[1], c[2], c[3]) return {quotient, is_cut and 1 or 0}"
    found = run_lua(redis_server, ["arithmetic"], body, cases)
    assert found == [[x * y // z, int(x * y % z > 0)] for x, y, z in cases]


def test_holds_are_rounded_up_exactly(redis_server: RedisServer) -> None:
    random = Random(20_260_102)
    cases = [(near(random, MOST_TOKENS * MOST_CHOICES), near(random, MOST_NANOS_PER_MILLION)) for _ in range(20_000)]
    found = run_lua(redis_server, ["arithmetic"], "return {hold_nanos(c[1], c[2])}", cases)
    assert found == [[hold_nanos(tokens, price)] for tokens, price in cases]


def test_periods_begin_and_end_with_the_calendar(redis_server: RedisServer) -> None:
    random = Random(20_260_103)
    moments = [random.randrange(1_600_000_000_000, 4_400_000_000_000) for _ in range(5_000)]
    for window, number in ((Window.DAY, 1), (Window.MONTH, 2)):
        limit = Limit(Scope.KEY, "key_1", Kind.SPEND, window, 1)
        periods = [period_of(limit, moment) for moment in moments]
        edges = [edge for period in periods[:500] for edge in (period.start_ms, (period.end_ms or 0) - 1)]
        moments_of = [*moments, *[edge for edge in edges if edge is not None]]
        body = "return {bounds_of(c[1], c[2])}"
        found = run_lua(redis_server, ["calendar"], body, [(number, moment) for moment in moments_of])
        expected = [period_of(limit, moment) for moment in moments_of]
        assert found == [[period.start_ms, period.end_ms] for period in expected]


def random_demand(random: Random) -> Demand:
    return structs.replace(
        build_demand(),
        rate_input_tokens=near(random, MOST_TOKENS),
        held_input_tokens=near(random, MOST_TOKENS),
        output_tokens=near(random, MOST_TOKENS),
        rate_output_tokens=near(random, MOST_TOKENS),
        choices=random.choice([1, 1, 2, 3, 127, MOST_CHOICES]),
        is_streamed=random.random() < 0.5,
        holds_whole_allowance=random.random() < 0.3,
        input_nanos_per_million=near(random, MOST_NANOS_PER_MILLION),
        output_nanos_per_million=random.choice([0, near(random, MOST_NANOS_PER_MILLION)]),
        request_nanos=near(random, 10**9),
    )


def test_demands_are_sized_exactly(redis_server: RedisServer) -> None:
    random = Random(20_260_104)
    cases, expected = [], []
    for _ in range(20_000):
        demand = random_demand(random)
        free = [
            random.choice([None, near(random, MAX_AMOUNT), -near(random, MAX_AMOUNT), near(random, 10**9)])
            for _ in range(2)
        ]
        sizes = size_demand(demand, *free)
        expected.append(
            [
                sizes.rate_tokens,
                -1 if sizes.allowance_tokens is None else sizes.allowance_tokens,
                -1 if sizes.output_tokens is None else sizes.output_tokens,
                sizes.smallest_tokens,
                sizes.smallest_nanos,
                sizes.held_tokens,
                sizes.held_nanos,
            ]
        )
        is_sliced = demand.is_streamed and not demand.holds_whole_allowance
        cases.append(
            [
                0,
                demand.rate_input_tokens,
                demand.held_input_tokens,
                demand.output_tokens,
                demand.rate_output_tokens,
                demand.choices,
                int(is_sliced),
                demand.input_nanos_per_million,
                demand.output_nanos_per_million,
                demand.request_nanos,
                *[field for amount in free for field in (int(amount is not None), amount or 0)],
            ]
        )
    body = "return {size_demand(c, c[11] == 1 and c[12] or nil, c[13] == 1 and c[14] or nil)}"
    assert run_lua(redis_server, ["arithmetic", "sizing"], body, cases) == expected


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(
    demands=st.lists(DEMANDS, min_size=1, max_size=3),
    amounts=st.tuples(AMOUNTS, AMOUNTS, AMOUNTS),
    spent=AMOUNTS,
    # Not the end of a lease to the millisecond: what was admitted while a learning began lives one more.
    wait_ms=st.integers(1, 59_000) | st.integers(61_000, 7_200_000),
)
def test_both_meters_decide_alike(
    pair: Pair, demands: list[dict[str, object]], amounts: tuple[int, int, int], spent: int, wait_ms: int
) -> None:
    budget, quota, rate = amounts
    text = f"spend {format_usd(budget)} USD total; tokens {quota} total; tokens {rate}/hour; requests 2/day"
    pair.begin(text, spent)
    for changes in demands:
        pair.decide(changes)
        pair.move(wait_ms)
    pair.end()

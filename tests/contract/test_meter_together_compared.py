"""What is decided together, for whatever keys of an organization, is what one after another would be.

Two organizations have the same keys, projects and limits. One is asked and told in batches, the other one at a time:
decisions, counters, holds, leases and what is left of reaped ones must not differ. ``METERHOUSE_TEST_EXAMPLES`` asks
for that many draws.
"""

import os
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from fakes.meter_bench import DAY_MS, LEASE_MS, OTHER_ORGANIZATION, RedisBench, reserve_together, timed_bench
from fakes.meter_oracle import ORGANIZATION, build_demand, settlement_of
from fakes.servers import RedisServer
from meterhouse.limits.layout import keys_of
from meterhouse.limits.limit import parse_limits
from meterhouse.limits.reserves import MOST_TOGETHER
from meterhouse.metering import Kind, Limit, Refusal, Reservation, Scope, Settlement
from meterhouse.usage import Exactness

DRAWS = int(os.environ.get("METERHOUSE_TEST_EXAMPLES", "24"))
MODELS = ("gpt-4o", "o3")
RATES = ("", "requests 3/minute", "requests 5/second; tokens 700/minute", "concurrent 4", "tokens 500/minute")
PERIODS = (
    "",
    "spend 0.0000005 USD/day",
    "tokens 900/day; requests 6 total",
    "tokens 2000/month; spend 0.000001 USD total",
)
HOLD_HEAD = 16
"""Fields of a hold before its debits, of five fields each (``lua/hold.lua``)."""


@pytest.fixture
async def bench(timed_redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[RedisBench]:
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        yield bench


@dataclass(frozen=True)
class Asker:
    """A key that asks for a model, in either organization, and which limits it knows of.

    A principal that was read before a limit was set goes without it, and its requests count in it all the same.
    """

    key: str
    project: str
    model: str
    texts: tuple[tuple[Scope, str], ...]
    limited_model: str | None

    def in_organization(self, organization_id: str) -> dict[str, Any]:
        """Return the fields of a demand that say who asks."""
        owners = {
            Scope.ORGANIZATION: organization_id,
            Scope.PROJECT: f"{self.project}_of_{organization_id}",
            Scope.KEY: f"{self.key}_of_{organization_id}",
        }
        limits: tuple[Limit, ...] = ()
        for scope, text in self.texts:
            limits += tuple(
                replace(limit, model=self.limited_model) for limit in parse_limits(text, scope, owners[scope])
            )
        return {
            "limits": limits,
            "organization_id": organization_id,
            "project_id": owners[Scope.PROJECT],
            "root_key_id": owners[Scope.KEY],
            "model": self.model,
        }


@pytest.mark.parametrize("seed", range(DRAWS))
async def test_together_is_as_one_after_another(bench: RedisBench, seed: int) -> None:
    chance = random.Random(seed)
    askers = draw_askers(chance)
    mine = [asker.in_organization(ORGANIZATION) for asker in askers]
    others = [asker.in_organization(OTHER_ORGANIZATION) for asker in askers]
    for principals in (mine, others):
        known = [limit for one in principals for limit in one["limits"] if limit.kind is not Kind.CONCURRENT]
        await bench.meter.list_states(principals[0]["organization_id"], known)
    bench.clock.move(ms=10)
    held: list[tuple[Reservation, Reservation]] = []
    for _ in range(5):
        asked = [
            (chance.randrange(len(askers)), draw_size(chance)) for _ in range(chance.randint(1, 2 * MOST_TOGETHER))
        ]
        together = await reserve_together(bench, [build_demand(**mine[who], **size) for who, size in asked])
        alone = [await bench.reserve(**others[who], **size) for who, size in asked]
        assert [told(one) for one in together] == [told(one) for one in alone]
        assert read_state(bench, ORGANIZATION) == read_state(bench, OTHER_ORGANIZATION)
        held += [
            pair for pair in zip(together, alone, strict=True) if all(isinstance(one, Reservation) for one in pair)
        ]  # type: ignore[misc]
        chance.shuffle(held)
        over = [(held.pop(), draw_truth(chance)) for _ in range(len(held) * 6 // 10)]
        for (one, _), truth in over:
            bench.settle(one, truth)
        await bench.settled()
        for (_, other), truth in over:
            bench.settle(other, truth)
            await bench.settled()
        assert read_state(bench, ORGANIZATION) == read_state(bench, OTHER_ORGANIZATION)
        bench.clock.move(ms=chance.choice((0, 1, 700, LEASE_MS + 1_000, DAY_MS)))


def draw_askers(chance: random.Random) -> list[Asker]:
    """Draw one to five, of two projects, with the limits of their owners; at times with those of before."""
    owners = ("organization", "proj_a", "proj_b", *(f"key_{number}" for number in range(5)))
    texts = {owner: "; ".join(filter(None, (chance.choice(RATES), chance.choice(PERIODS)))) for owner in owners}
    limited_model = chance.choice((None, None, MODELS[0]))
    askers = []
    for number in range(chance.randint(1, 5)):
        project = chance.choice(("proj_a", "proj_b"))
        bound = zip(Scope, ("organization", project, f"key_{number}"), strict=True)
        known = tuple((scope, older(texts[owner], chance)) for scope, owner in bound if chance.random() < 0.8)
        askers.append(Asker(f"key_{number}", project, chance.choice(MODELS), known, limited_model))
    return askers


def older(text: str, chance: random.Random) -> str:
    """Return limits as they were before somebody lowered them, or as they are."""
    return re.sub(r"(\d)([ /])", r"\g<1>0\2", text) if chance.random() < 0.2 else text


def draw_size(chance: random.Random) -> dict[str, Any]:
    return {
        "held_input_tokens": chance.choice((0, 10, 400)),
        "output_tokens": chance.choice((0, 1, 100, 5_000)),
        "choices": chance.choice((1, 1, 3)),
        "is_streamed": chance.random() < 0.5,
        "request_nanos": chance.choice((0, 30)),
    }


def draw_truth(chance: random.Random) -> Settlement:
    exactness = chance.choice((Exactness.REPORTED, Exactness.COUNTED))
    return settlement_of(chance.choice((0, 5, 300)), chance.choice((0, 7, 90_000)), exactness=exactness)


def told(decision: Reservation | Refusal) -> str:
    """Return all that a decision says but whose it is."""
    return re.sub(r"request_id='\w+'", "", repr(decision)).replace(OTHER_ORGANIZATION, ORGANIZATION)


def read_state(bench: RedisBench, organization_id: str) -> dict[str, object]:
    """Return all that Redis has of an organization but the ids of its requests, in an order without them."""

    def without_owner(text: bytes) -> bytes:
        return text.replace(OTHER_ORGANIZATION.encode(), ORGANIZATION.encode())

    counters, holds, leases = keys_of(organization_id)
    prefix = counters.removesuffix("m")
    with redis.Redis.from_url(bench.server.url) as client:
        found = {without_owner(name): without_owner(value) for name, value in client.hgetall(counters).items()}
        del found[b"ck"]  # when the run id was asked for last
        # Several slots that were attached in one call may be listed in another order.
        found |= {name: b" ".join(sorted(value.split())) for name, value in found.items() if name.startswith(b"a|")}
        return {
            "counters": found,
            "holds": sorted(describe_hold(without_owner(packed)) for packed in client.hvals(holds)),
            "leases": sorted(score for _, score in client.zrange(leases, 0, -1, withscores=True)),
            "reaped": sorted(score for _, score in client.zrange(f"{prefix}y", 0, -1, withscores=True)),
            "settled": sorted(client.scard(name) for name in client.scan_iter(f"{prefix}s:*")),
        }


def describe_hold(packed: bytes) -> str:
    """Say what a hold has, its debits in the order of their slots."""
    hold = msgspec.msgpack.decode(packed)
    debits = [hold[index : index + 5] for index in range(HOLD_HEAD, len(hold), 5)]
    return repr((hold[:HOLD_HEAD], sorted(debits)))

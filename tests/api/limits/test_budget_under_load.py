"""200 requests at once on a budget with room for 20: exactly 20 reach the provider; settled at half, 10 more do."""

import asyncio
import json
from collections import Counter

import aiohttp
import pytest

from api.asking import Tenant
from api.limits.arrange import INPUT_NANOS, OUTPUT_NANOS, Bench, hold_nanos, usd

REQUESTS = 200
SCRIPT = "gate?tokens=51"
HELD_NANOS = hold_nanos("marker=?", 100)
CHARGED_NANOS = 8 * INPUT_NANOS + 51 * OUTPUT_NANOS
BUDGET_NANOS = 20 * HELD_NANOS

Decided = tuple[int, dict[str, str], bytes]


async def flood(bench: Bench, tenant: Tenant, marker: str, expected: int, *, stream: bool) -> list[Decided]:
    """Send all requests at once; the provider holds what reaches it until every other request is answered."""
    refusals = asyncio.Semaphore(0)
    body = {
        "model": f"fake/{SCRIPT}",
        "messages": [{"role": "user", "content": f"marker={marker}"}],
        "max_tokens": 100,
        "stream": stream,
    }

    async def ask(session: aiohttp.ClientSession) -> Decided:
        async with session.post("/v1/chat/completions", json=body) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            decided = answer.status, headers, await answer.read()
        if answer.status != 200:
            refusals.release()
        return decided

    async with aiohttp.ClientSession(
        bench.gateway.url,
        headers={"Authorization": f"Bearer {tenant.key}"},
        connector=aiohttp.TCPConnector(limit=REQUESTS),
    ) as session:
        asked = [asyncio.create_task(ask(session)) for _ in range(REQUESTS)]
        async with asyncio.timeout(90):
            for _ in range(REQUESTS - expected):
                await refusals.acquire()
            await bench.up.until(lambda truth: sum(a.is_held for a in truth.by_marker(marker)) >= expected)
            assert len(bench.up.truth.by_marker(marker)) == expected
            during = await asyncio.to_thread(bench.limit, tenant, f"spend {BUDGET_NANOS / 10**9} USD total")
            assert during["reserved"] == expected * HELD_NANOS
            assert during["free"] < HELD_NANOS
            bench.up.release()
            return await asyncio.gather(*asked)


def assert_decided(bench: Bench, decided: list[Decided], marker: str, admitted: int) -> None:
    assert not [(status, body) for status, _, body in decided if status not in {200, 429}]
    assert Counter(status for status, _, _ in decided) == {200: admitted, 429: REQUESTS - admitted}
    for status, headers, body in decided:
        if status == 429:
            assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
            assert headers.get("x-should-retry") != "false"
            assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "1000")
    attempts = bench.up.truth.by_marker(marker)
    assert len(attempts) == admitted
    assert {attempt.tokens for attempt in attempts} == {51}


@pytest.mark.parametrize(("stream", "first", "second"), [(False, "a", "b"), (True, "c", "d")])
async def test_exactly_as_many_reach_the_provider_as_the_budget_holds(
    bench: Bench, stream: bool, first: str, second: str
) -> None:
    assert HELD_NANOS == 2 * CHARGED_NANOS
    tenant = await asyncio.to_thread(bench.tenant, key=f"spend {usd(BUDGET_NANOS)} USD total")
    await asyncio.to_thread(bench.price, SCRIPT)

    assert_decided(bench, await flood(bench, tenant, first, 20, stream=stream), first, 20)
    rows = await asyncio.to_thread(bench.charges, tenant)
    assert [row["charge_nanos"] for row in rows] == [CHARGED_NANOS] * 20

    assert_decided(bench, await flood(bench, tenant, second, 10, stream=stream), second, 10)
    rows = await asyncio.to_thread(bench.charges, tenant)
    assert [row["charge_nanos"] for row in rows] == [CHARGED_NANOS] * 30
    assert {row["outcome"] for row in rows} == {"completed"}
    (limit,) = await asyncio.to_thread(bench.gateway.limits, tenant.key)
    assert (limit["spent"], limit["reserved"]) == (30 * CHARGED_NANOS, 0)

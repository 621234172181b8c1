"""Settlements on their way: what a drain waits for, over a link that answers when it is told to."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from meterhouse.limits.link import LinkDown, LinkScript
from meterhouse.limits.scripts import load_scripts
from meterhouse.limits.settlements import Settlements
from meterhouse.limits.wire import Waiter
from meterhouse.metering import Settlement
from meterhouse.usage import Exactness

SETTLEMENT = Settlement(1, 2, 3, Exactness.REPORTED)


class Link:
    """Takes commands, and keeps who waits for their replies."""

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []

    def post(self, _script: LinkScript, _keys: tuple[str, ...], _payload: bytes, waiter: Waiter) -> None:
        self.waiters.append(waiter)

    def push_soon(self) -> None:
        pass


def begin() -> tuple[Link, Settlements]:
    link = Link()
    return link, Settlements(link, load_scripts().settle)  # type: ignore[arg-type]


async def test_one_that_cannot_be_told_takes_no_other_with_it() -> None:
    link, settlements = begin()
    settlements.add("org_1", "req_1", SETTLEMENT)
    settlements.add("org_1", "req_2", Settlement(1, 2, 1 << 64, Exactness.REPORTED))
    settlements.add("org_1", "req_3", SETTLEMENT)
    settlements.add("org_2", "req_4", SETTLEMENT)
    settlements.post()
    assert len(link.waiters) == 3
    assert settlements.given_up == 1


async def begun(draining: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(draining)
    await asyncio.sleep(0)
    return task


async def test_a_drain_does_not_wait_for_what_is_settled_after_it_began() -> None:
    link, settlements = begin()
    settlements.add("org_1", "req_1", SETTLEMENT)
    draining = await begun(settlements.drain())
    settlements.add("org_1", "req_2", SETTLEMENT)
    settlements.flush()
    first, _ = link.waiters
    first.set_result([0])
    async with asyncio.timeout(5):
        await draining


async def test_a_drain_waits_for_all_that_was_settled_before_it_and_for_no_answer_twice() -> None:
    link, settlements = begin()
    for organization_id in ("org_1", "org_2"):
        settlements.add(organization_id, f"req of {organization_id}", SETTLEMENT)
    first_draining, given_up = await begun(settlements.drain()), await begun(settlements.drain())
    settlements.add("org_3", "req_3", SETTLEMENT)
    second_draining = await begun(settlements.drain())
    given_up.cancel()
    one, two, three = link.waiters
    three.set_result([0])
    two.set_exception(LinkDown("away"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first_draining.done()
    assert not second_draining.done()
    one.set_result([0])
    async with asyncio.timeout(5):
        await asyncio.gather(first_draining, second_draining)
    assert given_up.cancelled()
    assert settlements.waiting == 1

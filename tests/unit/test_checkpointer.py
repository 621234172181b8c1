"""Checkpoints reach the disk although no answer waits for them, and with leases it goes a handful at a time."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from fakes.files import FaultyFiles
from fakes.journals import opened_journal
from fakes.tallies import running
from meterhouse.ledger.checkpointer import MOST_AT_ONCE, Checkpointer
from meterhouse.metering import Use
from meterhouse.usage import Usage

REQUEST_ID = "0" * 12 + "7" + "0" * 19


async def test_what_was_written_is_synced_without_a_barrier_of_anybody_else(tmp_path: Path) -> None:
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        checkpointer, tally = Checkpointer(journal), running(REQUEST_ID, "org_1")
        checkpointer.watch(tally)
        await checkpointer.checkpoint()
        assert files.syncs == 0
        await checkpointer.make_durable()
        assert files.syncs == 1
        await checkpointer.make_durable()
        assert files.syncs == 1


async def test_a_journal_that_is_down_stops_nobody(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        checkpointer = Checkpointer(journal)
        checkpointer.watch(running(REQUEST_ID, "org_1"))
        await checkpointer.checkpoint()
    await checkpointer.make_durable()


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"output_events": 256}, 256),
        ({"output_events": 255, "output_bytes": 1_020}, 0),
        ({"output_bytes": 1_021}, 256),
        ({"output_events": 6, "partial": Usage(output_tokens=250)}, 256),
        ({"output_events": 5, "partial": Usage(output_tokens=250)}, 0),
        ({"reported": Usage(output_tokens=256)}, 256),
        ({"reported": Usage(output_tokens=255), "output_events": 300}, 0),
    ],
)
async def test_a_stream_that_is_256_tokens_on_is_written_at_once(
    tmp_path: Path, fields: dict[str, Any], tokens: int
) -> None:
    async with opened_journal(tmp_path) as journal:
        checkpointer, tally = Checkpointer(journal), running(REQUEST_ID, "org_1")
        tally.attempts[0] = structs.replace(tally.attempt, **{"output_events": 0, "output_bytes": 0} | fields)
        checkpointer.note(tally)
        assert tally.checkpointed_tokens == tokens
        if tokens:
            tally.attempt.output_events += 1
            checkpointer.note(tally)
            assert tally.checkpointed_tokens == tokens


class Renewals:
    """A meter that remembers what was renewed together; what is settled meanwhile can be said."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.uses: list[dict[str, Use]] = []
        self._then = then

    async def renew(self, uses: dict[str, Use]) -> None:
        self.uses.append(uses)
        self._then()


async def test_leases_are_renewed_a_handful_at_a_time_and_an_organization_together(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        checkpointer, organization_of = Checkpointer(journal), {}
        for number in range(2 * MOST_AT_ONCE):
            tally = running(f"req_{number}", f"org_{number % 2}")
            checkpointer.watch(tally)
            organization_of[tally.request_id] = tally.principal.organization_id
        meter = Renewals()
        await checkpointer.renew(meter)
    assert [{organization_of[request_id] for request_id in uses} for uses in meter.uses] == [{"org_0"}, {"org_1"}]
    assert sum(map(len, meter.uses)) == len(organization_of)


async def test_what_is_settled_meanwhile_is_neither_renewed_nor_written(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        checkpointer = Checkpointer(journal)
        tallies = [running(f"req_{number:04}", "org_1") for number in range(MOST_AT_ONCE + 2)]
        for tally in tallies:
            checkpointer.watch(tally)
        last, before = tallies[-1], tallies[-2]
        meter = Renewals(lambda: checkpointer.forget(last))
        await checkpointer.renew(meter)
        asyncio.get_running_loop().call_soon(checkpointer.forget, before)
        await checkpointer.checkpoint()
    assert [len(uses) for uses in meter.uses] == [MOST_AT_ONCE, 1]
    assert last.request_id not in meter.uses[1]
    assert last.checkpointed_tokens == before.checkpointed_tokens == 0
    assert all(tally.checkpointed_tokens for tally in tallies[:-2])

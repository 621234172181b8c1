"""Credits and later charges, and taking over journals, as an operator does it."""

import json
import re
from pathlib import Path

import pytest

from cli import books
from cli.command import complaint, good, run
from meterhouse.bookkeeping import AdjustmentOrder, adjust
from meterhouse.errors import MeterDown
from meterhouse.metering import Correction, Kind, Limit, Period, Scope, Window

NOVEMBER_MS = 1_793_491_200_000


@pytest.fixture
def owners(tmp_path: Path) -> books.Owners:
    return books.make(tmp_path)


def options(owners: books.Owners, *more: str) -> tuple[str, ...]:
    owner = ("--organization", owners.organization, "--project", owners.project)
    return ("ledger", "adjust", *owner, "--data", "d", *more)


def sums(folder: Path, scope: Scope, scope_id: str) -> tuple[int, int]:
    limit = Limit(scope, scope_id, Kind.SPEND, Window.MONTH, 10**9)
    found = books.do(folder, lambda stores: stores.ledger.sum_period(Period(limit, NOVEMBER_MS, None)))
    return found.charge_nanos, found.total_tokens


def test_a_credit_is_a_row_that_counts_in_its_month_and_is_listed_and_sealed(
    tmp_path: Path, owners: books.Owners
) -> None:
    credit = ("--period", "2026-11", "--usd", "-12.5", "--reason", "late answers", "--by", "ann")
    done = run(tmp_path, *options(owners, *credit))
    assert done.status == 0
    assert re.fullmatch(r"adj_\w+\n", done.out)
    assert sums(tmp_path, Scope.ORGANIZATION, owners.organization) == (-12_500_000_000, 0)
    assert sums(tmp_path, Scope.KEY, owners.key) == (0, 0)
    tokens = good(
        tmp_path, *options(owners, "--at", "2026-11-03", "--tokens", "7", "--reason", "r", "--key", owners.key)
    )
    assert sums(tmp_path, Scope.KEY, owners.key) == (0, 7)
    first, second = good(tmp_path, "ledger", "adjustments", "--data", "d").splitlines()[1:]
    assert done.out.strip() in first
    for word in ("2026-11-01 00:00", "-12.5", "ann", "late answers"):
        assert word in first
    assert tokens.strip() in second
    assert owners.key in second
    events = json.loads(good(tmp_path, "audit", "--action", "adjustment.created", "--json", "--data", "d"))
    assert [event["target"] for event in events] == [tokens.strip(), done.out.strip()]
    assert events[1]["after"]["nanos"] == -12_500_000_000
    assert events[1]["actor"].startswith("cli ")
    listed = good(tmp_path, "ledger", "adjustments", "--organization", "org_other", "--data", "d")
    assert "adj_" not in listed
    exported = good(tmp_path, "ledger", "export", "--data", "d")
    assert exported.count('"kind":"adjustment"') == 2


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--usd", "1", "--reason", "r"), "--at or --period"),
        (("--usd", "1", "--at", "2026-11-01", "--period", "2026-11", "--reason", "r"), "--at or --period"),
        (("--at", "2026-11-01", "--reason", "r"), "--usd or --tokens"),
        (("--at", "2026-11-01", "--usd", "1", "--tokens", "1", "--reason", "r"), "--usd or --tokens"),
        (("--at", "2026-11-01", "--usd", "0", "--reason", "r"), "changes nothing"),
        (("--at", "2026-11-01", "--usd", "much", "--reason", "r"), "no number"),
        (("--at", "2026-11-01", "--usd", "1e999999", "--reason", "r"), "--usd lies"),
        (("--at", "2026-11-01", "--usd", "0.0000000001", "--reason", "r"), "--usd lies"),
        (("--at", "2026-11-01", "--usd", "1", "--reason", " "), "--reason"),
        (("--at", "1970-01-01", "--usd", "1", "--reason", "r"), "credits add"),
        (("--at", "yesterday", "--usd", "1", "--reason", "r"), "--at"),
        (("--period", "2026-13", "--usd", "1", "--reason", "r"), "--period"),
        (("--at", "2026-11-01", "--usd", "1", "--reason", "r", "--key", "key_none"), "has no key"),
        (("--at", "2026-11-01", "--usd", "1", "--reason", "r", "--project", "proj_none"), "has no project"),
        (("--at", "2026-11-01", "--usd", "1", "--reason", "r", "--organization", "org_none"), "has no project"),
    ],
)
def test_what_is_no_adjustment_is_refused(
    tmp_path: Path, owners: books.Owners, more: tuple[str, ...], word: str
) -> None:
    assert word in complaint(tmp_path, *options(owners, *more))
    assert "adj_" not in good(tmp_path, "ledger", "adjustments", "--data", "d")


def test_the_running_meter_is_told_after_the_ledger_has_it(tmp_path: Path, owners: books.Owners) -> None:
    order = AdjustmentOrder(owners.organization, owners.project, owners.key, NOVEMBER_MS, 5, 0, "why", "me")
    told: list[Correction] = []

    async def tell(correction: Correction) -> bool:
        told.append(correction)
        return True

    async def fail(correction: Correction) -> bool:
        raise MeterDown("away")

    entry, is_applied = books.do(tmp_path, lambda stores: adjust(stores, order, tell))
    assert is_applied
    assert told == [Correction(owners.organization, owners.project, owners.key, NOVEMBER_MS, 5, 0, entry.id)]
    assert entry.created_by == "me"
    _, is_applied = books.do(tmp_path, lambda stores: adjust(stores, order, fail))
    assert not is_applied
    assert sums(tmp_path, Scope.PROJECT, owners.project) == (10, 0)

"""Prices from a moment on, charging later what had none, and credit, as an operator does it."""

import json
from pathlib import Path

import pytest

from cli import books
from cli.command import complaint, good, run
from fakes.ledger import DAY, record
from meterhouse.metering import Kind, Limit, Period, Scope, Window
from meterhouse.usage import Usage

START = "2027-01-15"
"""The day of ``DAY``."""
FREE = {"price_id": None, "charge_nanos": 0, "charges": (), "provider": "local", "upstream_model": "llama"}


def spent(folder: Path, organization: str) -> int:
    period = Period(Limit(Scope.ORGANIZATION, organization, Kind.SPEND, Window.MONTH, 10**9), None, None)
    found: int = books.do(folder, lambda stores: stores.ledger.sum_period(period)).charge_nanos
    return found


def unpriced(count: int, **changes: object) -> list[object]:
    return [record(**{**FREE, "usage": Usage(input_tokens=100, output_tokens=10), **changes}) for _ in range(count)]


def test_what_had_no_price_is_charged_once_by_the_price_that_is_set_for_then(tmp_path: Path) -> None:
    owners = books.make(tmp_path)
    mine = {"organization_id": owners.organization, "project_id": owners.project, "root_key_id": owners.key}
    books.insert(tmp_path, *unpriced(3, **mine), *unpriced(1, organization_id="org_other"))
    books.insert(tmp_path, *unpriced(1, **mine, admitted_at_ms=DAY - 1), record(**mine, price_id="price_1"))
    books.insert(tmp_path, *unpriced(2, **mine, upstream_model="nobody-knows"))
    before = spent(tmp_path, owners.organization)
    prices = ("prices", "set", "local", "llama", "--input", "1", "--output", "4", "--data", "d")
    good(tmp_path, *prices, "--from", START)
    rerate = ("prices", "rerate", "--from", "2027-01-01", "--to", "2027-02-01", "--data", "d")
    dry = good(tmp_path, *rerate, "--dry-run")
    assert "4 records would be charged, 0.00056 USD; 0 had been before, 3 have no price still." in dry
    assert spent(tmp_path, owners.organization) == before
    own = good(tmp_path, *rerate, "--organization", owners.organization)
    assert own.startswith("3 records charged, 0.00042 USD")
    assert spent(tmp_path, owners.organization) == before + 3 * (100 * 1_000 + 10 * 4_000)
    assert good(tmp_path, *rerate).startswith("1 records charged, 0.00014 USD; 3 had been before")
    assert good(tmp_path, *rerate).startswith("0 records charged, 0 USD; 4 had been before")
    assert spent(tmp_path, owners.organization) == before + 420_000
    listed = good(tmp_path, "ledger", "adjustments", "--organization", owners.organization, "--data", "d")
    assert listed.count("priced later: local/llama by price_") == 3
    found = json.loads(good(tmp_path, "audit", "--action", "adjustment.created", "--json", "--data", "d"))
    written = {one["organization"]: one for one in found}
    assert len(found) == len(written) == 2
    assert written["org_other"]["after"]["nanos"] == 140_000
    mine = written[owners.organization]
    assert (mine["after"]["adjustments"], mine["after"]["nanos"], mine["after"]["reason"]) == (
        3,
        420_000,
        "priced later",
    )
    assert mine["target"] in listed
    assert mine["actor"].startswith("cli ")


def test_a_price_begins_later_but_never_under_what_was_charged(tmp_path: Path) -> None:
    books.make(tmp_path)
    prices = ("prices", "set", "local", "llama", "--input", "1", "--output", "4", "--data", "d")
    good(tmp_path, *prices, "--from", "2031-01-01")
    assert "2031-01-01 00:00" in good(tmp_path, "prices", "list", "--data", "d")
    good(tmp_path, *prices, "--from", "2026-01-01")
    assert "only where the model had none" in complaint(tmp_path, *prices, "--from", "2026-02-01")
    assert "ten years" in complaint(tmp_path, *prices, "--from", "2066-02-01")


def test_credit_is_added_once_for_a_reference_and_shown(tmp_path: Path) -> None:
    owners = books.make(tmp_path)
    books.insert(tmp_path, record(organization_id=owners.organization, charge_nanos=1_500_000_000, charges=()))
    mine = ("--organization", owners.organization, "--data", "d")
    assert "not bounded" in good(tmp_path, "credits", "show", *mine)
    add = ("credits", "add", *mine, "--usd", "25", "--reference", "payment 1")
    assert "adj_credit_" in good(tmp_path, *add)
    again = good(tmp_path, *add)
    assert "was credited before" in again
    assert "credited:  25 USD\nspent:     1.5 USD\nleft:      23.5 USD" in again
    assert "another amount" in complaint(tmp_path, *add, "--usd", "26")
    pasted = good(tmp_path, *add[:-1], " payment 1 ")
    assert "was credited before" in pasted
    good(tmp_path, "credits", "add", *mine, "--usd", "-25", "--reference", "refund 1")
    assert "left:      -1.5 USD" in good(tmp_path, "credits", "show", *mine)
    exported = good(tmp_path, "ledger", "export", "--data", "d")
    assert exported.count('"reason":"credit: payment 1"') == 1


@pytest.mark.parametrize(
    ("usd", "reference", "word"),
    [("0", "r", "nothing"), ("1", " ", "reference"), ("1", "a\nb", "reference"), ("9000000", "r", "at most")],
)
def test_what_is_no_credit_is_refused(tmp_path: Path, usd: str, reference: str, word: str) -> None:
    owners = books.make(tmp_path)
    add = ("credits", "add", "--data", "d", "--usd", usd, "--reference", reference, "--organization")
    assert word in complaint(tmp_path, *add, owners.organization)
    assert run(tmp_path, *add, "org_none").status == 2

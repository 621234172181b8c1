"""The ledger against a provider's own export, in each of its forms."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli import books
from cli.command import complaint, good, run
from fakes.ledger import DAY, record
from meterhouse.ledger.compare import parse_moment_ms
from meterhouse.usage import Usage

SECONDS = DAY // 1000


@pytest.fixture
def house(tmp_path: Path) -> Path:
    plain = {"served_model": "gpt-2026", "upstream_model": "gpt", "usage": Usage(1_000, 400, 0, 100)}
    made = [
        record(admitted_at_ms=DAY + i, **plain, request_id=f"{DAY + i:012x}7000800000000000000{i}") for i in range(3)
    ]
    later = record(
        admitted_at_ms=DAY + 86_400_000, served_model="", upstream_model="mini", usage=Usage(7, 0, 0, 3),
        request_id=f"{DAY + 86_400_000:012x}70008000000000000009",
    )  # fmt: skip
    other = record(admitted_at_ms=DAY, provider="other", request_id=f"{DAY:012x}70008000000000000008")
    books.make(tmp_path, *made, later, other)
    return tmp_path


def reconcile(house: Path, *more: str) -> tuple[str, ...]:
    return ("ledger", "reconcile", "--against", "f", "--provider", "openai", "--data", "d", *more)


def day_text() -> str:
    return datetime.fromtimestamp(SECONDS, UTC).strftime("%Y-%m-%d")


def rows(**changes: object) -> list[dict[str, object]]:
    first: dict[str, object] = {"day": day_text(), "model": "gpt-2026", "input_tokens": 3000, "output_tokens": 300}
    second = {**first, "model": "mini", "day": SECONDS + 86_400, "input_tokens": 7, "output_tokens": 3}
    return [{**first, **changes}, second]


def as_csv(found: list[dict[str, object]]) -> str:
    names = list(dict.fromkeys(name for row in found for name in row))
    lines = [",".join(str(row.get(name, "")) for name in names) for row in found]
    return "\n".join([",".join(names), *lines, ""])


def as_json_lines(found: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in found)


def as_pages(found: list[dict[str, object]]) -> str:
    """Return what OpenAI's usage endpoint answers."""
    buckets = []
    for row in found:
        start = row["day"] if isinstance(row["day"], int) else SECONDS
        result = {"object": "organization.usage.completions.result", "input_cached_tokens": None, "batch": None}
        result |= {name: value for name, value in row.items() if name != "day"}
        buckets.append({"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": [result]})
    return json.dumps({"object": "page", "data": buckets, "has_more": False, "next_page": None}, indent=2)


@pytest.mark.parametrize("form", [as_csv, as_json_lines, as_pages])
def test_figures_that_agree(house: Path, form) -> None:
    (house / "f").write_text(form(rows()))
    assert good(house, *reconcile(house)) == "4 figures compared, 0 differ by more than 0.5 %.\n"


@pytest.mark.parametrize("text", ["2026-11-01", "20261101", "1793491200", "2026-11-01T02:00+02:00", " 20261101 "])
def test_a_day_is_read_in_whatever_form(text: str) -> None:
    assert parse_moment_ms(text) == 1_793_491_200_000


@pytest.mark.parametrize("text", ["20261131", "99999999", "2026-11", "4102444800"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_moment_ms(text)


@pytest.mark.parametrize("form", [as_csv, as_json_lines, as_pages])
def test_a_difference_is_shown_with_its_ratio(house: Path, form) -> None:
    (house / "f").write_text(form(rows(output_tokens=400)))
    done = run(house, *reconcile(house))
    assert done.status == 1
    heading, line, summary = done.out.splitlines()
    assert line.split() == [day_text(), "gpt-2026", "output_tokens", "300", "400", "0.7500"]
    assert heading.split()[-1] == "ratio"
    assert summary == "4 figures compared, 1 differ by more than 0.5 %."


def test_the_tolerance(house: Path) -> None:
    (house / "f").write_text(as_csv(rows(input_tokens=3_015)))
    good(house, *reconcile(house))
    assert run(house, *reconcile(house, "--tolerance", "0.4")).status == 1
    good(house, *reconcile(house, "--tolerance", "1%"))
    for text in ("much", "101", "-1"):
        assert "--tolerance" in complaint(house, *reconcile(house, "--tolerance", text))


def test_what_only_one_side_has_is_a_difference(house: Path) -> None:
    (house / "f").write_text(as_csv([*rows()[:1], {**rows()[1], "model": "unknown"}]))
    done = run(house, *reconcile(house))
    assert done.status == 1
    shown = {tuple(line.split()[1:]) for line in done.out.splitlines()[1:-1]}
    assert ("unknown", "input_tokens", "0", "7", "0.0000") in shown
    assert ("mini", "input_tokens", "7", "0", "-") in shown


def test_the_name_that_was_asked_for_matches_too_and_rows_of_a_day_add_up(house: Path) -> None:
    half = rows(model="gpt", input_tokens=1_500, output_tokens=150)
    (house / "f").write_text(as_csv([half[0], *half]))
    good(house, *reconcile(house))


def test_every_measure_that_is_named_is_compared(house: Path) -> None:
    named = {"cached_input_tokens": 1_200, "requests": 3, "cost_usd": "0.000003"}
    (house / "f").write_text(as_json_lines(rows(**named)[:1]))
    assert good(house, *reconcile(house)).startswith("5 figures compared, 0 differ")
    (house / "f").write_text(as_json_lines(rows(**named | {"cost_usd": 0.000004})[:1]))
    done = run(house, *reconcile(house))
    assert done.status == 1
    assert "cost_usd" in done.out
    assert "0.000003  0.000004  0.7500" in done.out
    good(house, *reconcile(house, "--no-cost"))
    assert len(good(house, *reconcile(house, "--no-cost", "--all")).splitlines()) == 6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "names no usage"),
        ("model,input_tokens\ngpt,1\n", "line 2 names no time"),
        ("day,input_tokens\n2026-01-01,1\n", "line 2 names no model"),
        ("day,model\n2026-01-01,gpt\n", "none of the columns"),
        ("day,model,input_tokens\nsoon,gpt,1\n", "'soon' is no day"),
        ("day,model,input_tokens\n1800000000000,gpt,1\n", "is no day"),
        ("day,model,input_tokens\n2026-01-01,gpt,1.5\n", "'1.5'"),
        ("day,model,input_tokens\n2026-01-01,gpt,-1\n", "'-1'"),
        ("day,model,input_tokens\n2026-01-01,gpt,1e999999\n", "1e999999"),
        ("day,model,cost_usd\n2026-01-01,gpt,1e999999\n", "no amount"),
        ("day,model,cost_usd\n2026-01-01,gpt,cheap\n", "no amount"),
        ('{"day": 1, "model": "gpt"\n', "no JSON"),
        ('{"day": 1, "model": "gpt", "input_tokens": 1}\n[\n', "line 2 is no JSON"),
        ("[1]", "no object"),
        ('{"day": [1], "model": "gpt", "input_tokens": 1}', "'[1]' is no day"),
        ('{"day": "2026-01-01", "model": "gpt", "input_tokens": [1]}', "'[1]', no number"),
        ('{"day": "2026-01-01", "model": "gpt", "cost_usd": {"value": 1}}', "no amount"),
        ('{"object": "bucket", "start_time": 1, "results": [5]}', "no object"),
        ('{"day": 1, "model": "gpt", "input_tokens": ' + "9" * 5_000 + "}", "thousands of digits"),
        ("[" * 100_000, "nested too deeply"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_line(house: Path, text: str, word: str) -> None:
    (house / "f").write_bytes(text.encode(errors="surrogateescape"))
    assert word in complaint(house, *reconcile(house))


def test_a_file_that_is_not_there(house: Path) -> None:
    assert "cannot be read" in complaint(house, *reconcile(house))

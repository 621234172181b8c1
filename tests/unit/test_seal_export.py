"""A file with sealed rows: written, signed, changed in every way, and checked."""

import base64
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes.seals import SEALED_MS, chain, usage_row
from meterhouse.ledger.export import ExportReader, ExportWriter, Order, check_export, signature_path
from meterhouse.ledger.seal import COLUMNS, Entry, Fault, Kind, hash_row

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LAYOUTS = ("jsonl", "csv")
ORDER = Order(SEALED_MS)


def adjustment_entry(previous):
    row = dict.fromkeys(COLUMNS[Kind.ADJUSTMENT], "x") | {"root_key_id": None, "organization_id": "org_1"}
    row |= {"id": "adj_1", "nanos": -5, "tokens": -7, "period_start_ms": 1, "created_at_ms": 2, "reason": 'a, "b"\nc;é'}
    place = ("org_1", previous.sequence + 1, previous.hash, previous.sealed_at_ms)
    return Entry("adjustment", *place[:3], hash_row("adjustment", *place, row), place[3], row)


def rows():
    usage = chain(6)
    return [*usage, adjustment_entry(usage[-1]), *chain(2, organization_id="org_2")]


def write(path, entries, layout, key=KEY):
    with path.open("wb") as file:
        writer = ExportWriter(file, layout)
        for entry in entries:
            writer.write(entry)
        end = writer.finish(ORDER, key)
        if layout == "jsonl":
            file.write(end)
        else:
            signature_path(path).write_bytes(end)
    return path


def check(path, key=KEY):
    return list(check_export(ExportReader(path), key.public_key()))


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def path(tmp_path, layout):
    return write(tmp_path / "export", rows(), layout)


def edit(path, change):
    """Change the lines of the content."""
    lines = path.read_bytes().splitlines(keepends=True)
    end = len(lines) - 2 if lines[0].startswith(b"{") else len(lines)
    body = lines[:end]
    change(body)
    path.write_bytes(b"".join(body + lines[end:]))


def test_what_was_written_is_read_again_and_good(path):
    reader = ExportReader(path)
    assert [entry for entry in reader.read() if isinstance(entry, Entry)] == rows()
    assert check(path) == []
    assert reader.statement.totals.adjusted_nanos == -5
    assert (reader.statement.totals.usage_rows, reader.statement.totals.charge_nanos) == (8, 6_021 + 2_003)


def test_an_export_of_nothing_is_good(tmp_path, layout):
    assert check(write(tmp_path / "empty", [], layout)) == []


def test_another_key_is_not_believed(path):
    [found] = check(path, Ed25519PrivateKey.generate())
    assert found.fault is Fault.NOT_SIGNED


def swap(lines, first, second):
    lines[first], lines[second] = lines[second], lines[first]


def line_of(layout, sequence):
    return sequence - 1 if layout == "jsonl" else sequence


@pytest.mark.parametrize("sequence", [1, 3, 6])
def test_a_changed_row_is_named(path, layout, sequence):
    place = line_of(layout, sequence)
    text = f"model of {sequence}".encode()
    edit(path, lambda lines: lines.__setitem__(place, lines[place].replace(text, b"cheaper")))
    [found] = check(path)
    assert (found.fault, found.organization_id, found.sequence) == (Fault.CHANGED, "org_1", sequence)
    assert f"request {sequence:032x} attempt 1" in str(found)


def test_a_changed_charge_is_named_and_so_is_the_sum(path, layout):
    place = line_of(layout, 2)
    edit(path, lambda lines: lines.__setitem__(place, lines[place].replace(b"1002", b"1")))
    row, total = check(path)
    assert (row.fault, row.sequence) == (Fault.CHANGED, 2)
    assert "the sum of charge_nanos is 7023, signed was 8024" in str(total)


@pytest.mark.parametrize("sequence", [1, 4, 6])
def test_a_dropped_row_is_named(path, layout, sequence):
    edit(path, lambda lines: lines.pop(line_of(layout, sequence)))
    found = check(path)
    assert (found[0].fault, found[0].sequence) == (Fault.MISSING, sequence)


def test_an_inserted_row_is_named(path, layout):
    edit(path, lambda lines: lines.insert(line_of(layout, 3), lines[line_of(layout, 3)]))
    found = check(path)
    assert (found[0].fault, found[0].sequence) == (Fault.INSERTED, 3)


def test_rows_in_another_order_are_named(path, layout):
    edit(path, lambda lines: swap(lines, line_of(layout, 2), line_of(layout, 4)))
    assert [(one.fault, one.sequence) for one in check(path)] == [(Fault.REORDERED, 3), (Fault.REORDERED, 2)]


def test_a_line_that_is_no_row_is_named_with_its_number(path, layout):
    edit(path, lambda lines: lines.__setitem__(line_of(layout, 2), b"{nothing\n"))
    found = check(path)
    assert found[0].fault is Fault.UNREADABLE
    assert f"line {line_of(layout, 2) + 1} " in str(found[0])
    assert (found[1].fault, found[1].sequence) == (Fault.MISSING, 2)


def test_a_change_of_bytes_alone_is_found(path, layout):
    place = line_of(layout, 2)
    spaced = (b"1002", b" 1002") if layout == "csv" else (b'":', b'": ')
    edit(path, lambda lines: lines.__setitem__(place, lines[place].replace(*spaced)))
    [found] = check(path)
    assert "bytes of the file" in str(found)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_file_that_was_cut_off_is_found(path, layout, cut):
    target = path if layout == "jsonl" else signature_path(path)
    target.write_bytes(b"".join(target.read_bytes().splitlines(keepends=True)[:-cut]))
    assert Fault.NOT_SIGNED in {one.fault for one in check(path)}


def test_a_csv_without_its_signature_is_not_signed(tmp_path):
    path = write(tmp_path / "export", rows(), "csv")
    signature_path(path).unlink()
    assert [one.fault for one in check(path)] == [Fault.NOT_SIGNED]


def test_a_statement_that_was_changed_with_the_rows_is_not_signed(path, layout):
    """Who can make seals cannot make the signature."""
    other = write(path.with_name("forged"), chain(6, charge_nanos=0), layout, Ed25519PrivateKey.generate())
    assert [one.fault for one in check(other)] == [Fault.NOT_SIGNED]


def test_a_signature_that_is_no_base64_is_not_believed(tmp_path):
    path = write(tmp_path / "export", rows(), "jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    for text in ("", "***", base64.b64encode(b"x").decode()):
        path.write_bytes(b"".join(lines[:-1]) + msgspec.json.encode({"signature": text}) + b"\n")
        assert [one.fault for one in check(path)] == [Fault.NOT_SIGNED]


@pytest.mark.parametrize("model", ['=1+1,"\r\n', "\r", "a\rb", "a\n\rb", "\n", "\r\r\n", "'", " "])
def test_a_text_of_a_csv_may_hold_anything(tmp_path, model):
    row = usage_row(1, model=model, error_code="é\n", price_id="price_1", time_to_first_token_ms=0)
    entry = Entry("usage", "org_1", 1, "", hash_row("usage", "org_1", 1, "", 5, row), 5, row)
    assert check(write(tmp_path / "export", [entry], "csv")) == []


def measure_a_long_export(folder, layout):
    """Return how many faults it has, its size and the most memory that writing and checking took, both in bytes."""

    def many():
        previous = ""
        for number in range(1, 2_501):
            row = usage_row(number)
            sealed = hash_row("usage", "org_1", number, previous, 5, row)
            yield Entry("usage", "org_1", number, previous, sealed, 5, row)
            previous = sealed

    write(folder / "warm", islice(many(), 10), layout)
    tracemalloc.start()
    path = write(folder / "export", many(), layout)
    found = check(path)
    return len(found), path.stat().st_size, tracemalloc.get_traced_memory()[1]


def test_a_long_export_is_written_and_checked_in_little_memory(tmp_path, layout):
    """In a process of its own: in this one, threads of other tests may allocate meanwhile."""
    command = [sys.executable, "-m", "unit.test_seal_export", str(tmp_path), layout]
    printed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    faults, size_bytes, peak_bytes = map(int, printed.split())
    assert faults == 0
    assert size_bytes > 1_200_000
    assert peak_bytes < size_bytes / 2


def test_the_sums_count_what_is_no_number_as_nothing(tmp_path):
    changed = replace(chain(1)[0], row={"charge_nanos": "5"})
    reader = ExportReader(write(tmp_path / "export", [changed], "jsonl"))
    assert reader.statement.totals.usage_rows == 1
    assert reader.statement.totals.charge_nanos == 0


if __name__ == "__main__":
    print(*measure_a_long_export(Path(sys.argv[1]), sys.argv[2]))

"""What a row hashes to, and what a chain of rows proves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.seals import chain, reseal
from meterhouse.db.tables import adjustment, usage_record
from meterhouse.ledger.seal import COLUMNS, ChainChecker, Entry, Fault, Kind, Span, hash_row, hash_rows


def findings(entries, spans=None):
    checker = ChainChecker(spans)
    found = [finding for entry in entries for finding in checker.take(entry)]
    return [*found, *checker.finish()]


def spans_of(entries):
    spans = {}
    for entry in entries:
        first = spans.get(entry.organization_id)
        spans[entry.organization_id] = Span(
            entry.organization_id,
            entry.sequence if first is None else first.first_sequence,
            entry.sequence,
            entry.previous_hash if first is None else first.first_previous_hash,
            entry.hash,
        )
    return spans


def brief(found):
    return [(finding.fault, finding.sequence) for finding in found]


def test_every_column_of_the_tables_is_sealed():
    """A new column needs a new version of the seal, or changing it would not be found."""
    assert set(COLUMNS[Kind.USAGE]) == set(usage_record.c.keys())
    assert set(COLUMNS[Kind.ADJUSTMENT]) == set(adjustment.c.keys())


def test_the_seal_of_version_1_never_changes():
    row = {name: number for number, name in enumerate(COLUMNS[Kind.USAGE])}
    row |= {"request_id": "é", "is_streamed": True, "is_suspect": False, "price_id": None}
    sealed = hash_row("usage", "org_1", 7, "1:aa", 1_800_000_000_000, row)
    assert sealed == "1:054565b233003ed9d889b68c88606e5b34a5264b7a97851594ba4adc84732648"


VALUES = st.one_of(
    st.integers(), st.booleans(), st.none(), st.sampled_from(["", "%s", "100%", "a\nb", "\N{SNOWMAN}", "1"]), st.text()
)
SAME_OR_NOT = st.one_of(VALUES.map(lambda value: [value] * 4), st.lists(VALUES, min_size=4, max_size=4))
COUNTS = st.lists(st.integers(0, 10**18), min_size=4, max_size=4)


@given(
    st.fixed_dictionaries({name: st.one_of(SAME_OR_NOT, COUNTS) for name in COLUMNS[Kind.ADJUSTMENT]}),
    st.lists(st.sampled_from(["org_1", "org_2", "org_3"]), min_size=4, max_size=4),
)
def test_rows_sealed_together_have_the_seals_of_each_alone(columns, organization_ids):
    columns["organization_id"] = organization_ids
    heads = {"org_2": (7, "1:aa", 900)}
    expected, moved = [], dict(heads)
    for number, organization_id in enumerate(organization_ids):
        sequence, previous_hash, last_ms = moved.get(organization_id, (0, "", 0))
        row = {name: values[number] for name, values in columns.items()}
        place = (organization_id, sequence + 1, previous_hash, max(800, last_ms))
        moved[organization_id] = (sequence + 1, hash_row("adjustment", *place, row), max(800, last_ms))
        expected.append((previous_hash, moved[organization_id]))
    assert hash_rows("adjustment", columns, heads, 800) == expected
    assert heads == moved


def test_equal_values_of_other_types_are_sealed_as_what_they_are():
    columns = {name: [1, True] for name in COLUMNS[Kind.ADJUSTMENT]} | {"organization_id": ["org_1", "org_2"]}
    sealed = [head for _, head in hash_rows("adjustment", columns, {}, 5)]
    rows = [{name: values[number] for name, values in columns.items()} for number in range(2)]
    places = [("org_1", 1, "", 5), ("org_2", 1, "", 5)]
    assert [head[1] for head in sealed] == [
        hash_row("adjustment", *place, row) for place, row in zip(places, rows, strict=True)
    ]


def test_a_row_with_other_columns_has_no_seal():
    row = dict.fromkeys(COLUMNS[Kind.ADJUSTMENT], "")
    for changed, word in (
        ({**row, "more": 1}, "more is unknown"),
        ({name: row[name] for name in list(row)[1:]}, "id is missing"),
        ({**{name: row[name] for name in list(row)[1:]}, "other": 1}, "id is missing"),
        ({**row, "nanos": 1.5}, "nanos is float"),
    ):
        with pytest.raises(ValueError, match=word):
            hash_row("adjustment", "org_1", 1, "", 0, changed)
    with pytest.raises(ValueError, match="no kind"):
        hash_row("other", "org_1", 1, "", 0, row)


VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(alphabet="01:=sinb\né", max_size=6)
ROWS = st.fixed_dictionaries(dict.fromkeys(COLUMNS[Kind.ADJUSTMENT], VALUES))
PLACES = st.tuples(st.sampled_from(["o", "o1"]), st.integers(1, 11), st.sampled_from(["", "1:a"]), st.integers(0, 2))


def typed(row):
    return {name: (type(value), value) for name, value in row.items()}


@given(ROWS, ROWS, PLACES, PLACES)
def test_two_rows_or_places_never_share_a_seal(first, second, here, there):
    is_same = typed(first) == typed(second) and here == there
    assert (hash_row("adjustment", *here, first) == hash_row("adjustment", *there, second)) is is_same


@given(ROWS, st.sampled_from(COLUMNS[Kind.ADJUSTMENT]), VALUES)
def test_a_change_of_any_column_changes_the_seal(row, name, value):
    changed = {**row, name: value}
    is_same = typed(changed) == typed(row)
    assert (hash_row("adjustment", "o", 1, "", 0, row) == hash_row("adjustment", "o", 1, "", 0, changed)) is is_same


def test_a_good_chain_has_no_findings():
    entries = [*chain(5), *chain(3, organization_id="org_2")]
    assert findings(entries) == []
    assert findings(entries, spans_of(entries)) == []
    assert findings(entries[2:5], spans_of(entries[2:5])) == []


@pytest.mark.parametrize("column", [*COLUMNS[Kind.USAGE]])
def test_a_changed_column_is_found(column):
    entries = chain(3)
    value = entries[1].row[column]
    other = not value if isinstance(value, bool) else "other" if isinstance(value, str | None) else value + 1
    entries[1] = replace(entries[1], row={**entries[1].row, column: other})
    [found] = findings(entries, spans_of(chain(3)))
    assert (found.fault, found.sequence) == (Fault.CHANGED, 2)
    assert entries[1].subject in str(found)


@pytest.mark.parametrize("name", ["previous_hash", "hash", "sealed_at_ms", "kind"])
def test_a_changed_seal_is_found(name):
    entries = chain(4)
    good = spans_of(entries)
    other = getattr(entries[1], name)
    entries[1] = replace(entries[1], **{name: other + 1 if isinstance(other, int) else f"{other}0"})
    assert brief(findings(entries, good)) == [(Fault.CHANGED, 2)]


@pytest.mark.parametrize("index", range(4))
def test_a_changed_row_that_was_sealed_again_is_found(index):
    entries = chain(4)
    good = spans_of(entries)
    entries[index] = reseal(entries[index], charge_nanos=0)
    assert brief(findings(entries, good)) == [(Fault.CHANGED, index + 1)]


def test_a_chain_that_was_sealed_again_to_its_end_is_found_by_the_last_seal():
    entries = chain(4)
    good = spans_of(entries)
    forged = chain(4, charge_nanos=0)
    assert findings(forged) == []
    assert brief(findings(forged, good)) == [(Fault.CHANGED, 4)]


@pytest.mark.parametrize("index", range(4))
def test_a_missing_row_is_found(index):
    entries = chain(4)
    good = spans_of(entries)
    del entries[index]
    assert brief(findings(entries, good)) == [(Fault.MISSING, index + 1)]


def test_missing_rows_are_one_gap_and_a_missing_organization_is_found():
    entries = [*chain(9), *chain(2, organization_id="org_2")]
    found = findings([*entries[:2], *entries[6:9]], spans_of(entries))
    assert [(one.fault, one.organization_id, one.sequence, one.until) for one in found] == [
        (Fault.MISSING, "org_1", 3, 6),
        (Fault.MISSING, "org_2", 1, 2),
    ]
    assert str(found[0]) == "missing: organization org_1, sequence 3 to 6: 4 rows are not there"


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("index", range(3))
def test_an_inserted_row_is_told_from_the_true_one_with_its_sequence(index, is_before):
    entries = chain(3)
    good = spans_of(entries)
    forged = reseal(entries[index], request_id="f" * 32)
    entries.insert(index if is_before else index + 1, forged)
    [found] = findings(entries, good)
    assert (found.fault, found.subject) == (Fault.INSERTED, forged.subject)


def test_a_row_behind_the_end_before_the_start_or_of_somebody_else_is_inserted():
    entries = chain(5)
    good = spans_of(entries[1:4])
    assert brief(findings(entries, good)) == [(Fault.INSERTED, 1), (Fault.INSERTED, 5)]
    stranger = chain(1, organization_id="org_9")
    assert brief(findings([*entries[1:4], *stranger], good)) == [(Fault.INSERTED, 1)]
    assert brief(findings([*entries[:3], entries[1], *entries[3:]], spans_of(entries))) == [(Fault.INSERTED, 2)]


def test_rows_in_another_order_are_found():
    entries = chain(5)
    good = spans_of(entries)
    entries[1], entries[2] = entries[2], entries[1]
    [found] = findings(entries, good)
    assert (found.fault, found.sequence) == (Fault.REORDERED, 2)
    moved = chain(5)
    moved.append(moved.pop(0))
    assert brief(findings(moved, good)) == [(Fault.REORDERED, 1)]


def test_a_row_that_was_moved_to_another_organization_is_found():
    entries = chain(2)
    row = entries[1].row
    moved = Entry("usage", "org_2", 1, "", hash_row("usage", "org_2", 1, "", 0, row), 0, row)
    assert "another organization" in str(findings([moved])[0])


@given(st.lists(st.tuples(st.sampled_from(["drop", "double", "swap", "change"]), st.integers(0, 7)), max_size=3))
def test_whatever_is_done_to_a_chain_is_found(steps):
    entries = chain(8)
    good = spans_of(entries)
    changed = list(entries)
    for step, place in steps:
        index = place % max(1, len(changed) - 1)
        if not changed:
            break
        if step == "drop":
            del changed[index]
        elif step == "double":
            changed.insert(index, changed[index])
        elif step == "swap" and len(changed) > 1:
            changed[index], changed[index + 1] = changed[index + 1], changed[index]
        elif step == "change":
            changed[index] = reseal(changed[index], input_tokens=place)
    assert bool(findings(changed, good)) is (changed != entries)

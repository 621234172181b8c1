import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.ledger import HOUR, record, rows_of
from meterhouse.db.engine import writing
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.rebuild import Projection
from meterhouse.db.tables import DURATION_BOUNDS_MS, FIRST_TOKEN_BOUNDS_MS, HOUR_MS, usage_hour
from meterhouse.ids import new_request_id
from meterhouse.money import Meterable
from meterhouse.usage import Outcome, Usage


@pytest.fixture
async def ledger(engine):
    return LedgerStore(engine)


async def test_the_projection_sums_every_count_of_an_hour(engine, ledger):
    first = record(usage=Usage(*range(1, 8)), charges=(("input", 600), ("output", 400)))
    failed = record(
        request_id=first.request_id,
        attempt=2,
        requests=0,
        usage=Usage(*range(10, 80, 10)),
        charges=(("input", 3),),
        charge_nanos=3,
        time_to_first_token_ms=None,
        duration_ms=10**7,
    )
    unsent = record(attempt=0, requests=0, usage=Usage(), charges=(), charge_nanos=0, outcome=Outcome.NOT_SENT)
    await ledger.insert([first, failed, unsent])
    completed, not_sent = sorted(await rows_of(engine, usage_hour), key=lambda row: row["outcome"])
    assert completed["hour_ms"] == HOUR
    assert (completed["requests"], completed["attempts"], completed["charge_nanos"]) == (1, 2, 1_003)
    assert [completed[name] for name in Usage.__struct_fields__] == [11, 22, 33, 44, 55, 66, 77]
    assert (completed["input_nanos"], completed["output_nanos"], completed["request_nanos"]) == (603, 400, 0)
    assert [completed[f"first_token_{i:02d}"] for i in range(20)] == [0] * 4 + [1] + [0] * 15
    assert [completed[f"duration_{i:02d}"] for i in range(20)] == [0] * 6 + [1] + [0] * 12 + [1]
    assert (not_sent["requests"], not_sent["attempts"], not_sent["outcome"]) == (0, 0, "not_sent")


@pytest.mark.parametrize(
    "change",
    [
        {"organization_id": "other"},
        {"project_id": "other"},
        {"key_id": "other"},
        {"root_key_id": "other"},
        {"model": "other"},
        {"provider": "other"},
        {"operation": "other"},
        {"service_tier": "other"},
        {"outcome": Outcome.CUT},
        {"error_owner": "other"},
        {"admitted_at_ms": HOUR + HOUR_MS},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_what_the_projection_tells_apart(engine, ledger, change):
    await ledger.insert([record(), record(**change)])
    await ledger.insert([record(), record(**change)])
    assert [row["requests"] for row in await rows_of(engine, usage_hour)] == [2, 2]


def test_every_histogram_has_twenty_buckets():
    for bounds in (FIRST_TOKEN_BOUNDS_MS, DURATION_BOUNDS_MS):
        assert len(bounds) == 19
        assert list(bounds) == sorted(set(bounds))


TOKENS = st.integers(0, 10**9)
RECORDS = st.lists(
    st.builds(
        record,
        request_id=st.builds(new_request_id),
        attempt=st.integers(0, 3),
        requests=st.integers(0, 1),
        key_id=st.sampled_from(["key_1", "key_2"]),
        usage=st.builds(Usage, *[TOKENS] * 7),
        charge_nanos=st.integers(0, 10**14),
        charges=st.dictionaries(st.sampled_from([kind.value for kind in Meterable]), st.integers(1, 10**14)).map(
            lambda charges: tuple(charges.items())
        ),
        admitted_at_ms=st.integers(HOUR, HOUR + 2 * HOUR_MS),
        time_to_first_token_ms=st.none() | st.sampled_from(FIRST_TOKEN_BOUNDS_MS) | st.integers(0, 100_000),
        duration_ms=st.sampled_from(DURATION_BOUNDS_MS) | st.integers(0, 400_000),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS)
async def test_the_projection_always_agrees_with_the_records(ledger, records):
    assert await ledger.insert(records) == len(records)
    assert await ledger.rebuild_check() == []


async def test_a_wrong_projection_is_found(engine, ledger):
    await ledger.insert([record(), record(model="other")])
    async with writing(engine) as connection:
        await connection.execute(
            sa.update(usage_hour).where(usage_hour.c.model == "gpt").values(charge_nanos=1, duration_03=2)
        )
    [difference] = await ledger.rebuild_check()
    assert (difference.group["model"], difference.group["hour_ms"]) == ("gpt", HOUR)
    assert difference.measures == {"charge_nanos": 999, "duration_03": -2}
    async with writing(engine) as connection:
        await connection.execute(sa.delete(usage_hour))
    assert {found.group["model"] for found in await ledger.rebuild_check()} == {"gpt", "other"}


@pytest.mark.parametrize("span_records", [1, 3, 1_000])
async def test_a_rebuild_goes_through_a_large_organization_a_span_at_a_time(engine, ledger, span_records):
    """An hour with more records than a span, hours with less, a gap, and an hour that only the projection has."""
    hours = [HOUR] * 5 + [HOUR + HOUR_MS] + [HOUR + 9 * HOUR_MS] * 2
    await ledger.insert([record(admitted_at_ms=hour + 7) for hour in hours])
    await ledger.insert([record(organization_id="org_2")])
    async with writing(engine) as connection:
        await connection.execute(sa.update(usage_hour).values(charge_nanos=1, duration_03=2))
        phantom = sa.update(usage_hour).where(usage_hour.c.hour_ms == HOUR + HOUR_MS)
        await connection.execute(phantom.values(hour_ms=HOUR + 100 * HOUR_MS))
    projection = Projection(engine, span_records)
    found = [(one.group["organization_id"], one.group["hour_ms"]) async for one in projection.compare()]
    expected = [("org_1", HOUR + hours * HOUR_MS) for hours in (0, 1, 9, 100)] + [("org_2", HOUR)]
    assert found == expected
    assert [(one.group["organization_id"], one.group["hour_ms"]) async for one in projection.rebuild()] == expected
    assert await ledger.rebuild_check() == []

"""How fast the ledger drains into PostgreSQL over one connection, the projection included."""

import time

import pytest

from fakes.ledger import record
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.policy import EnginePolicy

BATCHES = 5
BATCH_RECORDS = 1_000
FLOOR_PER_SECOND = 1_500
"""On a busy machine. Quiet, on two cores, with fsync: 18,000 of one key, 8,000 where each has an hourly row."""


@pytest.mark.parametrize("keys", [1, 100, BATCHES * BATCH_RECORDS], ids=lambda keys: f"{keys} keys")
async def test_the_ledger_drains_faster_than_a_worker_fills_it(migrated_database_url, figures, keys):
    engine = open_engine(migrated_database_url, EnginePolicy(connections=1))
    ledger = LedgerStore(engine)
    await ledger.insert([record()])
    names = [f"key_{i % keys}" for i in range(BATCHES * BATCH_RECORDS)]
    records = [record(key_id=name, root_key_id=name) for name in names]
    batches = [records[start : start + BATCH_RECORDS] for start in range(0, len(records), BATCH_RECORDS)]
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        assert await ledger.insert(batch) == BATCH_RECORDS
        seconds.append(time.perf_counter() - started)
    per_second = BATCH_RECORDS / min(seconds)
    figures(**{f"ledger_records_per_second_of_{keys}_keys": per_second})
    assert per_second > FLOOR_PER_SECOND
    assert await ledger.rebuild_check() == []
    await close(engine)

import pytest

from fakes.journals import make_record
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore
from meterhouse.errors import StoreDown


async def test_an_error_says_which_statement_failed_and_not_what_it_was_to_write(tmp_path):
    """Its text is logged, by workers and by the clerk alike."""
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/without-tables.db")
    with pytest.raises(StoreDown) as raised:
        await LedgerStore(engine).insert([make_record(model="a-tenants-model", charge_nanos=987_654_321)])
    assert "INSERT INTO usage_record" in raised.value.detail
    assert "a-tenants-model" not in raised.value.detail
    assert "987654321" not in raised.value.detail
    await close(engine)

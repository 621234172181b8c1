import asyncio

import pytest

from meterhouse.db.engine import close, open_engine
from meterhouse.db.postgres import dsn_of


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgres://u@h/d", "postgresql://u@h/d"),
        ("postgresql+asyncpg://u@h/d?sslmode=verify-full", "postgresql://u@h/d?sslmode=verify-full"),
        (
            "postgresql://u:a%40b%3F@h/d?connect_timeout=10&sslmode=require",
            "postgresql://u:a%40b%3F@h/d?sslmode=require",
        ),
        ("postgresql:///d?host=/var/run/postgresql", "postgresql:///d?host=%2Fvar%2Frun%2Fpostgresql"),
        ("postgresql://h1,h2:5433/d?keepalives=1&tcp_user_timeout=9", "postgresql://h1,h2:5433/d"),
    ],
)
def test_a_url_is_what_asyncpg_takes(url, dsn):
    assert dsn_of(url) == dsn


def test_an_engine_shows_no_password():
    engine = open_engine("postgresql://u:secret-word@h/d")
    assert "secret-word" not in f"{engine!r} {engine.url!r} {engine.url}"
    asyncio.run(close(engine))

"""Weak secrets (CVE-2026-41432: an empty one was accepted): in production nothing starts on one that can be guessed."""

from secrets import token_hex
from typing import Any

import pytest
from pydantic import SecretStr

from meterhouse.guessable import is_guessable_key, is_guessable_password
from meterhouse.ids import random_base62
from meterhouse.keys.secret import Peppers
from meterhouse.serve import check_settings
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import parse_peppers

GOOD = "1:" + random_base62(43)
DATABASE = "postgresql://meterhouse:{}@db.example/meterhouse"
PEPPERS = [
    *(
        "",
        "1:",
        "1:short",
        "1:" + "a" * 48,
        "1:" + "ab" * 24,
        "1:" + "0123456" * 8,
        "1:changeme-changeme-0123456789-abcdef",
    ),
    *(
        "1:your-pepper-here-0123456789-abcdefghij",
        "1:an-example-of-a-pepper-0123456789-abcdef",
        "1:TODO_0123456789-abcdefghijklmnopqrstuvwx",
        f"{GOOD},2:" + "x" * 40,
    ),
]
PASSWORDS = ["password", "Postgres", "meterhouse", "changeme", "123456", "CHANGE-ME-please", "example-password", "root"]


def settings(**more: Any) -> Settings:
    secrets = {"key_pepper": GOOD, "database_url": DATABASE.format(random_base62(20)), **more}
    return Settings(redis_url="redis://r.example/0", shutdown_seconds=5, **secrets)


@pytest.mark.parametrize("pepper", PEPPERS)
def test_a_pepper_that_can_be_guessed_starts_nothing(pepper: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_settings(settings(key_pepper=pepper or None), 2)
    assert "METERHOUSE_KEY_PEPPER" in str(caught.value)
    for secret in filter(None, (item.partition(":")[2] for item in pepper.split(","))):
        assert len(secret) < 8 or secret not in str(caught.value), "an error is read by more people than a setting"


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("name", ["database_url", "migration_database_url", "redis_url"])
def test_a_store_with_a_password_that_is_tried_first_starts_nothing(name: str, password: str) -> None:
    url = f"redis://:{password}@r.example/0" if name == "redis_url" else DATABASE.format(password)
    found = settings().model_copy(update={name: SecretStr(url)})
    with pytest.raises(SettingsError) as caught:
        check_settings(found, 2)
    assert f"METERHOUSE_{name.upper()}" in str(caught.value)
    assert password not in str(caught.value).replace("its password", "")


def test_what_was_made_by_chance_is_good() -> None:
    check_settings(settings(), 2)
    assert not is_guessable_key("ZEd99zJbKXBLYPeotODOEqkUvmW66DfxTq0bxMuPgia")
    for _ in range(2_000):
        assert not is_guessable_key(random_base62(43))
        assert not is_guessable_password(random_base62(24), "meterhouse")
        assert not is_guessable_key(token_hex(24))
    assert parse_peppers(GOOD, "here") == {1: GOOD[2:].encode()}


def test_no_pepper_is_no_pepper() -> None:
    for weak in ({}, {1: b""}, {1: b"x" * 31}):
        with pytest.raises(ValueError, match="pepper"):
            Peppers(weak)

"""A pepper is replaced while keys go on working: known everywhere first, then used, then the old one is taken out."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from api.asking import Tenant
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from meterhouse.errors import StoreDown
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import find_pepper_version

OLD, NEW = "1:old-pepper-0f3a9c51b7e2d8846ac19d27", "2:new-pepper-7d20e6b94c1fa3580be95c41"


def started(folder: Path, up: FakeUpstream, pepper: str, version: str = "", **more: str) -> Gateway:
    settings = {"METERHOUSE_KEY_PEPPER": pepper, "METERHOUSE_KEY_PEPPER_VERSION": version, **more}
    return Gateway(folder / "data", provider_environment("fake", up.base_url, **settings))


def versions(gateway: Gateway) -> dict[str, int]:
    """Flush, and return the version of each key's hash."""
    gateway.run(gateway.parts.stores.rehasher.flush)
    keys = gateway.run(gateway.parts.stores.catalog.keys.list_keys)
    return {key.id: key.pepper_version for key in keys}


def test_keys_go_on_working_while_a_pepper_is_replaced(up: FakeUpstream, tmp_path: Path) -> None:
    with started(tmp_path, up, OLD) as gateway:
        used, unused = Tenant(gateway), Tenant(gateway)
        admin_key = gateway.admin_key
    # First every host learns the new one, and nobody uses it.
    with started(tmp_path, up, f"{OLD},{NEW}", "1") as gateway:
        assert gateway.chat("fake/normal", key=used.key)[0] == 200
        made = Tenant(gateway)
        found = versions(gateway)
        assert (found[used.key_id], found[made.key_id]) == (1, 1)
    # Then it is used: what is used is hashed anew.
    with started(tmp_path, up, f"{OLD},{NEW}") as gateway:
        assert gateway.chat("fake/normal", key=used.key)[0] == 200
        assert gateway.request("GET", "/admin/keys", key=admin_key)[0] == 200
        found = versions(gateway)
        assert (found[used.key_id], found[unused.key_id]) == (2, 1)
        assert gateway.chat("fake/normal", key=used.key)[0] == 200
        # One that is not used is rotated by its tenant.
        status, _, body = gateway.request("POST", f"/admin/keys/{unused.key_id}/rotate", {}, key=admin_key)
        assert status == 201, body
        successor = Tenant.decode(body)["value"]
    # At last the old one is taken out.
    with started(tmp_path, up, NEW) as gateway:
        assert gateway.admin_key == admin_key
        answers = [gateway.chat("fake/normal", key=key)[0] for key in (used.key, successor, unused.key)]
    assert answers == [200, 200, 401]


def test_a_wrong_secret_is_never_hashed(up: FakeUpstream, tmp_path: Path) -> None:
    with started(tmp_path, up, OLD) as gateway:
        tenant = Tenant(gateway)
        gateway.request("DELETE", f"/admin/keys/{tenant.key_id}", key=gateway.admin_key)
        other = Tenant(gateway)
    with started(tmp_path, up, f"{OLD},{NEW}") as gateway:
        assert gateway.chat("fake/normal", key=tenant.key)[0] == 401
        assert gateway.chat("fake/normal", key=other.key[:-8] + "AAAAAAAA")[0] == 401
        found = versions(gateway)
    assert (found[tenant.key_id], found[other.key_id]) == (1, 1)


def test_hashes_wait_while_the_database_is_away(up: FakeUpstream, tmp_path: Path) -> None:
    with started(tmp_path, up, OLD) as gateway:
        tenant = Tenant(gateway)
    with started(tmp_path, up, f"{OLD},{NEW}", METERHOUSE_BUSY_TIMEOUT_SECONDS="0.5") as gateway:
        assert gateway.chat("fake/normal", key=tenant.key)[0] == 200
        rehasher = gateway.parts.stores.rehasher
        with closing(sqlite3.connect(gateway.data / "ledger.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreDown):
                gateway.run(rehasher.flush)
            connection.execute("ROLLBACK")
        assert versions(gateway)[tenant.key_id] == 2


def test_a_version_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="METERHOUSE_KEY_PEPPER_VERSION"):
        find_pepper_version(Settings(key_pepper_version=2), {1: b"o" * 40})

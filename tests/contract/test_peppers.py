"""Keys are hashed anew under a newer pepper, and what still needs an older one is counted."""

from dataclasses import replace

from contract.test_catalog import ADMIN_KEY, KEY, NOW_MS, filled
from meterhouse.db.peppers import NewHash, PepperStore
from meterhouse.db.supply import StoredProvider, SupplyStore

NEWER = NewHash("key_1", is_admin=False, version=2, hash="2" * 64)


async def test_a_newer_hash_takes_the_place_of_an_older_one_and_never_of_a_newer(engine):
    catalog, store = await filled(engine), PepperStore(engine)
    await catalog.keys.insert_key(KEY)
    await catalog.keys.insert_admin_key(ADMIN_KEY)
    admin = NewHash("key_a", is_admin=True, version=2, hash="a" * 64)
    assert await store.rehash([NEWER, admin, replace(NEWER, key_id="key_gone")]) == 2
    found = await catalog.keys.find_key("key_1")
    assert (found.pepper_version, found.hash) == (2, "2" * 64)
    assert replace(found, pepper_version=1, hash=KEY.hash) == KEY
    assert (await catalog.keys.find_admin_key("key_a")).hash == "a" * 64
    assert await store.rehash([replace(NEWER, hash="3" * 64)]) == 0
    assert (await catalog.keys.find_key("key_1")).hash == "2" * 64


async def test_what_needs_each_version_is_counted_while_it_is_good(engine):
    catalog, store = await filled(engine), PepperStore(engine)
    await catalog.keys.insert_key(KEY)
    await catalog.keys.insert_key(replace(KEY, id="key_2", root_key_id="key_2", pepper_version=2, expires_at_ms=None))
    await catalog.keys.insert_admin_key(ADMIN_KEY)
    await SupplyStore(engine).put_provider(lambda _: StoredProvider("openai", {}, (3).to_bytes(4, "big") + b"sealed"))
    use = await store.count_use(NOW_MS)
    assert (use.keys, use.credentials) == ({1: 2, 2: 1}, {3: 1})
    await catalog.keys.revoke_admin_key("key_a", NOW_MS)
    assert (await store.count_use(NOW_MS + 1)).keys == {2: 1}

"""Providers and routes that operators set, in both databases."""

import asyncio

import pytest

from meterhouse.db.supply import StoredProvider, StoredRoute, SupplyStore

FIELDS = {"kind": "openai", "base_url": None, "models": ["a", "b=c"], "shows_all_output": True}
TARGETS = [{"provider": "openai", "upstream_model": "gpt-4o", "order": 0, "weight": 3}]


@pytest.fixture
def store(engine):
    return SupplyStore(engine)


async def test_a_provider_comes_back_as_written_and_is_replaced(store):
    written = await store.put_provider(lambda _: StoredProvider("b", FIELDS, b"\x00\xffsealed"))
    assert written.updated_at_ms > 0
    await store.put_provider(lambda _: StoredProvider("a", {}))
    assert [row.name for row in await store.list_providers()] == ["a", "b"]
    assert (await store.list_providers())[1] == written
    assert "sealed'" not in repr(written)
    again = await store.put_provider(lambda _: StoredProvider("b", {"kind": "groq"}))
    assert (await store.list_providers())[1] == again
    assert again.sealed_credential is None
    assert await store.remove_provider("b")
    assert not await store.remove_provider("b")
    assert [row.name for row in await store.list_providers()] == ["a"]


async def test_a_route_comes_back_as_written_and_is_replaced(store):
    written = await store.put_route(StoredRoute("my/model", TARGETS))
    assert await store.list_routes() == [written]
    again = await store.put_route(StoredRoute("my/model", TARGETS * 2))
    assert await store.list_routes() == [again]
    assert await store.remove_route("my/model")
    assert not await store.remove_route("my/model")
    assert await store.list_routes() == []


async def test_a_change_that_keeps_a_credential_keeps_the_newest(store):
    """Many at once: each adds its own letter to what it finds, so one that is lost shows."""

    def add(letter: str):
        def change(known):
            found = known["a"].sealed_credential if "a" in known else b""
            return StoredProvider("a", {}, found + letter.encode())

        return store.put_provider(change)

    await asyncio.gather(*(add(letter) for letter in "abcdef"))
    (row,) = await store.list_providers()
    assert sorted(row.sealed_credential.decode()) == list("abcdef")


async def test_a_change_that_is_refused_writes_nothing(store):
    def refuse(known):
        raise LookupError(len(known))

    with pytest.raises(LookupError):
        await store.put_provider(refuse)
    assert await store.list_providers() == []
    await store.put_provider(lambda _: StoredProvider("a", {}))

import asyncio
import sqlite3
from contextlib import closing

import pytest

from fakes.house import bearer, opened_house
from meterhouse.errors import Conflict, InvalidKey, NotPermitted, StoreDown
from meterhouse.identity import Actor, ActorKind, KeyScope, Role
from meterhouse.keys.keyring import MAX_UNKNOWN, Keyring
from meterhouse.keys.secret import Peppers, _checksum, make
from meterhouse.metering import Kind, Limit, Scope, Window


@pytest.fixture
async def house(tmp_path):
    async with opened_house(tmp_path) as house:
        yield house


async def detail_of(call, kind=InvalidKey):
    with pytest.raises(kind) as caught:
        await call
    return caught.value.detail


# --- who it is


async def test_a_good_key_is_a_principal(house):
    rate = Limit(Scope.KEY, "", Kind.REQUESTS, Window.MINUTE, 5)
    budget = Limit(Scope.ORGANIZATION, house.organization.id, Kind.SPEND, Window.MONTH, 10**9)
    await house.elsewhere.set_limits(Scope.ORGANIZATION, house.organization.id, [budget])
    issued = await house.issue(limits=(rate,), models=frozenset({"gpt"}), expires_in_seconds=60)
    principal = await house.verify(issued)
    assert (principal.organization_id, principal.project_id) == (house.organization.id, house.project.id)
    assert principal.key_id == principal.root_key_id == issued.key.id
    assert principal.limits == (Limit(Scope.KEY, issued.key.id, Kind.REQUESTS, Window.MINUTE, 5), budget)
    assert (principal.models, principal.scopes) == (frozenset({"gpt"}), frozenset(KeyScope))
    assert principal.expires_at_ms == house.clock.now_ms() + 60_000
    assert principal.has_budget


@pytest.mark.parametrize("header", ["bearer {}", "BEARER  {} ", "Bearer\t{}"])
async def test_how_the_header_may_be_written(house, header):
    issued = await house.issue()
    call = house.keyring.verify(header.format(issued.value), None)
    if "\t" in header:
        assert await detail_of(call) == "no bearer key in the header"
    else:
        assert (await call).key_id == issued.key.id


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "sk-mh-live-x"])
async def test_without_a_key_the_text_says_which_header_to_send(house, header):
    for call in (house.keyring.verify(header, None), house.keyring.verify_admin(header)):
        with pytest.raises(InvalidKey, match="Authorization: Bearer"):
            await call


async def test_every_reason_for_an_invalid_key_reads_the_same_outside(house):
    revoked, expired, good = await house.issue(), await house.issue(expires_in_seconds=1), await house.issue()
    await house.elsewhere.revoke(revoked.key.id)
    house.clock.move(1_000)
    other_secret = good.value[:-38] + make("live").value[-38:]
    forged = Peppers({1: b"q" * 32})
    stolen = Keyring(house.catalog.keys, forged, house.clock)
    details, messages = set(), set()
    for keyring, value in (
        (house.keyring, revoked.value),
        (house.keyring, expired.value),
        (house.keyring, good.value[:-1]),
        (house.keyring, other_secret),
        (house.keyring, make("live").value),
        (stolen, good.value),
    ):
        with pytest.raises(InvalidKey) as caught:
            await keyring.verify(f"Bearer {value}", "192.0.2.7")
        messages.add(caught.value.message)
        details.add(caught.value.detail.removeprefix(good.key.id).removeprefix(revoked.key.id))
    assert len(messages) == 1
    assert " is revoked" in details
    assert not any(good.value[-38:-30] in text for text in details | messages)


async def test_another_secret_under_a_known_id_opens_nothing(house):
    """Both texts have a right checksum, so only the hash tells them apart."""
    good = await house.issue()
    body = good.value[:-38] + "A" * 32
    assert await detail_of(house.keyring.verify(f"Bearer {body}{_checksum(body)}", None)) == (
        f"{good.key.id} has another secret"
    )


async def test_a_header_that_was_good_is_known_again_and_no_other_is(house):
    issued, neighbour = await house.issue(), await house.issue()
    await house.verify(issued)
    await house.verify(issued)
    assert house.keyring.hits == 1
    body = issued.value[:-38] + "A" * 32
    for value, why in (
        (body + _checksum(body), f"{issued.key.id} has another secret"),
        (issued.value[:-1] + "!", "not in the format of a key, or a typo"),
        (issued.value[:-38] + neighbour.value[-38:], "not in the format of a key, or a typo"),
        ("x" * 300 + issued.value, "not in the format of a key, or a typo"),
    ):
        assert await detail_of(house.keyring.verify(f"Bearer {value}", None)) == why
    assert "no bearer" in await detail_of(house.keyring.verify(f"Basic {issued.value}", None))
    assert (await house.verify(issued)).key_id == issued.key.id


async def test_a_header_that_is_known_again_still_expires_and_is_still_asked_from_where_it_comes(house):
    expiring, bound = await house.issue(expires_in_seconds=1), await house.issue(ip_ranges=("192.0.2.0/24",))
    for _ in range(2):
        await house.verify(expiring)
        await house.verify(bound, "192.0.2.7")
    assert await detail_of(house.verify(bound, "198.51.100.1"), NotPermitted) == f"{bound.key.id} from 198.51.100.1"
    house.clock.move(1_000)
    assert await detail_of(house.verify(expiring)) == f"{expiring.key.id} has expired"


async def test_nothing_of_a_key_is_kept_beside_its_mark(house):
    issued = await house.issue()
    for _ in range(2):
        await house.verify(issued)
    assert issued.value[-38:] not in repr(vars(house.keyring))
    assert issued.value[-38:].encode() not in b"".join(entry.mark for entry in house.keyring._entries.values())


async def test_the_keys_of_an_archived_project_are_refused_at_once(house):
    issued = await house.issue()
    await house.verify(issued)
    await house.service.archive_project(house.project.id)
    assert "archived" in await detail_of(house.verify(issued))
    with pytest.raises(Conflict, match="archived"):
        await house.issue()


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("198.51.100.1", False),
        ("::ffff:198.51.100.1", False),
        ("2001:db9::1", False),
        ("nonsense", False),
        (None, False),
    ],
)
async def test_a_key_with_ip_ranges_works_from_there_only(house, address, is_allowed):
    issued = await house.issue(ip_ranges=("192.0.2.0/24", "2001:db8::/32"))
    if is_allowed:
        await house.verify(issued, address)
    else:
        assert await detail_of(house.verify(issued, address), NotPermitted) == f"{issued.key.id} from {address}"


@pytest.mark.parametrize(
    ("written", "address", "is_allowed"),
    [
        ("::ffff:192.0.2.0/120", "192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "192.0.3.7", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:0.0.0.0/96", "198.51.100.1", True),
        ("::ffff:0.0.0.0/96", "2001:db8::1", False),
        ("::/0", "2001:db8::1", True),
        ("::/0", "192.0.2.7", False),
    ],
)
async def test_a_range_of_ipv4_may_be_written_in_the_form_of_ipv6(house, written, address, is_allowed):
    issued = await house.issue(ip_ranges=(written,))
    if is_allowed:
        await house.verify(issued, address)
    else:
        await detail_of(house.verify(issued, address), NotPermitted)


async def test_a_key_without_ip_ranges_works_from_anywhere(house):
    issued = await house.issue()
    for address in (None, "198.51.100.1", "unix"):
        await house.verify(issued, address)


async def test_a_key_does_what_its_scopes_say(house):
    issued = await house.issue(scopes=frozenset({KeyScope.USAGE}))
    await house.verify(issued, scope=KeyScope.USAGE)
    with pytest.raises(NotPermitted, match="scope 'inference'"):
        await house.verify(issued)


# --- operators


async def test_an_operator_is_known_by_an_admin_key(house):
    issued = await house.service.issue_admin("root")
    assert issued.value.startswith("sk-mh-admin-")
    assert await house.keyring.verify_admin(bearer(issued)) == Actor(ActorKind.ADMIN_KEY, issued.key.id, Role.OPERATOR)
    await house.elsewhere.revoke_admin(issued.key.id)
    assert "revoked" in await detail_of(house.keyring.verify_admin(bearer(issued)))


async def test_an_admin_key_may_expire(house):
    issued = await house.service.issue_admin("root", expires_in_seconds=1)
    house.clock.move(1_000)
    assert "expired" in await detail_of(house.keyring.verify_admin(bearer(issued)))


async def test_an_unknown_admin_key_opens_nothing(house):
    assert "unknown" in await detail_of(house.keyring.verify_admin(f"Bearer {make('admin').value}"))


async def test_keys_of_one_kind_do_not_do_the_others_work(house):
    tenant, admin = await house.issue(), await house.service.issue_admin("root")
    with pytest.raises(NotPermitted, match="project's key"):
        await house.verify(admin)
    with pytest.raises(NotPermitted, match="admin key"):
        await house.keyring.verify_admin(bearer(tenant))


async def test_without_a_database_there_is_no_administration(house):
    issued = await house.service.issue_admin("root")
    async with house.away():
        with pytest.raises(StoreDown):
            await house.keyring.verify_admin(bearer(issued))


# --- how fresh


async def test_a_warm_key_is_verified_without_any_io(house):
    issued = await house.issue()
    await house.verify(issued)
    house.clock.move(9_999)
    call = house.verify(issued)
    with pytest.raises(StopIteration) as returned:
        call.send(None)
    assert returned.value.value.key_id == issued.key.id


async def test_a_revocation_elsewhere_counts_after_ten_seconds(house):
    issued = await house.issue()
    await house.verify(issued)
    await house.elsewhere.revoke(issued.key.id)
    house.clock.move(9_999)
    await house.verify(issued)
    assert await house.keyring.find_live(issued.key.id)
    house.clock.move(1)
    assert not await house.keyring.find_live(issued.key.id)
    assert "revoked" in await detail_of(house.verify(issued))


async def test_a_revocation_here_counts_at_once(house):
    issued = await house.issue()
    await house.verify(issued)
    revoked = await house.service.revoke(issued.key.id)
    assert revoked.revoked_at_ms == house.clock.now_ms()
    assert "revoked" in await detail_of(house.verify(issued))
    assert not await house.keyring.find_live(issued.key.id)


async def test_an_expiry_counts_to_the_millisecond_even_when_warm(house):
    issued = await house.issue(expires_in_seconds=5)
    await house.verify(issued)
    house.clock.move(4_999)
    await house.verify(issued)
    house.clock.move(1)
    assert "expired" in await detail_of(house.verify(issued))
    assert not await house.keyring.find_live(issued.key.id)


async def test_changed_limits_count_at_once_for_every_key_they_bind(house):
    first, second = await house.issue(), await house.issue()
    for issued in (first, second):
        assert (await house.verify(issued)).limits == ()
    limit = Limit(Scope.PROJECT, house.project.id, Kind.CONCURRENT, Window.NONE, 3)
    assert await house.service.set_limits(Scope.PROJECT, house.project.id, [limit]) == [limit]
    for issued in (first, second):
        assert (await house.verify(issued)).limits == (limit,)


async def test_a_clock_that_was_set_back_does_not_keep_a_key_fresh(house):
    issued = await house.issue()
    await house.verify(issued)
    await house.elsewhere.revoke(issued.key.id)
    house.clock.move(-3_600_000)
    assert "revoked" in await detail_of(house.verify(issued))


async def test_an_unknown_id_is_remembered_for_thirty_seconds_unless_it_is_issued_here(house):
    issued = await house.issue()
    key = await house.service.get(issued.key.id)
    with closing(sqlite3.connect(house.path)) as file, file:
        file.execute("DELETE FROM key")
    assert "unknown" in await detail_of(house.verify(issued))
    await house.catalog.keys.insert_key(key)
    house.clock.move(29_999)
    assert "unknown" in await detail_of(house.verify(issued))
    house.clock.move(1)
    await house.verify(issued)


async def test_what_is_unknown_is_forgotten_on_invalidation(house):
    issued = await house.issue()
    key = await house.service.get(issued.key.id)
    with closing(sqlite3.connect(house.path)) as file, file:
        file.execute("DELETE FROM key")
    assert not await house.keyring.find_live(issued.key.id)
    await house.catalog.keys.insert_key(key)
    house.keyring.invalidate(issued.key.id)
    assert await house.keyring.find_live(issued.key.id)


async def test_the_caches_are_bounded(house):
    keyring = house.new_keyring(max_keys=2)
    first, second, third = [await house.issue() for _ in range(3)]
    for issued in (first, second, first, third):
        await keyring.verify(bearer(issued), None)
    assert list(keyring._entries) == [first.key.id, third.key.id]
    for i in range(MAX_UNKNOWN + 5):
        keyring._remember(f"key_{i}", None, 0)
    assert len(keyring._unknown_until_ms) == MAX_UNKNOWN
    assert "key_4" not in keyring._unknown_until_ms


async def test_many_waiters_share_one_read_and_one_leaving_stops_nobody(house):
    issued = await house.issue()
    waiters = [asyncio.create_task(house.verify(issued)) for _ in range(50)]
    await asyncio.sleep(0)
    assert len(house.keyring._running) == 1
    waiters[0].cancel()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {principal.key_id for principal in results[1:]} == {issued.key.id}
    assert not house.keyring._running
    assert not house.keyring._reads


async def test_a_read_that_began_before_a_revocation_is_not_remembered(house):
    issued = await house.issue()
    reading = asyncio.create_task(house.verify(issued))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert house.keyring._running
    house.keyring.invalidate(issued.key.id)
    await reading
    assert not house.keyring._entries
    other = asyncio.create_task(house.verify(issued))
    await asyncio.sleep(0)
    house.keyring.invalidate_scope(Scope.PROJECT, house.project.id)
    await other
    assert not house.keyring._entries


# --- when the database is away


async def test_a_known_key_works_for_300_seconds_without_a_database(house):
    issued = await house.issue()
    await house.verify(issued)
    async with house.away():
        house.clock.move(299_999)
        assert (await house.verify(issued)).key_id == issued.key.id
        assert await house.keyring.find_live(issued.key.id)
        house.clock.move(1)
        for call in (house.verify(issued), house.keyring.find_live(issued.key.id)):
            with pytest.raises(StoreDown):
                await call
    house.clock.move(1_000)
    await house.verify(issued)


async def test_an_unknown_key_without_a_database_is_store_down_not_invalid(house):
    issued = await house.issue()
    async with house.away():
        for value in (issued.value, make("live").value):
            with pytest.raises(StoreDown):
                await house.keyring.verify(f"Bearer {value}", None)
        assert await detail_of(house.keyring.verify(f"Bearer {issued.value[:-1]}", None)) == (
            "not in the format of a key, or a typo"
        )
    house.clock.move(1_000)
    await house.verify(issued)


async def test_a_database_that_is_away_is_asked_once_a_second(house):
    issued = await house.issue()
    async with house.away():
        assert "unable to open" in await detail_of(house.verify(issued), StoreDown)
        assert "a moment ago" in await detail_of(house.verify(issued), StoreDown)
        house.clock.move(1_000)
        assert "unable to open" in await detail_of(house.verify(issued), StoreDown)


async def test_a_stale_key_that_is_revoked_or_wrong_stays_refused_without_a_database(house):
    revoked, expiring = await house.issue(), await house.issue(expires_in_seconds=60)
    await house.elsewhere.revoke(revoked.key.id)
    await detail_of(house.verify(revoked))
    await house.verify(expiring)
    async with house.away():
        house.clock.move(60_000)
        assert "revoked" in await detail_of(house.verify(revoked))
        assert "expired" in await detail_of(house.verify(expiring))


async def test_a_revoked_key_is_not_served_stale(house):
    issued = await house.issue()
    await house.verify(issued)
    await house.service.revoke(issued.key.id)
    async with house.away():
        with pytest.raises(StoreDown):
            await house.verify(issued)


# --- last use


async def test_the_last_use_is_written_when_flushed_and_survives_a_database_that_was_away(house):
    used, unused, admin = await house.issue(), await house.issue(), await house.service.issue_admin("root")
    await house.verify(used)
    await house.keyring.verify_admin(bearer(admin))
    at_ms = house.clock.now_ms()
    async with house.away():
        with pytest.raises(StoreDown):
            await house.keyring.flush_last_used()
    await house.keyring.flush_last_used()
    house.clock.move(1)
    await house.keyring.flush_last_used()
    assert (await house.service.get(used.key.id)).last_used_at_ms == at_ms
    assert (await house.service.get(unused.key.id)).last_used_at_ms is None
    assert [key.last_used_at_ms for key in await house.service.list_admin_keys()] == [at_ms]

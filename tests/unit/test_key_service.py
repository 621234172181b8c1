import pytest

from fakes.house import PEPPERS, opened_house
from meterhouse.errors import Conflict, InvalidKey, Malformed, NotFound
from meterhouse.keys.accounts import AccountOrder
from meterhouse.keys.issuing import MAX_OVERLAP_SECONDS
from meterhouse.keys.service import KeyService
from meterhouse.metering import Kind, Limit, Scope, Window


@pytest.fixture
async def house(tmp_path):
    async with opened_house(tmp_path) as house:
        yield house


async def test_a_key_is_shown_once_and_stored_as_a_hash(house):
    issued = await house.issue()
    secret = issued.value[-38:]
    await house.engine.dispose()
    stored = b"".join(file.read_bytes() for file in house.path.parent.iterdir())
    assert issued.key.id.encode() in stored
    assert secret.encode() not in stored
    assert secret not in repr(issued)
    assert await house.service.list_keys(house.project.id) == [issued.key]


async def test_a_rotated_key_works_for_the_overlap_and_both_count_as_one(house):
    limit = Limit(Scope.KEY, "", Kind.SPEND, Window.TOTAL, 5)
    old = await house.issue(limits=(limit,), models=frozenset({"gpt"}), ip_ranges=("192.0.2.9",))
    await house.verify(old, "192.0.2.9")
    new = await house.service.rotate(old.key.id, overlap_seconds=60)
    principals = [await house.verify(issued, "192.0.2.9") for issued in (old, new)]
    assert {principal.root_key_id for principal in principals} == {old.key.id}
    assert principals[0].limits == principals[1].limits != ()
    assert (new.key.models, new.key.ip_ranges, new.key.expires_at_ms) == (frozenset({"gpt"}), ("192.0.2.9/32",), None)
    house.clock.move(60_000)
    with pytest.raises(InvalidKey) as caught:
        await house.verify(old, "192.0.2.9")
    assert "expired" in caught.value.detail
    third = await house.service.rotate(new.key.id)
    assert third.key.root_key_id == old.key.id
    assert (await house.service.get(new.key.id)).expires_at_ms == house.clock.now_ms() + 86_400_000
    assert await house.service.set_limits(Scope.KEY, third.key.id, []) == []
    assert (await house.verify(third, "192.0.2.9")).limits == ()


async def test_a_key_names_a_living_service_account_of_its_project_or_a_label(house):
    elsewhere = await house.service.create_project(house.organization.id, "Elsewhere")
    deleted, _ = await house.service.create_account(AccountOrder("indexer", house.project.id), None)
    await house.service.delete_account(house.project.id, deleted.id)
    others, _ = await house.service.create_account(AccountOrder("indexer", elsewhere.id), None)
    for account_id in (deleted.id, others.id, "svcacct_none"):
        with pytest.raises(NotFound) as caught:
            await house.issue(service_account=account_id)
        assert caught.value.param == "service_account"
    assert await house.service.list_keys(house.project.id) == []
    living, _ = await house.service.create_account(AccountOrder("indexer", house.project.id), None)
    for name in (living.id, "indexer"):
        assert (await house.issue(service_account=name)).key.service_account == name


async def test_what_cannot_be_rotated(house):
    revoked, expired, archived = await house.issue(), await house.issue(expires_in_seconds=1), await house.issue()
    await house.service.revoke(revoked.key.id)
    house.clock.move(1_000)
    for issued in (revoked, expired):
        with pytest.raises(Conflict):
            await house.service.rotate(issued.key.id)
    for seconds in (-1, MAX_OVERLAP_SECONDS + 1):
        with pytest.raises(Malformed, match="overlap"):
            await house.service.rotate(archived.key.id, seconds)
    await house.service.archive_project(house.project.id)
    with pytest.raises(Conflict):
        await house.service.rotate(archived.key.id)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "  "}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"expires_in_seconds": 0}, "expires_in_seconds"),
        ({"expires_in_seconds": 10**12}, "expires_in_seconds"),
        ({"scopes": frozenset({"everything"})}, "scopes"),
        ({"scopes": frozenset()}, "scopes"),
        ({"models": frozenset()}, "models"),
        ({"models": frozenset(str(number) for number in range(257))}, "models"),
        ({"models": frozenset({"m" * 257})}, "models"),
        ({"ip_ranges": ("192.0.2.0/33",)}, "ip_ranges"),
        ({"ip_ranges": ("192.0.2.1",) * 65}, "ip_ranges"),
        ({"ip_ranges": ("fe80::1%" + "e" * 100,)}, "ip_ranges"),
        ({"service_account": "s" * 65}, "service_account"),
        ({"limits": (Limit(Scope.KEY, "", Kind.SPEND, Window.DAY, 1),) * 2}, "limits"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_by_name(house, change, param):
    with pytest.raises(Malformed) as caught:
        await house.issue(**change)
    assert caught.value.param == param
    assert await house.service.list_keys() == []


async def test_what_is_not_there_is_not_found(house):
    for call in (
        house.issue(project_id="proj_x"),
        house.service.get("key_x"),
        house.service.revoke("key_x"),
        house.service.rotate("key_x"),
        house.service.revoke_admin("key_x"),
        house.service.archive_project("proj_x"),
        house.service.create_project("org_x", "p"),
        house.service.set_limits(Scope.KEY, "key_x", []),
        house.service.list_limits(Scope.PROJECT, "proj_x"),
        house.service.list_limits(Scope.ORGANIZATION, "org_x"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_bad_names_and_roles_are_refused(house):
    for call in (
        house.service.create_organization(""),
        house.service.create_project(house.organization.id, ""),
        house.service.issue_admin(""),
        house.service.issue_admin("root", role="king"),
    ):
        with pytest.raises(Malformed):
            await call


async def test_an_ip_range_may_be_written_loosely(house):
    issued = await house.issue(ip_ranges=("192.0.2.77/24", "2001:db8::1"))
    assert issued.key.ip_ranges == ("192.0.2.0/24", "2001:db8::1/128")


async def test_tenants_keys_cannot_be_admin_keys(house):
    with pytest.raises(ValueError, match="admin"):
        KeyService(house.catalog, PEPPERS, house.clock, environment="admin")

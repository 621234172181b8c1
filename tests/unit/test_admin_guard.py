"""Which of two kinds of credential a header holds, and that a token of somebody else's making comes to its verifier."""

import pytest
import sqlalchemy as sa

from fakes.house import bearer, opened_house
from meterhouse.admin import limiter as limiting
from meterhouse.admin.guard import AdminGuard
from meterhouse.admin.limiter import AdminLimiter
from meterhouse.db.engine import writing
from meterhouse.errors import InvalidKey, NotPermitted, RateLimited
from meterhouse.identity import Actor, ActorKind, Role

TOKEN = "eyJh.eyJz.c2ln"
JWT_OWNER = Actor(ActorKind.JWT, "somebody@example.com", Role.OWNER, "org_1")


class Verifier:
    def __init__(self):
        self.asked = []

    async def actor_of(self, token):
        self.asked.append(token)
        return JWT_OWNER


@pytest.fixture
async def house(tmp_path):
    async with opened_house(tmp_path) as house:
        yield house


def guard_of(house, tokens=None):
    limiter = AdminLimiter("100/minute", "10/minute")
    return AdminGuard(house.keyring, limiter, house.catalog.organizations, lambda _: "req_1", tokens)


async def test_a_token_is_asked_of_its_verifier_and_a_key_is_not(house):
    verifier = Verifier()
    guard = guard_of(house, verifier)
    issued = await house.service.issue_admin("root")
    assert await guard.sign_in(f"Bearer {TOKEN}") == JWT_OWNER
    assert await guard.sign_in(bearer(issued)) == Actor(ActorKind.ADMIN_KEY, issued.key.id, Role.OPERATOR)
    assert verifier.asked == [TOKEN]


@pytest.mark.parametrize("header", [None, "", "Bearer a.b", f"Basic {TOKEN}", "Bearer a.b.c.d.e", "Bearer sk-mh-a.b.c"])
async def test_what_is_neither_opens_nothing_and_does_not_reach_the_verifier(house, header):
    verifier = Verifier()
    with pytest.raises(InvalidKey):
        await guard_of(house, verifier).sign_in(header)
    assert verifier.asked == []


async def test_without_a_verifier_a_token_opens_nothing(house):
    with pytest.raises(InvalidKey):
        await guard_of(house).sign_in(f"Bearer {TOKEN}")


async def test_a_key_from_before_organizations_were_bound_may_do_nothing(house):
    issued = await house.service.issue_admin("a reader", Role.READER, organization_id=house.organization.id)
    async with writing(house.engine) as connection:
        await connection.execute(sa.text("UPDATE admin_key SET organization_id = NULL"))
    with pytest.raises(NotPermitted, match="no organization"):
        await guard_of(house).sign_in(bearer(issued))


def test_an_ipv6_network_counts_as_one_address():
    limiter = AdminLimiter("3/minute", "1/minute")
    for number in range(3):
        limiter.admit(f"2001:db8:1:2::{number:x}")
    with pytest.raises(RateLimited):
        limiter.admit("2001:db8:1:2:ffff::1")
    limiter.admit("2001:db8:1:3::1")
    limiter.note_failure("2001:db8:1:3::2")
    with pytest.raises(RateLimited, match="failed sign-ins"):
        limiter.admit("2001:db8:1:3::1")
    limiter.admit("::ffff:198.51.100.7")
    limiter.admit("198.51.100.7")


def test_the_memory_of_addresses_is_bounded(monkeypatch):
    monkeypatch.setattr(limiting, "MOST_ADDRESSES", 10)
    limiter = AdminLimiter("300/minute", "1/minute")
    for number in range(50):
        limiter.admit(f"192.0.2.{number}")
        limiter.note_failure(f"192.0.2.{number}")
    assert len(limiter._local.storage.storage) == 2 * 10
    with pytest.raises(RateLimited):
        limiter.admit("192.0.2.49")
    limiter.admit("192.0.2.1")


@pytest.mark.parametrize(
    ("role", "organization_id"), [(Role.OPERATOR, "org_1"), (Role.OWNER, None), (Role.READER, None)]
)
def test_only_an_operator_is_bound_to_no_organization(role, organization_id):
    with pytest.raises(ValueError, match="bound"):
        Actor(ActorKind.JWT, "x", role, organization_id)

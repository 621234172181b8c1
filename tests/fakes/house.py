"""A catalog on a real file, with its keyring and the service that changes it: what tests of keys start from."""

from contextlib import asynccontextmanager

from fakes.store import MovingClock, opened_store, taken_away
from meterhouse.db.catalog import Catalog
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.secret import Peppers
from meterhouse.keys.service import KeyOrder, KeyService

PEPPERS = Peppers({1: b"p" * 32})


class House:
    """``service`` is this process; ``elsewhere`` is another one, which cannot invalidate this one's keyring."""

    def __init__(self, engine, path):
        self.engine = engine
        self.path = path
        self.clock = MovingClock()
        self.catalog = Catalog(engine)
        self.keyring = self.new_keyring()
        self.service = KeyService(self.catalog, PEPPERS, self.clock, environment="live", keyring=self.keyring)
        self.elsewhere = KeyService(self.catalog, PEPPERS, self.clock, environment="live")

    def new_keyring(self, **options):
        return Keyring(self.catalog.keys, PEPPERS, self.clock, **options)

    async def issue(self, **order):
        return await self.elsewhere.issue(KeyOrder(**({"name": "k", "project_id": self.project.id} | order)))

    async def verify(self, issued, address="192.0.2.7", **options):
        return await self.keyring.verify(bearer(issued), address, **options)

    def away(self):
        return taken_away(self.engine, self.path)


def bearer(issued):
    return f"Bearer {issued.value}"


@asynccontextmanager
async def opened_house(folder):
    """Give a house with an organization and a project."""
    path = folder / "keys.db"
    async with opened_store(path) as engine:
        house = House(engine, path)
        house.organization = await house.service.create_organization("Acme")
        house.project = await house.service.create_project(house.organization.id, "Search")
        yield house
        await house.keyring.close()

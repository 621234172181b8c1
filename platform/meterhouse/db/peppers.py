"""Which pepper hashed each key, in SQL, so that an old one can be taken out once nothing needs it.

Not here: hashing (``keys.secret``), and when a key is hashed anew (``keys.rehash``).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading, writing
from meterhouse.db.tables import admin_key, key, provider_setting

VERSION_BYTES = 4
"""A sealed credential begins with the version of its pepper (``providers.vault``)."""


@dataclass(frozen=True, slots=True)
class NewHash:
    """A key's hash under a newer pepper."""

    key_id: str
    is_admin: bool
    version: int
    hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PepperUse:
    """How many need each version: keys that are good, and sealed credentials of providers."""

    keys: dict[int, int]
    credentials: dict[int, int]


class PepperStore:
    """Reads and writes versions. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def rehash(self, hashes: Sequence[NewHash]) -> int:
        """Put new hashes in place of older ones, never of newer; returns how many were."""
        changed = 0
        async with writing(self._engine) as connection:
            for new in sorted(hashes, key=lambda each: each.key_id):
                table = admin_key if new.is_admin else key
                is_older = sa.and_(table.c.id == new.key_id, table.c.pepper_version < new.version)
                values = {"pepper_version": new.version, "hash": new.hash}
                changed += (await connection.execute(sa.update(table).where(is_older).values(values))).rowcount
        return changed

    async def count_use(self, now_ms: int) -> PepperUse:
        """Count what needs each version at a time."""
        keys: Counter[int] = Counter()
        credentials: Counter[int] = Counter()
        async with reading(self._engine) as connection:
            for table in (key, admin_key):
                is_good = sa.and_(
                    table.c.revoked_at_ms.is_(None),
                    sa.or_(table.c.expires_at_ms.is_(None), table.c.expires_at_ms > now_ms),
                )
                counts = sa.select(table.c.pepper_version, sa.func.count()).where(is_good)
                for version, count in await connection.execute(counts.group_by(table.c.pepper_version)):
                    keys[version] += count
            sealed = sa.select(provider_setting.c.sealed_credential).where(
                provider_setting.c.sealed_credential.is_not(None)
            )
            for credential in (await connection.execute(sealed)).scalars():
                credentials[int.from_bytes(credential[:VERSION_BYTES], "big")] += 1
        return PepperUse(dict(keys), dict(credentials))

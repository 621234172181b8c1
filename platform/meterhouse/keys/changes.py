"""What every change of the catalog has in common: one transaction with its audit event, then everybody is told.

Invariant: a change is made in SQL first, or not at all; then the mirror is marked, so that nothing older serves while
SQL is away; then every process is told, this one at once. A mark that cannot be written is tried again by the mirror.
Not here: a change itself, and who may make it.
"""

from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Self

from meterhouse.db.catalog import Catalog
from meterhouse.errors import Malformed
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.reader import Mirror
from meterhouse.keys.secret import ADMIN_ENVIRONMENT, Peppers
from meterhouse.metering import Clock, Scope

DAY_SECONDS = 86_400
MAX_NAME_LENGTH = 200
MAX_EXPIRY_SECONDS = 100 * 365 * DAY_SECONDS
NOTICE = "key"
"""The kind of the notices that are published; ``Keyring.hear`` takes in what they say."""

Publish = Callable[[str, Mapping[str, str]], Awaitable[object]]
"""Tells every process of something: its kind, and what it says. Does not raise: who misses it learns of it later."""


@dataclass(frozen=True, slots=True)
class Others:
    """How other processes learn of a change; without these, only by reading SQL again."""

    mirror: Mirror | None = None
    publish: Publish | None = None


class Changes:
    """The stores, and how a change of them is told."""

    def __init__(
        self,
        catalog: Catalog,
        peppers: Peppers,
        clock: Clock,
        *,
        environment: str,
        keyring: Keyring | None = None,
        others: Others | None = None,
    ) -> None:
        """Take the stores, and the environment that tenants' keys carry in their text (``dev``, ``live``).

        Raises:
            ValueError: the environment is ``admin``.
        """
        if environment == ADMIN_ENVIRONMENT:
            raise ValueError("the environment of tenants' keys cannot be 'admin'")
        self._catalog = catalog
        self._peppers = peppers
        self._clock = clock
        self._environment = environment
        self._keyring = keyring
        self._others = others or Others()
        self.on_organization: list[Callable[[str], Awaitable[None]]] = []
        """Called with the id of each organization that was made here."""

    def within(self, catalog: Catalog) -> Self:
        """Return the same inside of a transaction (``Catalog.changing``): several changes at once, or none."""
        inside = copy(self)
        inside._catalog = catalog  # noqa: SLF001 - a copy of itself
        return inside

    async def note_limits_changed(self, scope: Scope, scope_id: str) -> None:
        """Have every key of an organization, a project or a chain of rotations read again before its next use."""
        await self._tell_owner(scope, scope_id)

    async def _tell_owner(self, scope: Scope, scope_id: str) -> None:
        """Tell every process that something changed that decides about an organization's, project's or chain's keys."""
        if self._others.mirror is not None:
            self._others.mirror.note_change(scope, scope_id, self._clock.now_ms())
        await self._tell({"scope": scope.value, "scope_id": scope_id})

    async def _tell(self, notice: Mapping[str, str]) -> None:
        if self._keyring is not None:
            self._keyring.hear(notice)
        if self._others.mirror is not None:
            await self._others.mirror.flush()
        if self._others.publish is not None:
            await self._others.publish(NOTICE, notice)


def check_name(name: str) -> None:
    """Raise Malformed for an empty or too long name."""
    if not name.strip() or len(name) > MAX_NAME_LENGTH:
        raise Malformed(f"A name has 1 to {MAX_NAME_LENGTH} characters.", param="name")


def check_expiry(expires_in_seconds: int | None) -> None:
    """Raise Malformed for an expiry that lies in the past or absurdly far ahead."""
    if expires_in_seconds is not None and not 0 < expires_in_seconds <= MAX_EXPIRY_SECONDS:
        raise Malformed("An expiry lies from one second to 100 years ahead.", param="expires_in_seconds")


def expiry_ms(now_ms: int, expires_in_seconds: int | None) -> int | None:
    """Return when something ends that lasts so long from now on; None: never."""
    return None if expires_in_seconds is None else now_ms + expires_in_seconds * 1_000

"""What a batch of journal entries says: to SQL, and to whoever ships the journal that they are from.

A worker and the clerk both read a batch with this, so that it does not matter whose hand writes it. Not here: who ships
when (``shipper``), and how a batch travels (``desk``).
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from meterhouse.ledger.reader import Entry
from meterhouse.ledger.record import Opening, Shipping, Terminal, decode_for_shipping
from meterhouse.usage import UsageRecord

_SLICE_RECORDS = 64
"""How many entries are decoded before others get their turn on the event loop."""


class Summary(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """What a shipper has to know of a batch once SQL has it."""

    opened: list[tuple[str, int]]
    """Each request whose INTENT is in the batch and whose TERMINAL is not, with the position of its first INTENT."""
    settled: list[str]
    """Each request whose TERMINAL is in the batch; its first INTENT may stand in an earlier one."""
    nanos: int
    """The charges of all its records."""


class Contents:
    """The entries of one batch, decoded in their order; ``on_read`` is told of each with its position."""

    def __init__(self, on_read: Callable[[int, Shipping], None] | None = None) -> None:
        self._on_read = on_read
        self.count = 0
        """How many entries were read."""
        self.records: list[UsageRecord] = []
        self.nanos = 0
        self._opened: dict[str, int] = {}
        self._settled: set[str] = set()

    async def read(self, entries: Sequence[Entry], *, origin: str) -> None:
        """Decode what was not yet read of a batch that may have grown.

        Raises:
            UnreadableJournal: An entry is none of this version's; ``origin`` is named as where it comes from.
        """
        while self.count < len(entries):
            for position, data in entries[self.count : self.count + _SLICE_RECORDS]:
                self._add(position, data, origin)
                self.count += 1
            await asyncio.sleep(0)

    def summarize(self) -> Summary:
        """Say what a shipper has to know."""
        opened = [(name, position) for name, position in self._opened.items() if name not in self._settled]
        return Summary(opened, list(self._settled), self.nanos)

    def _add(self, position: int, data: bytes, origin: str) -> None:
        payload = decode_for_shipping(data, origin=origin)
        if self._on_read is not None:
            self._on_read(position, payload)
        if isinstance(payload, Terminal):
            records = payload.records
            self.records += records
            if records:
                self._settled.add(records[0].request_id)
            self.nanos += charged_nanos(payload)
        elif isinstance(payload, Opening):
            self._opened.setdefault(payload.request_id, position)


def charged_nanos(payload: Shipping) -> int:
    """Return what all attempts of a request were charged; 0 before its end."""
    return sum([record.charge_nanos for record in payload.records]) if isinstance(payload, Terminal) else 0

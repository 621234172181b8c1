"""When keys that are in use are read again: before their readings are outdated, many in one query.

A query costs this process much the same for one key as for fifty, and whoever waits for it waits. Not here: reading
(``keys.reader``), and what becomes of it (``keys.keyring``).
"""

from collections import OrderedDict
from collections.abc import Mapping

IN_USE_MS = 1_000
"""A key that was used so long after it was read is in use; the use that had it read does not count."""


class Readings:
    """When each key was read last, oldest first."""

    def __init__(self, fresh_ms: int) -> None:
        self._read_at_ms: OrderedDict[str, int] = OrderedDict()
        self.due_ms = fresh_ms * 3 // 4
        """A reading of this age is renewed when its key is used."""
        self._early_ms = fresh_ms // 2
        """One of this age is renewed with it, if its key was used since."""

    def note(self, key_id: str, read_at_ms: int) -> None:
        """Note that a key was read."""
        self._read_at_ms[key_id] = read_at_ms
        self._read_at_ms.move_to_end(key_id)

    def take_early(self, now_ms: int, used_at_ms: Mapping[str, int], most: int) -> list[str]:
        """Return keys to be read with one that is due; what is not in use is forgotten until it is read again."""
        early: list[str] = []
        while self._read_at_ms and len(early) < most:
            key_id, read_at_ms = next(iter(self._read_at_ms.items()))
            # What is from after now is from before the clock was set back.
            if 0 <= now_ms - read_at_ms < self._early_ms:
                break
            del self._read_at_ms[key_id]
            if used_at_ms.get(key_id, 0) - read_at_ms >= IN_USE_MS:
                early.append(key_id)
        return early

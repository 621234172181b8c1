"""Counts failed sign-ins per address, and slows down whoever guesses; and client tokens per key.

Who has failed too often is refused before anything is looked up, unless the key is one that this process knows to be
good, or a client token that was made here: so a client that keeps a revoked key cannot lock out its neighbours behind
one address. An expired client token is no guess and is not counted. When too many fail from anywhere, an address has
one guess. Each process counts for itself, in a bounded memory. Not here: administration,
whose limiter counts every request (``admin.guard``).
"""

import math
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

from limits import parse

from meterhouse.errors import RateLimited
from meterhouse.metering import Clock

MOST_ADDRESSES = MOST_KEYS = 20_000
"""Of the most, the one that came first is forgotten."""
ALL_FACTOR = 50
"""So many times the rate of one address may fail in all before each has a single guess."""
IPV6_NETWORK_BITS = 64

_ALL = "all"
_MESSAGE = "Too many API keys from this address were not valid. Check the key; try again in {seconds} seconds."


class _Counts:
    """How often something happened under each name in its running window; of too many names the first is forgotten."""

    def __init__(self, rate: str, most_names: int, clock: Clock) -> None:
        item = parse(rate)
        self.most = item.amount
        self._window_ms = item.get_expiry() * 1000
        self._most_names = most_names
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """By name: when its window began, and how often it happened since."""

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, name: str) -> int:
        """Return how often it happened in the running window."""
        began_ms, count = self._counts.get(name, (0, 0))
        return count if self._is_running(began_ms) else 0

    def add(self, name: str) -> None:
        """Count one."""
        began_ms, count = self._counts.get(name, (0, 0))
        if not self._is_running(began_ms):
            began_ms, count = self._clock.now_ms(), 0
            self._counts.pop(name, None)
        self._counts[name] = began_ms, count + 1
        if len(self._counts) > self._most_names:
            self._counts.popitem(last=False)

    def wait_seconds(self, name: str) -> int:
        """Return how long its window still runs, and at least a second."""
        began_ms, _ = self._counts.get(name, (0, 0))
        return max(1, math.ceil((began_ms + self._window_ms - self._clock.now_ms()) / 1000))

    def _is_running(self, began_ms: int) -> bool:
        return 0 <= self._clock.now_ms() - began_ms < self._window_ms


class SignInThrottle:
    """The failures of the running window. One per process, used from its event loop only."""

    def __init__(self, rate: str, clock: Clock) -> None:
        """Take a rate as slowapi writes it (``20/minute``).

        Raises:
            ValueError: It is none.
        """
        self._failures = _Counts(rate, MOST_ADDRESSES, clock)
        self._in_all = _Counts(rate, 1, clock)
        self.refused = 0
        """Requests that were refused unread, since the start."""

    def is_closed(self, address: str | None) -> bool:
        """Whether this address has failed too often."""
        if not self._failures:
            return False
        most = self._failures.most
        is_storm = self._in_all.of(_ALL) >= most * ALL_FACTOR
        return self._failures.of(network_of(address)) >= (1 if is_storm else most)

    def note(self, address: str | None) -> None:
        """Count a failure."""
        self._failures.add(network_of(address))
        self._in_all.add(_ALL)

    def refuse(self, address: str | None) -> RateLimited:
        """Return the refusal of an address that is closed. An SDK shall not repeat it: the key will not get better."""
        self.refused += 1
        seconds = self._failures.wait_seconds(network_of(address))
        return RateLimited(_MESSAGE.format(seconds=seconds), retry_after_seconds=seconds, should_retry=False)


class KeyThrottle:
    """How often a key is given what costs others, its rotations counted as one key. One per process and purpose.

    A client token is a name of its own to the meter and the caches; a report reads many rows.
    """

    def __init__(self, rate: str, clock: Clock, given: str) -> None:
        """Take a rate as slowapi writes it, and in the plural what is given; raises ValueError when it is no rate."""
        self._made = _Counts(rate, MOST_KEYS, clock)
        self._given = given

    def admit(self, root_key_id: str) -> None:
        """Count one more.

        Raises:
            RateLimited: The key was given as many as it may have.
        """
        if self._made.of(root_key_id) >= self._made.most:
            seconds = self._made.wait_seconds(root_key_id)
            raise RateLimited(
                f"This key was given {self._made.most} {self._given} already. Use one for longer; "
                f"there are more in {seconds} seconds.",
                retry_after_seconds=seconds,
            )
        self._made.add(root_key_id)


def network_of(address: str | None) -> str:
    """Return what is counted together: an IPv4 address, an IPv6 network of 64 bits, or all that have none."""
    try:
        found = ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{int(found) >> IPV6_NETWORK_BITS:x}"

"""Counts failed sign-ins per address, and slows down whoever guesses.

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

MOST_ADDRESSES = 20_000
"""Of the most, the one that failed first is forgotten."""
ALL_FACTOR = 50
"""So many times the rate of one address may fail in all before each has a single guess."""
IPV6_NETWORK_BITS = 64

_MESSAGE = "Too many API keys from this address were not valid. Check the key; try again in {seconds} seconds."


class SignInThrottle:
    """The failures of the running window. One per process, used from its event loop only."""

    def __init__(self, rate: str, clock: Clock) -> None:
        """Take a rate as slowapi writes it (``20/minute``).

        Raises:
            ValueError: It is none.
        """
        item = parse(rate)
        self._most = item.amount
        self._window_ms = item.get_expiry() * 1000
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """By address: when its window began, and how often it failed since."""
        self._began_ms = 0
        self._in_all = 0
        self.refused = 0
        """Requests that were refused unread, since the start."""

    def is_closed(self, address: str | None) -> bool:
        """Whether this address has failed too often."""
        if not self._failures:
            return False
        now_ms = self._clock.now_ms()
        began_ms, count = self._failures.get(network_of(address), (0, 0))
        if not self._is_running(began_ms, now_ms):
            return False
        is_storm = self._is_running(self._began_ms, now_ms) and self._in_all >= self._most * ALL_FACTOR
        return count >= (1 if is_storm else self._most)

    def note(self, address: str | None) -> None:
        """Count a failure."""
        now_ms = self._clock.now_ms()
        network = network_of(address)
        began_ms, count = self._failures.get(network, (now_ms, 0))
        if not self._is_running(began_ms, now_ms):
            began_ms, count = now_ms, 0
            self._failures.pop(network, None)
        self._failures[network] = began_ms, count + 1
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        if not self._is_running(self._began_ms, now_ms):
            self._began_ms, self._in_all = now_ms, 0
        self._in_all += 1

    def refuse(self, address: str | None) -> RateLimited:
        """Return the refusal of an address that is closed. An SDK shall not repeat it: the key will not get better."""
        self.refused += 1
        began_ms, _ = self._failures.get(network_of(address), (0, 0))
        seconds = max(1, math.ceil((began_ms + self._window_ms - self._clock.now_ms()) / 1000))
        return RateLimited(_MESSAGE.format(seconds=seconds), retry_after_seconds=seconds, should_retry=False)

    def _is_running(self, began_ms: int, now_ms: int) -> bool:
        return 0 <= now_ms - began_ms < self._window_ms


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

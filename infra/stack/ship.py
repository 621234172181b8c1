"""Waits until a gateway has nothing under way and nothing unshipped.

``python ship.py SOCKET|HOST:PORT SECONDS [QUIET]``
For a host that is about to end, once no new requests are sent to it. Exits with 0 when all is shipped, with 1 when the
seconds are over before: then the journals are still on the disk. Needs nothing but the standard library.
"""

import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from health import WAIT_SECONDS, UnixConnection

POLL_SECONDS = 0.5
QUIET_SECONDS = 5.0
"""For so long nothing may be left: until then requests may come from who has not heard yet that this host ends. QUIET
is another time."""
WAITED_FOR = ("meterhouse_open_requests", "meterhouse_unshipped_records")


def read_left(place: str) -> float | None:
    """Return how much is under way or unshipped; None when the gateway does not say."""
    connection = UnixConnection(Path(place)) if "/" in place else HTTPConnection(place, timeout=WAIT_SECONDS)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
    found = [line.split() for line in text.splitlines() if line.startswith(WAITED_FOR)]
    return sum(float(value) for _, value in found) if len(found) == len(WAITED_FOR) else None


def wait_shipped(place: str, seconds: float, quiet_seconds: float = QUIET_SECONDS) -> bool:
    """Wait; returns whether nothing is left. One that does not answer may have something left."""
    deadline = time.monotonic() + seconds
    quiet_since = time.monotonic()
    while True:
        now = time.monotonic()
        left = read_left(place)
        if left != 0:
            quiet_since = now
        elif now - quiet_since >= quiet_seconds:
            return True
        if now >= deadline:
            return False
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(0 if wait_shipped(sys.argv[1], *map(float, sys.argv[2:])) else 1)

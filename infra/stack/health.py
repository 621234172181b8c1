"""Whether a gateway on a unix socket admits requests: ``python health.py SOCKET`` exits with 0 then, otherwise 1.

Also the health check of the image. Needs nothing but the standard library.
"""

import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from socket import AF_UNIX, socket

WAIT_SECONDS = 2.0


class UnixConnection(HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket(AF_UNIX)
        self.sock.settimeout(WAIT_SECONDS)
        self.sock.connect(str(self._path))


def is_ready(path: Path) -> bool:
    """Whether new requests are admitted."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200  # noqa: PLR2004 - ok
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready(Path(sys.argv[1])) else 1)

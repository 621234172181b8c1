"""A head that is said again: most clients say the same one with every request of a connection, but for a few values.

Invariant: a head is known only once the parser has read the same bytes on this connection as the head of a request, and
nothing in it was read differently than it stands there. What may differ are the values of a few headers, in characters
that mean nothing to a parser, and a length in digits. Whatever else comes is the parser's. Not here: when a connection
may look (``reading``).
"""

from typing import NamedTuple, Self

from starlette.types import Scope

from meterhouse.http.head import HEADERS, Target

MAX_KNOWN_BYTES = 4_096
"""A longer head is not remembered: it would be kept for as long as the connection is idle."""
MAX_VALUE_BYTES = 64
"""A value that differs may be so long."""
MOST_BYTES = 1_000_000_000
"""Of a longer body the parser sees the end."""
_LENGTH = b"content-length"
_VARYING = frozenset({_LENGTH, b"traceparent", b"x-forwarded-for", b"x-request-id"})
"""What differs from request to request of one client, or is told of each by a proxy."""
_PLAIN = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-.:"
_NEVER_KNOWN = frozenset({b"expect", b"transfer-encoding", b"upgrade"})
"""What says how a request goes on is left to the parser."""


class KnownHead(NamedTuple):
    """A head as it came, without the values that may differ."""

    begin: bytes
    cuts: tuple[tuple[bytes, bytes], ...]
    """The name of each header whose value may differ, and what follows that value."""
    headers: dict[bytes, bytes]
    target: Target

    @classmethod
    def learn(cls, data: bytes, target: Target, scope: Scope) -> Self | None:
        """Return the head of a POST that came with the beginning of some data; None: it cannot be known again."""
        headers: dict[bytes, bytes] = scope[HEADERS]
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES)
        if end < 0 or _LENGTH not in headers or not _NEVER_KNOWN.isdisjoint(headers):
            return None
        first, *lines = data[:end].split(b"\r\n")
        found = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]
        # No name twice, no value with a blank more than it needs, and the parser has read the same.
        if first != b"POST %b HTTP/1.1" % target[0] or found != list(headers.items()):
            return None
        pieces, names = [first], []
        for line, (name, value) in zip(lines, found, strict=True):
            pieces[-1] += b"\r\n" + line
            if name in _VARYING:
                pieces[-1] = pieces[-1].removesuffix(value)
                pieces.append(b"")
                names.append(name)
        pieces[-1] += b"\r\n\r\n"
        return cls(pieces[0], tuple(zip(names, pieces[1:], strict=True)), headers.copy(), target)

    def read(self, data: bytes) -> tuple[dict[bytes, bytes], bytes, int] | None:
        """Return a request that begins with this head: headers, what came of its body, and how much is to come.

        None: it is another one, or there is more than a request.
        """
        begin, cuts, headers, _ = self
        if not data.startswith(begin):
            return None
        headers, at = headers.copy(), len(begin)
        for name, rest in cuts:
            stop = data.find(b"\r", at, at + MAX_VALUE_BYTES)
            if not data.startswith(rest, stop):
                return None
            headers[name] = value = data[at:stop]
            if not value.isdigit() if name == _LENGTH else not value or value.translate(None, _PLAIN):
                return None
            at = stop + len(rest)
        body, length_bytes = data[at:], int(headers[_LENGTH])
        missing_bytes = length_bytes - len(body)
        return (headers, body, missing_bytes) if 0 <= missing_bytes < MOST_BYTES else None

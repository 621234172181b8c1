"""Fuzzes the splitter of a provider's event stream; ``infra/test --fuzz`` runs it, in an environment of its own.

What must hold for any bytes: cut anywhere they give what a reader written straight from the rules gives; a payload
that is framed for a client is read back as one event and no other; nothing but UpstreamDown is raised.
"""

import re
import sys

import atheris

with atheris.instrument_imports(include=["meterhouse"]):
    from meterhouse.errors import UpstreamDown
    from meterhouse.http.sse import MAX_EVENT_BYTES, SseReader, frame


def reference(stream: bytes) -> list[bytes]:
    """Split all of a stream by the rules of the HTML standard; an event without its empty line is not one."""
    payloads: list[bytes] = []
    data: list[bytes] = []
    *lines, _unfinished = re.split(rb"\r\n|\r|\n", stream)
    for line in lines:
        if not line:
            payloads += [b"\n".join(data)] if data else []
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return payloads


def split(pieces: list[bytes]) -> list[bytes]:
    """Return the payloads of a stream that comes in pieces."""
    reader = SseReader()
    return [payload for piece in pieces for payload in reader.feed(piece)] + reader.close()


def test_one_input(data: bytes) -> None:
    """Try one input: its first bytes say where the rest is cut."""
    provider = atheris.FuzzedDataProvider(data)
    sizes = [provider.ConsumeIntInRange(0, 40) for _ in range(provider.ConsumeIntInRange(0, 12))]
    stream = provider.ConsumeBytes(sys.maxsize)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(stream[at : at + size])
        at += size
    pieces.append(stream[at:])
    try:
        found = split(pieces)
    except UpstreamDown:
        if len(stream) <= MAX_EVENT_BYTES:
            raise
        return
    if found != reference(stream):
        raise AssertionError(f"{pieces!r} gave {found!r}")
    for payload in found:
        framed = frame(payload)
        if not framed.startswith(b"data: ") or len(reference(framed)) != 1 or framed[:-2].count(b"\n"):
            raise AssertionError(f"{payload!r} became {framed!r}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()

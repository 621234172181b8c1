"""What the journal says: three payloads, each behind one version byte.

Invariant: counts and ids only, never a text of a request or an answer. Fields are only ever appended, with a default;
anything else is a new version. Not here: framing, checksums and files (``segment``).
"""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from meterhouse.money import Price
from meterhouse.usage import Usage, UsageRecord

VERSION = 1


class UnreadableJournal(Exception):
    """A journal cannot be read by this version, or is none; the message names the file."""


class Intent(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """An attempt is about to be made; written before anything of it is sent."""

    request_id: str
    attempt: int
    organization_id: str
    project_id: str
    key_id: str
    root_key_id: str
    model: str
    provider: str
    deployment: str
    upstream_model: str
    operation: str
    is_streamed: bool
    input_tokens_estimate: int
    price: msgspec.Raw | Price | None
    """Written as an already encoded Price, so that an INTENT costs nothing; read as a Price. None: unpriced."""
    admitted_at_ms: int
    trace_id: str
    request_units: int = 1
    """How often the price of a request was held: once, or for each image that was asked for."""


class CheckpointEntry(msgspec.Struct, frozen=True, array_like=True):
    """What one running attempt has used so far, and whether the provider said so."""

    request_id: str
    attempt: int
    usage: Usage
    is_reported: bool


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What the running streams of a process have used so far."""

    entries: tuple[CheckpointEntry, ...]


class Terminal(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The end of a request: the records of all its attempts."""

    records: tuple[UsageRecord, ...]


Payload = Intent | Checkpoint | Terminal


class Opening(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What of an INTENT matters for shipping: that the request is under way."""

    request_id: str


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What of a CHECKPOINT matters for shipping: nothing."""


Shipping = Opening | Progress | Terminal
"""What of a payload is shipped."""

_PREFIX = bytes([VERSION])
_TERMINAL_TAG = bytes([3])
_TAG = slice(2, 3)
"""Behind the version and the byte of an array of fewer than 16; an INTENT's is longer."""
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Payload] = msgspec.msgpack.Decoder(Payload)
_SHIPPING_DECODER: msgspec.msgpack.Decoder[Shipping] = msgspec.msgpack.Decoder(Shipping)
_Decoded = TypeVar("_Decoded")


def encode(payload: Payload) -> bytes:
    """Encode a payload: the version byte, then msgpack."""
    return _PREFIX + _ENCODER.encode(payload)


def select_terminals(entries: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Tell the TERMINALs by their tag, without decoding them; of what an unknown version wrote, nothing is told."""
    return [data for _, data in entries if data[_TAG] == _TERMINAL_TAG and data[:1] == _PREFIX]


def decode(data: bytes, *, origin: str) -> Payload:
    """Decode a payload.

    Args:
        data: what ``encode`` made, by this version or an older one.
        origin: the file it was read from, for the error.

    Raises:
        UnreadableJournal: a newer version wrote it, or it is no payload.
    """
    return _decode(_DECODER, data, origin)


def decode_for_shipping(data: bytes, *, origin: str) -> Shipping:
    """Decode of a payload what is shipped, and look at nothing else; raises as ``decode`` does."""
    return _decode(_SHIPPING_DECODER, data, origin)


def _decode(decoder: msgspec.msgpack.Decoder[_Decoded], data: bytes, origin: str) -> _Decoded:
    version = data[0] if data else 0
    if version > VERSION:
        raise UnreadableJournal(
            f"{origin} was written by a newer Meterhouse (record version {version}, this one reads up to {VERSION}). "
            "Read it with the version that wrote it."
        )
    try:
        if version != VERSION:
            raise msgspec.ValidationError(f"there is no record version {version}")
        return decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as error:
        raise UnreadableJournal(f"{origin} holds a record that is none of the journal's: {error}") from error

"""Embeddings in the two forms of OpenAI's wire: a list of numbers, and base64 of little-endian float32 (wire.md 1.8).

Invariant: pure; what is in the wanted form already passes byte for byte.
"""

import base64
import sys
from array import array
from typing import Literal

import msgspec
from msgspec import Raw

from meterhouse.errors import UpstreamDown

Encoding = Literal["float", "base64"]

_numbers_decoder = msgspec.json.Decoder(list[float])
_items_decoder = msgspec.json.Decoder(list[dict[str, Raw]])


def convert_vectors(data: Raw, wanted: Encoding) -> Raw:
    """Return the ``data`` of an answer with every vector in the wanted form.

    Raises:
        UpstreamDown: It is no list of embeddings.
    """
    try:
        items = _items_decoder.decode(data)
        start = b'"' if wanted == "base64" else b"["
        if all(bytes(item["embedding"]).startswith(start) for item in items):
            return data
        for item in items:
            item["embedding"] = _convert(item["embedding"], wanted)
    except (msgspec.DecodeError, KeyError, ValueError, OverflowError) as error:
        raise UpstreamDown(
            "The provider sent something that is not an embedding.",
            detail=type(error).__name__,
            code="upstream_protocol_error",
        ) from None
    return Raw(msgspec.json.encode(items))


def pack_vector(numbers: list[float]) -> str:
    """Return a vector as base64 of little-endian float32."""
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def unpack_vector(text: str) -> list[float]:
    """Return the numbers of a vector that is base64; raises ValueError."""
    packed = array("f")
    packed.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def _convert(vector: Raw, wanted: Encoding) -> Raw:
    is_text = bytes(vector).startswith(b'"')
    if is_text == (wanted == "base64"):
        return vector
    if is_text:
        return Raw(msgspec.json.encode(unpack_vector(msgspec.json.decode(vector, type=str))))
    return Raw(msgspec.json.encode(pack_vector(_numbers_decoder.decode(vector))))

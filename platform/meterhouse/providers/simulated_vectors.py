"""The simulator's embeddings: vectors that depend on nothing but the text, so that a test can compare.

Two equal texts have equal vectors, others are far from each other; each has the length 1, as OpenAI's have.
"""

import math
import struct
from hashlib import shake_256
from typing import Annotated

import msgspec
from msgspec import Meta

from meterhouse.providers.simulated import SimulatedAnswer, refuse

DIMENSIONS = 256
"""Of a vector, where the request names no other number."""
BYTES_PER_INPUT_TOKEN = 4


class _Request(msgspec.Struct):
    input: object
    model: str = "simulator"
    dimensions: Annotated[int, Meta(ge=1, le=4_096)] | None = None


_requests = msgspec.json.Decoder(_Request)


def embed(body: bytes) -> SimulatedAnswer:
    """Answer a request for embeddings: always numbers, which the gateway encodes for whoever asked for base64."""
    try:
        request = _requests.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return refuse(400, f"The simulator cannot read the request: {error}")
    entries = request.input if isinstance(request.input, list) else [request.input]
    if entries and all(isinstance(entry, int) for entry in entries):
        entries = [entries]
    dimensions = request.dimensions or DIMENSIONS
    vectors = [_vector(msgspec.json.encode(entry), dimensions) for entry in entries]
    tokens = sum(_count(entry) for entry in entries)
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return SimulatedAnswer(200, "application/json", iter([msgspec.json.encode(answer)]), 0.0)


def _vector(text: bytes, dimensions: int) -> list[float]:
    words = struct.unpack(f"<{dimensions}i", shake_256(text).digest(4 * dimensions))
    length = math.hypot(*words) or 1.0
    return [word / length for word in words]


def _count(entry: object) -> int:
    if isinstance(entry, list):
        return len(entry)
    return max(1, -(-len(str(entry).encode()) // BYTES_PER_INPUT_TOKEN))

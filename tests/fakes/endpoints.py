"""The answers of the wires that have one body and no stream: embeddings, moderations, images, sound.

Deterministic: a vector depends on its text only, an image and a sound on the model's name. ``usage`` of the plan says
whether the counts are reported; ``field=base64`` that embeddings come encoded whatever was asked for, ``field=float``
that they never do.
"""

import base64
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from fakes.exchange import Exchange, Note
from fakes.wires import encode

DIMENSIONS = 4
PNG = base64.b64encode(b"\x89PNG fake").decode()
SOUND = b"ID3 fake sound " * 50


def vector(entry: Any, dimensions: int = DIMENSIONS) -> list[float]:
    """Return the embedding of a text, or of tokens: multiples of 1/128, which float32 holds exactly."""
    seed = zlib.crc32(str(entry).encode())
    return [((seed >> (number % 24)) % 256 - 128) / 128 for number in range(dimensions)]


def entries_of(body: dict[str, Any]) -> list[Any]:
    """Return the inputs, one or several."""
    given = body.get("input")
    is_one = isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int))
    return [given] if is_one else list(given or ())


def count_input(body: dict[str, Any]) -> int:
    """Count an input: the words of its texts, or its tokens."""
    return sum(len(entry.split()) if isinstance(entry, str) else len(entry) for entry in entries_of(body))


async def embeddings(x: Exchange) -> None:
    """Answer ``/v1/embeddings``."""
    body = x.request.body
    wants_base64 = {"base64": True, "float": False}.get(x.plan.field, body.get("encoding_format") == "base64")
    rows = []
    for index, entry in enumerate(entries_of(body)):
        numbers: Any = vector(entry, body.get("dimensions") or DIMENSIONS)
        if wants_base64:
            numbers = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": numbers})
    answer: dict[str, Any] = {"object": "list", "data": rows, "model": x.plan.served or body["model"]}
    usage = None if x.plan.usage == "none" else {"prompt_tokens": count_input(body), "total_tokens": count_input(body)}
    await send(x, answer, usage)


async def ollama_embed(x: Exchange) -> None:
    """Answer Ollama's ``/api/embed``, which leaves a count of zero out."""
    body = x.request.body
    vectors = [vector(entry, body.get("dimensions") or DIMENSIONS) for entry in entries_of(body)]
    answer: dict[str, Any] = {"model": body["model"], "embeddings": vectors, "total_duration": 1, "load_duration": 1}
    if x.plan.usage != "none":
        answer["prompt_eval_count"] = count_input(body)
    await send(x, answer, None)


async def moderations(x: Exchange) -> None:
    """Answer ``/v1/moderations``, which reports no usage."""
    result = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 0.01}}
    result["category_applied_input_types"] = {"violence": ["text"]}
    await send(x, {"id": "modr-fake", "model": x.request.body["model"], "results": [result]}, None)


async def images(x: Exchange) -> None:
    """Answer ``/v1/images/generations``: with a usage where the plan says ``always``, as the gpt-image models do.

    ``special=short`` is one image less than was asked for, ``generous`` one more.
    """
    count = int(x.request.body.get("n") or 1) + {"short": -1, "generous": 1}.get(x.plan.special, 0)
    answer: dict[str, Any] = {"created": 1, "data": [{"b64_json": PNG}] * count}
    usage = {"input_tokens": 9, "output_tokens": 272, "total_tokens": 281}
    await send(x, answer, usage if x.plan.usage == "always" else None)


async def transcriptions(x: Exchange) -> None:
    """Answer ``/v1/audio/transcriptions`` and ``/translations``, as JSON or as plain text."""
    text = f"{len(x.request.body.get('file', ''))} bytes of sound"
    if x.request.body.get("response_format") in {"text", "srt", "vtt"}:
        await x.whole(200, "text/plain; charset=utf-8", f"{text}\n".encode())
        return
    usage = {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}, "output_tokens": 5}
    await send(x, {"text": text}, usage if x.plan.usage == "always" else None)


async def speech(x: Exchange) -> None:
    """Answer ``/v1/audio/speech`` with bytes."""
    await x.whole(200, "audio/mpeg", SOUND, None, ("token", {"kind": "sound", "count": 0}))


async def send(x: Exchange, answer: dict[str, Any], usage: dict[str, Any] | None) -> None:
    """Send a body, and note what it reports."""
    notes: list[Note] = [("finish", {"reason": "stop"})]
    if usage is not None:
        answer["usage"] = usage
        notes.append(("usage", {"usage": usage, "where": "body"}))
    await x.whole(200, "application/json", encode(answer), None, *notes)


ENDPOINTS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "/v1/embeddings": embeddings,
    "/api/embed": ollama_embed,
    "/v1/moderations": moderations,
    "/v1/images/generations": images,
    "/v1/audio/transcriptions": transcriptions,
    "/v1/audio/translations": transcriptions,
    "/v1/audio/speech": speech,
}

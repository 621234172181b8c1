"""The structure of a request's body, before anything is built of it: how deep, how many values, each key once.

Invariant: what costs more to decode than its length suggests is refused before it is decoded, and no object reaches a
provider with a key in it twice: we would count one of its values, and the provider might read the other. A long body
is looked at on a thread, so that nobody else waits for it. Not here: what the values mean (``body``).
"""

import asyncio
import json
import math
import re
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

import msgspec
from starlette.types import Receive, Scope

from meterhouse.errors import Malformed
from meterhouse.http.body import IS_WHOLE, read_body, read_pieces
from meterhouse.http.cycle import Cycle
from meterhouse.http.skeleton import LONG_BODY_BYTES, Skeleton, leave_texts_out

Parsed = TypeVar("Parsed")

MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_TOKEN_VALUES = 400_000
"""Where texts may come as the numbers of their tokens."""
INLINE_BYTES = 262_144
"""A longer body is parsed, written anew and translated on a thread: at half a microsecond per value it could keep the
event loop for 50 ms."""
INLINE_TEXT_BYTES = 2_097_152
"""The same of a body that is next to nothing without its long texts: a megabyte of text takes a third of a ms."""
MAX_KEY_SHOWN = 64
FEW_QUOTES = 20_000

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[\]{},]', re.DOTALL)
"""A string, also one that does not end, so that no byte is looked at twice, or a bracket or comma outside of one."""
_COMMA = ord(",")
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class _NotJson(ValueError):
    """What JSON does not have, or a key that an object has twice; the text may be shown."""


def take_short_body(cycle: Cycle | None, receive: Receive, most_values: int = MAX_VALUES) -> bytes | None:
    """Read a short body that is here whole, as almost every one is, and check its structure; None: see ``take_body``.

    So it is where nobody stands between the server and us: who counts what comes has a ``receive`` of his own.

    Raises:
        Malformed: see ``take_body``.
    """
    body = cycle.take_body(LONG_BODY_BYTES) if cycle is not None and receive == cycle.receive else None
    if body is not None and most_values:
        _check_whole(body, most_values)
    return body


async def take_body(
    scope: Scope,
    receive: Receive,
    parse: Callable[[bytes], Parsed],
    most_values: int = MAX_VALUES,
    parse_long: Callable[[Skeleton], Parsed | None] | None = None,
) -> Parsed:
    """Read the whole body, check its structure and parse it.

    Args:
        scope: of the request.
        receive: ASGI's.
        parse: reads a body whose structure is good.
        most_values: how many values it may have; 0: it is no JSON, but a form.
        parse_long: reads a long body by its skeleton; None from it: the body has to be read by ``parse``.

    Raises:
        ClientGone: The client left while it sent.
        BodyTooSlow: It took more than two minutes.
        Malformed: It is no JSON, has an object with a key in it twice, or is too deep or too wide.
    """
    # Of most requests the server has all of the body already: then there is no time to be bounded.
    body = await (read_pieces(receive) if IS_WHOLE in scope else read_body(receive))
    length_bytes = len(body)
    if parse_long is not None and LONG_BODY_BYTES < length_bytes <= INLINE_TEXT_BYTES:
        parsed = _parse_long(body, parse_long, most_values)
        if parsed is not None:
            return parsed
    if length_bytes <= INLINE_BYTES:
        return _parse(body, parse, most_values)
    return await asyncio.to_thread(_parse, body, parse, most_values)


def _parse(body: bytes, parse: Callable[[bytes], Parsed], most_values: int) -> Parsed:
    if most_values:
        check_structure(body, most_values)
    return parse(body)


def _parse_long(body: bytes, parse_long: Callable[[Skeleton], Parsed | None], most_values: int) -> Parsed | None:
    skeleton = leave_texts_out(body)
    if skeleton is None or len(skeleton.data) > LONG_BODY_BYTES or not _is_well_built(skeleton.data, most_values):
        return None
    return parse_long(skeleton)


def check_structure(body: bytes, most_values: int = MAX_VALUES) -> None:
    """Look at a body in time and memory that its length bounds.

    Raises:
        Malformed: see ``take_body``.
    """
    if len(body) > LONG_BODY_BYTES:
        skeleton = leave_texts_out(body)
        if skeleton is not None and _is_well_built(skeleton.data, most_values):
            return
    _check_whole(body, most_values)


def _is_well_built(skeleton: bytes, most_values: int) -> bool:
    """Whether nothing is wrong with what is left of a body; what is, is said of the body itself."""
    try:
        _check_whole(skeleton, most_values)
    except Malformed:
        return False
    return True


def _check_whole(body: bytes, most_values: int) -> None:
    opened = body.count(b"[") + body.count(b"{")
    # Most bodies have too few brackets, and are too short for as many values.
    if opened > MAX_DEPTH or len(body) > most_values:
        _check_size(body, opened, most_values)
    # With few quotes there are few objects, so that what is built on the way is small.
    if len(body) <= FEW_QUOTES or body.count(b'"') <= FEW_QUOTES:
        try:
            # What is written just so when it has been read is JSON, and no object has a key twice. What the official
            # SDKs send is, and this takes a third of the time of a decoder that looks at each key.
            if _value_encoder.encode(_value_decoder.decode(body)) == body:
                return
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # said of it below
    try:
        _decoder.decode(str(body, "utf-8"))
    except _NotJson as error:
        raise Malformed(f"The request body cannot be read: {error}.", code="invalid_json") from None
    except UnicodeDecodeError:
        raise Malformed("The request body is not valid JSON: it is not UTF-8.", code="invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg[:1].lower()}{error.msg[1:]} (character {error.pos})"
        raise Malformed(f"The request body is not valid JSON: {where}.", code="invalid_json") from None
    except ValueError:
        raise Malformed("The request body is not valid JSON: a number is too long.", code="invalid_json") from None


def _check_size(body: bytes, opened: int, most_values: int) -> None:
    """Refuse too many values, or too deep ones, in a body with so many brackets that open something."""
    if opened <= MAX_DEPTH and opened + body.count(b",") <= most_values:
        return
    if body.count(b'"') <= FEW_QUOTES:
        _check_bare(_without_strings(body), most_values)
    else:
        _walk(body, most_values)


def _without_strings(body: bytes) -> bytes:
    """Return what stands outside of strings, up to where a body is no JSON any more if it is none.

    Without what is escaped, every other piece between two quotes is a string; the last one may not end. A regular
    expression takes five times as long.
    """
    return b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])


def _check_bare(bare: bytes, most_values: int) -> None:
    """Check a body without its strings."""
    if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > most_values:
        raise _too_wide(most_values)
    brackets = bare.translate(None, _NO_BRACKETS)
    pairs = brackets.translate(_ONE_KIND)
    for _ in range(MAX_DEPTH):
        # What is innermost goes, level by level; most bodies have a few.
        outer = pairs.replace(b"[]", b"")
        if len(outer) == len(pairs):
            break
        pairs = outer
    if not pairs:
        return
    steps = map(_STEPS.__getitem__, brackets)
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise _too_deep()


def _walk(body: bytes, most_values: int) -> None:
    """Check a body with many strings without taking them out, which would cost 25 times its memory."""
    depth = values = 0
    for tokens, match in enumerate(_TOKEN.finditer(body)):
        first = body[match.start()]
        step = _STEPS.get(first, 0)
        depth += step
        values += step > 0 or first == _COMMA
        # A value has at most two strings, two brackets and a comma.
        if values > most_values or tokens > 5 * most_values:
            raise _too_wide(most_values)
        if depth > MAX_DEPTH:
            raise _too_deep()


def _too_wide(most_values: int) -> Malformed:
    return Malformed(f"The request body has more than {most_values} values. Send less.", code="invalid_json")


def _too_deep() -> Malformed:
    return Malformed(f"The request body is nested too deeply: more than {MAX_DEPTH} levels.", code="invalid_json")


def _unique(pairs: list[tuple[str, object]]) -> None:
    """Refuse an object that has a key twice. Nothing of what was decoded is kept."""
    names = {name for name, _ in pairs}
    if len(names) != len(pairs):
        twice = next(name for name in names if sum(name == other for other, _ in pairs) > 1)
        shown = f" '{twice}'" if len(twice) <= MAX_KEY_SHOWN and twice.isprintable() else ""
        raise _NotJson(f"an object has the key{shown} twice")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotJson("a number is beyond every range")
    return number


def _refuse_constant(text: str) -> None:
    raise _NotJson(f"it is not valid JSON, which has no {text}")


_value_decoder = msgspec.json.Decoder()
_value_encoder = msgspec.json.Encoder()
_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)

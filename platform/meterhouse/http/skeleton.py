"""A long JSON body without its long texts: what its structure is told by, in a thousandth of the time.

A prompt of a megabyte is a few strings. They are found by jumping from quote to quote, each checked by itself, and left
out; what remains is small, and has the same objects, keys, numbers and depth. Invariant: a body whose skeleton and
whose texts are good JSON is good JSON. Not here: what is good (``intake``).
"""

import msgspec

LONG_BODY_BYTES = 16_384
"""A shorter body is looked at as it is."""
LONG_TEXT_BYTES = 1_024
MOST_QUOTES = 2_048
"""With more, escaped ones included, a body is looked at as it is."""
BYTES_PER_QUOTE = 512
"""With fewer, too: a jump takes as long as some hundred bytes that are looked at."""
MOST_BACKSLASHES = 64
"""As many before a quote, and it is not counted whether they are more."""

_QUOTE = b'"'
_BACKSLASH = b"\\"
_EMPTY = b'""'
_SPACES = b" \t\n\r"
_COLON = b":"

_text_decoder = msgspec.json.Decoder(str)


def has_more_than(data: bytes, mark: bytes, most: int) -> bool:
    """Say whether a byte is in the data more often than stated; takes no longer where it is rare."""
    found, at = 0, data.find(mark)
    while at >= 0:
        found += 1
        if found > most:
            return True
        at = data.find(mark, at + 1)
    return False


def leave_texts_out(body: bytes) -> bytes | None:
    """Return a body with an empty text for each long one, all of which are good; None: it has to be looked at whole."""
    if has_more_than(body, _QUOTE, min(MOST_QUOTES, len(body) // BYTES_PER_QUOTE)):
        return None
    kept: list[bytes] = []
    view = memoryview(body)
    begin = at = 0
    while (opened := body.find(_QUOTE, at)) >= 0:
        closed = _find_end(body, opened)
        if closed < 0:
            return None
        at = closed + 1
        if closed - opened > LONG_TEXT_BYTES and not _is_key(body, at):
            if not _is_text(view[opened:at]):
                return None
            kept += [body[begin:opened], _EMPTY]
            begin = at
    if not kept:
        return None  # it would be looked at twice
    kept.append(body[begin:])
    return b"".join(kept)


def _find_end(body: bytes, opened: int) -> int:
    """Return where a string ends; -1 where that is not told."""
    closed = body.find(_QUOTE, opened + 1)
    while closed >= 0:
        before = body[max(opened + 1, closed - MOST_BACKSLASHES) : closed]
        backslashes = len(before) - len(before.rstrip(_BACKSLASH))
        if backslashes == MOST_BACKSLASHES:
            break
        if backslashes % 2 == 0:
            return closed
        closed = body.find(_QUOTE, closed + 1)
    return -1


def _is_key(body: bytes, behind: int) -> bool:
    """Whether a string that ends before this place is the name of a value."""
    end = min(len(body), behind + LONG_TEXT_BYTES)
    return body[behind:end].lstrip(_SPACES)[:1] in {_COLON, b""}


def _is_text(string: memoryview) -> bool:
    try:
        _text_decoder.decode(string)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True

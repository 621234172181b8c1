"""A long JSON body without its long texts: what its structure is told by, in a thousandth of the time.

A prompt of a megabyte is a few strings. They are found by jumping from quote to quote, each decoded by itself, and left
out; what remains is small, and has the same objects, keys, numbers and depth. Invariant: a body whose skeleton and
whose texts are good JSON is good JSON. Not here: what is good (``intake``), what is asked (``long_chat``).
"""

import msgspec
from msgspec import Raw

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
_NUL = rb"\u0000"
_MARK = b'"' + _NUL + b'%07d"'
_MARK_BYTES = len(_MARK % 0)
_MARK_SIGN = "\0"
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


class Skeleton(msgspec.Struct):
    """A body without its long texts."""

    body: bytes
    data: bytes
    """The body with a mark, which is a short text, for each of its long ones."""
    texts: list[str]
    places: list[tuple[int, int, int]]
    """Of each text: where its mark begins in ``data``, where it begins in the body, and where it ends there."""

    def find_text(self, mark: str) -> str | None:
        """Return the long text that a text of ``data`` is the mark of; None: it is no mark."""
        return self.texts[int(mark[1:])] if mark.startswith(_MARK_SIGN) else None

    def find_whole(self, raw: Raw) -> Raw:
        """Return what a value of ``data`` that has all marks in it is in the body; the bytes are the body's own."""
        begin = self.data.index(bytes(raw))
        end = begin + len(raw)
        first_mark, first_text, _ = self.places[0]
        last_mark, _, last_end = self.places[-1]
        begin_in_body = first_text - (first_mark - begin)
        end_in_body = last_end + end - (last_mark + _MARK_BYTES)
        return Raw(memoryview(self.body)[begin_in_body:end_in_body])


def leave_texts_out(body: bytes) -> Skeleton | None:
    """Return a body with a mark for each long text, all of which are good; None: it has to be looked at whole."""
    if has_more_than(body, _QUOTE, min(MOST_QUOTES, len(body) // BYTES_PER_QUOTE)):
        return None
    kept: list[bytes] = []
    texts: list[str] = []
    places: list[tuple[int, int, int]] = []
    view = memoryview(body)
    begin = at = length = 0
    while (opened := body.find(_QUOTE, at)) >= 0:
        closed = _find_end(body, opened)
        if closed < 0:
            return None
        at = closed + 1
        if closed - opened > LONG_TEXT_BYTES and not _is_key(body, at):
            text = _read_text(view[opened:at])
            if text is None:
                return None
            length += opened - begin
            places.append((length, opened, at))
            kept += [body[begin:opened], _MARK % len(texts)]
            texts.append(text)
            length += _MARK_BYTES
            begin = at
    if not kept:
        return None  # it would be looked at twice
    kept.append(body[begin:])
    data = b"".join(kept)
    # A text that the caller wrote may look like a mark.
    return Skeleton(body, data, texts, places) if data.count(_NUL) == len(texts) else None


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


def _read_text(string: memoryview) -> str | None:
    try:
        return _text_decoder.decode(string)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None

"""Tells the chunks of a stream that differ from one before them in their text alone, which most do, without decoding.

Of a chunk that was read, all but its text is remembered, as it came and as it was sent. A later one with the same bytes
around a text of plain characters says the same but for that text: it parses alike, and goes out alike. What differs in
anything else, or whose text has an escape, is read as ever. A row of alike chunks is told at once: what stands between
two texts is always the same, so one split gives all texts, and one join what is sent.

Invariant: what is told here is what decoding would have told, byte for byte. Not here: what a chunk means (``relay``).
"""

import re

import msgspec

from meterhouse.http.chunk import UNSEEN_BYTES, Chunk, is_set

MOST_TRIES = 3
"""After so many chunks in a row that were remembered for nothing, a stream is taken for one whose chunks all differ."""
MOST_AT_ONCE = 64
"""So many chunks are looked at together: a long read whose chunks differ now and then is not copied whole for each."""

_ROLE = re.compile(rb'"role": ?"[a-z]+", ?(?="[a-z_]+": ?"\Z)')
"""The role right before the text, which the first chunk of an answer has and those after it are without."""

Told = tuple[int, str, int, bytes]
"""How many chunks were told, the text of all of them, its length in bytes, and what goes to the client for them."""


class AlikeChunks(msgspec.Struct):
    """The chunks of one stream."""

    before: bytes = b""
    """What stands before a text; empty: nothing is remembered."""
    after: bytes = b""
    between: bytes = b""
    """What stands between the texts of two chunks in a row, of which no payload has a line feed in it."""
    sent_before: bytes = b""
    sent_after: bytes = b""
    sent_between: bytes = b""
    tries: int = MOST_TRIES

    def tell(self, payloads: list[bytes], begin: int) -> Told | None:
        """Tell of the chunks from one on, up to one to be read; None where that one is the first."""
        before, payload = self.before, payloads[begin]
        if not before or not payload.startswith(before):
            return None
        if begin < len(payloads) - 1:
            return self._tell_row(payloads[begin : begin + MOST_AT_ONCE])
        raw = payload[len(before) : -len(self.after)]
        text = _read(raw) if payload.endswith(self.after) else None
        if text is None:
            return None
        self.tries = MOST_TRIES
        return 1, text, len(raw), b"%b%b%b" % (self.sent_before, raw, self.sent_after)

    def learn(self, payload: bytes, chunk: Chunk, sent: bytes) -> None:
        """Remember a chunk that was read, and what went to the client for it, if it says nothing but a text."""
        named = _find_text(chunk) if self.tries else None
        if named is None:
            return
        parts, sent_parts = _split(payload, *named), _split(sent, *named)
        if parts is None or sent_parts is None or len(parts[0]) + len(parts[1]) > UNSEEN_BYTES:
            return
        is_first = not self.before
        self.tries -= 1
        self.before, self.after = parts
        self.sent_before, self.sent_after = sent_parts
        if is_first:
            self._leave_out_role()
        self.between = b"%b\n%b" % (self.after, self.before)
        self.sent_between = self.sent_after + self.sent_before

    def _leave_out_role(self) -> None:
        """Remember the first chunk as those after it will be: without the role, which nobody here reads."""
        before, found = _ROLE.subn(b"", self.before, 1)
        sent_before, found_sent = _ROLE.subn(b"", self.sent_before, 1)
        if found == found_sent:
            self.before, self.sent_before = before, sent_before

    def _tell_row(self, payloads: list[bytes]) -> Told | None:
        whole = b"\n".join(payloads)
        if whole.count(b"\n") != len(payloads) - 1:
            return None
        pieces = whole[len(self.before) :].split(self.between)
        raw, end, rest = pieces[-1].partition(self.after)
        raws = [*pieces[:-1], raw]
        # With a blank between, so that no two halves make a character.
        if not (end and (not rest or rest.startswith(b"\n")) and all(raws)) or _read(b" ".join(raws)) is None:
            raws = self._find_plain(pieces)
            if not raws:
                return None
        self.tries = MOST_TRIES
        text = b"".join(raws)
        sent = b"%b%b%b" % (self.sent_before, self.sent_between.join(raws), self.sent_after)
        return len(raws), text.decode(), len(text), sent

    def _find_plain(self, pieces: list[bytes]) -> list[bytes]:
        """Return the texts up to the first chunk that has an escape or differs at its end."""
        found: list[bytes] = []
        last = len(pieces) - 1
        for number, piece in enumerate(pieces):
            raw, end, rest = piece.partition(self.after)
            is_alike = (not rest or rest.startswith(b"\n")) if end else number < last
            if not is_alike or _read(raw) is None:
                break
            found.append(raw)
            if end:
                break
        return found


def _read(raw: bytes) -> str | None:
    """Return a text that is spelled as it is; None where it is empty, or has other than plain characters."""
    if not raw or b'"' in raw or b"\\" in raw:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _find_text(chunk: Chunk) -> tuple[bytes, bytes] | None:
    """Return the name and the value of the one text of a chunk; None when it has several, or says something else."""
    choices = chunk.choices
    if choices is None or len(choices) != 1 or chunk.x_groq is not None or is_set(chunk.usage):
        return None
    choice = choices[0]
    delta = choice.delta
    if delta is None or choice.finish_reason is not None or is_set(choice.usage) or is_set(delta.audio):
        return None
    if delta.tool_calls is not None or delta.function_call is not None:
        return None
    if delta.refusal is not None or delta.reasoning is not None:
        return None
    if delta.content and not delta.reasoning_content:
        return b'"content"', delta.content.encode("utf-8", "surrogatepass")
    if delta.reasoning_content and not delta.content:
        return b'"reasoning_content"', delta.reasoning_content.encode("utf-8", "surrogatepass")
    return None


def _split(payload: bytes, name: bytes, text: bytes) -> tuple[bytes, bytes] | None:
    """Return what stands before and after a text; None where it could be another field's, or is spelled otherwise."""
    # Without an escape in the whole chunk, a name that is there once is the name of the field that was decoded.
    if b"\\" in payload or payload.count(name) != 1:
        return None
    value = payload.index(name) + len(name)
    for opening in (b':"', b': "'):
        if payload.startswith(opening + text + b'"', value):
            begin = value + len(opening)
            return payload[:begin], payload[begin + len(text) :]
    return None

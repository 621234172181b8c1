"""Tells the chunks of a stream that differ from one before them in their text alone, which most do, without decoding.

Of a chunk that was read, all but its text is remembered, as it came and as it was sent. A later one with the same bytes
around a text of plain characters says the same but for that text: it parses alike, and goes out alike. What differs in
anything else, or whose text has an escape, is read as ever. A row of them is told at once: joined with the same bytes
around them, their texts are what came if all are alike, and joined with others what is sent.

Invariant: what is told here is what decoding would have told, byte for byte. Not here: what a chunk means (``relay``).
"""

import msgspec

from meterhouse.http.chunk import UNSEEN_BYTES, Chunk, is_set

MOST_TRIES = 3
"""After so many chunks in a row that were remembered for nothing, a stream is taken for one whose chunks all differ."""
MOST_AT_ONCE = 64
"""So many chunks are told together: a long read whose chunks differ now and then is not copied whole for each."""

_ROLES = (b'"role":"assistant",', b'"role": "assistant", ')
"""What the first chunk of an answer has before its text, and those after it are without."""

Told = tuple[int, str, int, bytes]
"""How many chunks were told, the text of all of them, its length in bytes, and what goes to the client for them."""


class AlikeChunks(msgspec.Struct):
    """The chunks of one stream."""

    before: bytes = b""
    """What stands before a text; empty: nothing is remembered."""
    after: bytes = b""
    sent_before: bytes = b""
    sent_after: bytes = b""
    tries: int = MOST_TRIES

    def tell(self, payloads: list[bytes], begin: int) -> Told | None:
        """Tell of the chunks from one on, up to one to be read; None where that one is the first."""
        before, after, payload = self.before, self.after, payloads[begin]
        if not before or not payload.startswith(before) or not payload.endswith(after):
            return None
        if begin < len(payloads) - 1:
            return self._tell_row(payloads[begin : begin + MOST_AT_ONCE])
        raw = payload[len(before) : -len(after)]
        text = _read(raw)
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

    def _leave_out_role(self) -> None:
        """Remember the first chunk as those after it will be: without the role, which nobody here reads."""
        for role in _ROLES:
            if role in self.before and role in self.sent_before:
                self.before = self.before.replace(role, b"", 1)
                self.sent_before = self.sent_before.replace(role, b"", 1)
                return

    def _tell_row(self, payloads: list[bytes]) -> Told | None:
        """Tell of several, of which the first has the right beginning and end."""
        before, after = self.before, self.after
        # A read often brings the end of the answer too.
        while not (payloads[-1].startswith(before) and payloads[-1].endswith(after)):
            del payloads[-1]
        begin, end = len(before), -len(after)
        raws = [payload[begin:end] for payload in payloads]
        # Built anew around its text no chunk is shorter than it came, so each is the same if all together are.
        is_alike = b"".join(payloads) == b"%b%b%b" % (before, (after + before).join(raws), after)
        # A blank between two texts, so that no two halves make a character.
        if not is_alike or not all(raws) or _read(b" ".join(raws)) is None:
            raws = self._find_alike(payloads)
            if not raws:
                return None
        self.tries = MOST_TRIES
        text = b"".join(raws)
        sent_before, sent_after = self.sent_before, self.sent_after
        sent = b"%b%b%b" % (sent_before, (sent_after + sent_before).join(raws), sent_after)
        return len(raws), text.decode(), len(text), sent

    def _find_alike(self, payloads: list[bytes]) -> list[bytes]:
        """Return the texts up to the first chunk that has an escape or differs in more."""
        before, after = self.before, self.after
        found: list[bytes] = []
        for payload in payloads:
            raw = payload[len(before) : -len(after)]
            if not payload.startswith(before) or not payload.endswith(after) or _read(raw) is None:
                break
            found.append(raw)
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
    if choices is None or len(choices) != 1 or chunk.x_groq is not None or chunk.usage:
        return None
    choice = choices[0]
    delta = choice.delta
    if delta is None or choice.finish_reason is not None:
        return None
    if (choice.usage and is_set(choice.usage)) or (delta.audio and is_set(delta.audio)):
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
    if b"\\" in payload:
        return None
    for opening in (name + b':"', name + b': "'):
        before, found, after = payload.partition(b'%b%b"' % (opening, text))
        if found and name not in before and name not in after:
            return before + opening, b'"' + after
    return None

"""Tells the events of a stream that differ from one before them in their text alone, which most do, without decoding.

Of a chunk that was read, all but its text is remembered: its event as it came and as it was sent. A later event with
the same bytes around a text says the same but for that text: it parses alike, and goes out alike. What differs in
anything else is read as ever. A row of them is told at once: joined with the same bytes around them, their texts are
what came if all are alike, and joined with others what is sent.

Invariant: what is told here is what decoding would have told, byte for byte. Not here: what a chunk means (``relay``).
"""

import msgspec

from meterhouse.http.chunk import UNSEEN_BYTES, UNSEEN_FACTOR, Chunk, LenientChunk, is_set
from meterhouse.http.sse import BETWEEN, DATA_PREFIX, EVENT_END, MAX_EVENT_BYTES, frame
from meterhouse.request import utf8_length

MOST_TRIES = 3
"""After so many chunks in a row that were remembered for nothing, a stream is taken for one whose chunks all differ."""
MOST_AT_ONCE = 64
"""So many payloads are told together: a long read whose chunks differ now and then is not copied whole for each."""

_ROLES = (b'"role":"assistant",', b'"role": "assistant", ')
"""What the first chunk of an answer has before its text, and those after it are without."""

Told = tuple[int, str, int, bytes]
"""How many chunks were told, the text of all of them, its length in bytes, and what goes to the client for them."""

_SPARE_BYTES = 16
"""Of what a chunk may have beside a text that is not searched for others: for texts of a few long escapes."""

_PREFIX_BYTES, _END_BYTES = len(DATA_PREFIX), len(EVENT_END)
_text_decoder = msgspec.json.Decoder(str)


class AlikeChunks(msgspec.Struct):
    """The chunks of one stream."""

    before: bytes = b""
    """What an event has before its text, the quote included; empty: nothing is remembered."""
    after: bytes = b""
    """What it has behind it, up to the end of its empty line."""
    sent_before: bytes = b""
    sent_after: bytes = b""
    begin: int = 0
    """Where the text stands in an event, from its beginning."""
    end: int = 0
    """And from its end: a negative number."""
    tries: int = MOST_TRIES

    def tell(self, data: bytes) -> Told | None:
        """Tell of events that are all that came; None where one is to be read, or what came is not whole.

        The bytes begin a line, in a stream none of whose lines ends with CR.
        """
        before, after = self.before, self.after
        if not before or not data.startswith(before) or not data.endswith(after) or len(data) > MAX_EVENT_BYTES:
            return None
        raw = data[self.begin : self.end]
        if b'"' in raw:
            # Several events, or a quote in a text.
            payloads = data[_PREFIX_BYTES:-_END_BYTES].split(BETWEEN)
            count = len(payloads)
            told = self._tell_row(payloads)
            return None if told is None or told[0] < count else told
        text = _read(raw)
        if not text:
            return None
        self.tries = MOST_TRIES
        text_bytes = utf8_length(text) if b"\\" in raw else len(raw)
        return 1, text, text_bytes, b"%b%b%b" % (self.sent_before, raw, self.sent_after)

    def tell_payloads(self, payloads: list[bytes], begin: int) -> Told | None:
        """Tell of the payloads from one on, up to one to be read; None where that one is the first."""
        if not self.before or not payloads[begin].startswith(self.before[_PREFIX_BYTES:]):
            return None
        return self._tell_row(payloads[begin : begin + MOST_AT_ONCE])

    def learn(self, payload: bytes, chunk: Chunk, sent: bytes) -> None:
        """Remember a chunk that was read, and what went to the client for it, if it says nothing but a text."""
        named = _find_text(chunk) if self.tries else None
        if named is None or b"\n" in payload:
            return
        parts, sent_parts = _split(frame(payload), *named), _split(sent, *named)
        if parts is None or sent_parts is None or len(parts[0]) + len(parts[1]) > UNSEEN_BYTES - _SPARE_BYTES:
            return
        is_first = not self.before
        self.tries -= 1
        self.before, self.after = parts
        self.sent_before, self.sent_after = sent_parts
        if is_first:
            self._leave_out_role()
        self.begin, self.end = len(self.before), -len(self.after)

    def _leave_out_role(self) -> None:
        """Remember the first chunk as those after it will be: without the role, which nobody here reads."""
        for role in _ROLES:
            if role in self.before and role in self.sent_before:
                self.before = self.before.replace(role, b"", 1)
                self.sent_before = self.sent_before.replace(role, b"", 1)
                return

    def _tell_row(self, payloads: list[bytes]) -> Told | None:
        before, after = self.before[_PREFIX_BYTES:], self.after[:-_END_BYTES]
        # A read often brings the end of the answer too.
        while payloads and not (payloads[-1].startswith(before) and payloads[-1].endswith(after)):
            del payloads[-1]
        begin, end = self.begin - _PREFIX_BYTES, self.end + _END_BYTES
        raws = [payload[begin:end] for payload in payloads]
        # Built anew around its text no chunk is shorter than it came, so each is the same if all together are.
        is_alike = b"".join(payloads) == b"%b%b%b" % (before, (after + before).join(raws), after)
        # A blank between two texts, so that no two halves make a character.
        row = b" ".join(raws)
        if is_alike and b"\\" not in row and b"" not in raws and _read(row):
            spelled = b"".join(raws)
            text = spelled.decode()
            text_bytes = len(spelled)
        else:
            raws, text = self._read_each(payloads)
            if not raws:
                return None
            text_bytes = utf8_length(text)
        self.tries = MOST_TRIES
        sent_before, sent_after = self.sent_before, self.sent_after
        sent = b"%b%b%b" % (sent_before, (sent_after + sent_before).join(raws), sent_after)
        return len(raws), text, text_bytes, sent

    def _read_each(self, payloads: list[bytes]) -> tuple[list[bytes], str]:
        """Return the texts up to the first chunk that is to be read as ever, as they are spelled and as they are."""
        before, after = self.before[_PREFIX_BYTES:], self.after[:-_END_BYTES]
        begin, end = self.begin - _PREFIX_BYTES, self.end + _END_BYTES
        raws: list[bytes] = []
        texts: list[str] = []
        for payload in payloads:
            raw = payload[begin:end]
            text = _read(raw) if payload.startswith(before) and payload.endswith(after) else ""
            if not text:
                break
            raws.append(raw)
            texts.append(text)
        return raws, "".join(texts)


def _read(raw: bytes) -> str:
    """Return a text as JSON spells it; empty where it is none, or may have to be searched for others (``chunk``)."""
    try:
        text = _text_decoder.decode(b'"%b"' % raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if b"\\" in raw and len(raw) > UNSEEN_FACTOR * len(text) + _SPARE_BYTES:
        return ""
    return text


def _find_text(chunk: Chunk) -> tuple[bytes, bytes] | None:
    """Return the name and the value of the one text of a chunk; None when it has several, or says something else."""
    choices = chunk.choices
    if choices is None or len(choices) != 1 or chunk.x_groq is not None or chunk.usage:
        return None
    if isinstance(chunk, LenientChunk):
        return None  # its text is the JSON of something, and may be spelled under the same name elsewhere
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

"""Tells the events of a stream that differ from one before them in their text alone, which most do, without decoding.

Of a chunk that was read, all but its text is remembered: its event as it came and as it was sent. A later event with
the same bytes around a text says the same but for that text: it parses alike, and goes out alike. What differs in
anything else is read as ever. A row of them is told at once: joined with the same bytes around them, their texts are
what came if all are alike, and joined with others what is sent.

Invariant: what is told here is what decoding would have told, byte for byte. Not here: what a chunk means (``relay``).
"""

from typing import Protocol

import msgspec

from meterhouse.http.chunk import UNSEEN_BYTES, UNSEEN_FACTOR, Chunk, LenientChunk, ToolDelta, is_set
from meterhouse.http.sse import BETWEEN, DATA_PREFIX, EVENT_END, LINE_FEED
from meterhouse.request import utf8_length

MOST_TRIES = 3
"""After so many chunks in a row that were remembered for nothing, a stream is taken for one whose chunks all differ."""
MOST_AT_ONCE = 64
"""So many payloads are told together: a long read whose chunks differ now and then is not copied whole for each."""

_ROLES = (b'"role":"assistant",', b'"role": "assistant", ')
"""What the first chunk of an answer has before its text, and those after it are without."""

Told = tuple[int, str, int, bytes]
"""How many chunks were told, the text of all of them, its length in bytes, and what goes to the client for them."""


class Teller(Protocol):
    """Tells what is passed on while the request's task sleeps."""

    def tell(self, data: bytes) -> Told | None:
        """Tell of events that say nothing but text and are all that came; None where the task has to read them.

        The bytes begin a line, in a stream none of whose lines ends with CR. It never raises.
        """
        ...


_SPARE_BYTES = 16
"""Of what a chunk may have beside a text that is not searched for others: for texts of a few long escapes."""
MOST_BYTES = 4_096
"""A longer read is told payload by payload: to cut it at a long separator, Python prepares each search anew."""

_PADDING = b'"obfuscation"'
"""What OpenAI calls the letters that it puts into each chunk, as many as hide how long its text is."""
_MOST_PADDING_BYTES = 64

_PREFIX_BYTES, _END_BYTES = len(DATA_PREFIX), len(EVENT_END)
_MOST_AROUND_BYTES = UNSEEN_BYTES - _SPARE_BYTES - _MOST_PADDING_BYTES - _PREFIX_BYTES - _END_BYTES
"""A chunk with more around its text may be one that is searched for others (``chunk``)."""
_QUOTE, _BACKSLASH = b'"\\'
_text_decoder = msgspec.json.Decoder(str)


class AlikeChunks(msgspec.Struct):
    """The chunks of one stream."""

    before: bytes = b""
    """What an event has before its text, the quote included; empty: nothing is remembered."""
    after: bytes = b""
    """What it has behind it, up to the end of its empty line; with a padding, up to that."""
    behind_padding: bytes = b""
    """Of an event that has one, the rest."""
    sent_before: bytes = b""
    sent_after: bytes = b""
    begin: int = 0
    """Where the text stands in an event, from its beginning."""
    end: int = 0
    """And from its end: a negative number."""
    tries: int = MOST_TRIES

    def tell(self, data: bytes) -> Told | None:
        """Tell of events that are all that came; None where one is to be read, or what came is not whole, or long.

        The bytes begin a line, in a stream none of whose lines ends with CR.
        """
        before, after = self.before, self.after
        if not before or not data.startswith(before) or len(data) > MOST_BYTES:
            return None
        if self.behind_padding:
            payloads = data[_PREFIX_BYTES:-_END_BYTES].split(BETWEEN)
            told = self._tell_padded(payloads) if data.endswith(self.behind_padding) else None
            return None if told is None or told[0] < len(payloads) else told
        if not data.endswith(after):
            return None
        raw = data[self.begin : self.end]
        if _QUOTE in raw:
            # Several events, or a quote in a text.
            return self._tell_texts(raw.split(after + before))
        text = _read(raw)
        if not text:
            return None
        self.tries = MOST_TRIES
        text_bytes = utf8_length(text) if _BACKSLASH in raw else len(raw)
        return 1, text, text_bytes, b"%b%b%b" % (self.sent_before, raw, self.sent_after)

    def tell_payloads(self, payloads: list[bytes], begin: int) -> Told | None:
        """Tell of the payloads from one on, up to one to be read; None where that one is the first."""
        before = self.before[_PREFIX_BYTES:]
        if not before or not payloads[begin].startswith(before):
            return None
        row = payloads[begin : begin + MOST_AT_ONCE]
        if self.behind_padding:
            return self._tell_padded(row)
        after = self.after[:-_END_BYTES]
        # A read often brings the end of the answer too.
        while row and not (row[-1].startswith(before) and row[-1].endswith(after)):
            del row[-1]
        first, last = self.begin - _PREFIX_BYTES, self.end + _END_BYTES
        raws = [payload[first:last] for payload in row]
        # Built anew around its text no chunk is shorter than it came, so each is the same if all together are.
        if b"".join(row) == b"%b%b%b" % (before, (after + before).join(raws), after):
            told = self._tell_texts(raws)
            if told is not None:
                return told
        for index, payload in enumerate(row):
            if not (payload.startswith(before) and payload.endswith(after) and _read(raws[index])):
                del raws[index:]
                break
        return self._tell_texts(raws) if raws else None

    def learn(self, payload: bytes, chunk: Chunk, sent: bytes) -> None:
        """Remember a chunk that was read, and what went to the client for it, if it says nothing but a text."""
        named = _find_text(chunk) if self.tries else None
        if named is None or LINE_FEED in payload:
            return
        name, text = named
        if len(payload) - len(text) > _MOST_AROUND_BYTES:
            return
        parts, sent_parts = _split(payload, name, text), _split(sent, name, text)
        if parts is None or sent_parts is None:
            return
        is_first = not self.before
        self.tries -= 1
        self.before, self.after = DATA_PREFIX + parts[0], parts[1] + EVENT_END
        self.sent_before, self.sent_after = sent_parts
        self.behind_padding = b""
        if self.after.count(_PADDING):
            self._leave_out_padding()
        if is_first:
            self._leave_out_role()
        self.begin, self.end = len(self.before), -len(self.after)

    def _leave_out_role(self) -> None:
        """Remember the first chunk as those after it will be: without the role, which nobody here reads."""
        for role in _ROLES:
            before, sent_before = self.before.replace(role, b"", 1), self.sent_before.replace(role, b"", 1)
            if before != self.before and sent_before != self.sent_before:
                self.before, self.sent_before = before, sent_before
                return

    def _leave_out_padding(self) -> None:
        """Remember a chunk that has a padding without that."""
        for opening in (_PADDING + b':"', _PADDING + b': "'):
            before, found, rest = self.after.partition(opening)
            padding, quote, behind = rest.partition(b'"')
            if found and _is_padding(padding) and self.sent_after.endswith(opening + rest):
                self.after, self.behind_padding = before + opening, quote + behind
                self.sent_after = self.sent_after.removesuffix(rest)
                return

    def _tell_padded(self, payloads: list[bytes]) -> Told | None:
        """Tell of payloads with a padding, up to one to be read; None where that one is the first."""
        before, after, behind = self.before[_PREFIX_BYTES:], self.after, self.behind_padding
        begin = len(before)
        texts: list[str] = []
        sent: list[bytes] = []
        for payload in payloads:
            said, _, rest = payload.partition(after)
            raw, padding = said[begin:], rest[: _END_BYTES - len(behind)]
            is_alike = said.startswith(before) and rest.endswith(behind[:-_END_BYTES]) and _is_padding(padding)
            text = _read(raw) if is_alike else ""
            if not text:
                break
            texts.append(text)
            sent.append(b"%b%b%b%b%b" % (self.sent_before, raw, self.sent_after, padding, behind))
        if not texts:
            return None
        self.tries = MOST_TRIES
        text = "".join(texts)
        return len(texts), text, utf8_length(text), b"".join(sent)

    def _tell_texts(self, raws: list[bytes]) -> Told | None:
        """Tell of events that are alike but for these texts; None where one of them is to be read."""
        spelled = b"".join(raws)
        if _BACKSLASH not in spelled and b"" not in raws:
            # A blank between two texts, so that no two halves make a character.
            if not (spelled.isascii() or _read(b" ".join(raws))):
                return None
            try:
                text = _text_decoder.decode(b'"%b"' % spelled)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            text_bytes = len(spelled)
        else:
            texts = list(map(_read, raws))
            if "" in texts:
                return None
            text = "".join(texts)
            text_bytes = utf8_length(text)
        self.tries = MOST_TRIES
        sent_before, sent_after = self.sent_before, self.sent_after
        sent = b"%b%b%b" % (sent_before, (sent_after + sent_before).join(raws), sent_after)
        return len(raws), text, text_bytes, sent


def _read(raw: bytes) -> str:
    """Return a text as JSON spells it; empty where it is none, or may have to be searched for others (``chunk``)."""
    try:
        text = _text_decoder.decode(b'"%b"' % raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if _BACKSLASH in raw and len(raw) > UNSEEN_FACTOR * len(text) + _SPARE_BYTES:
        return ""
    return text


def _is_padding(padding: bytes) -> bool:
    return len(padding) <= _MOST_PADDING_BYTES and (not padding or padding.isalnum())


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
    if delta.function_call is not None or delta.refusal is not None or delta.reasoning is not None:
        return None
    if delta.tool_calls is not None:
        return None if delta.content or delta.reasoning_content else _find_arguments(delta.tool_calls)
    # An empty one will do: many servers say nothing in their first chunk.
    if delta.content is not None and not delta.reasoning_content:
        return b'"content"', delta.content.encode("utf-8", "surrogatepass")
    if delta.reasoning_content is not None and not delta.content:
        return b'"reasoning_content"', delta.reasoning_content.encode("utf-8", "surrogatepass")
    return None


def _find_arguments(calls: list[ToolDelta]) -> tuple[bytes, bytes] | None:
    """Return the name and the value of the arguments of one call; None where anything else of a call is said."""
    function = calls[0].function if len(calls) == 1 else None
    if function is None or function.name is not None or not function.arguments or calls[0].custom is not None:
        return None
    return b'"arguments"', function.arguments.encode("utf-8", "surrogatepass")


def _split(payload: bytes, name: bytes, text: bytes) -> tuple[bytes, bytes] | None:
    """Return what stands before and after a text; None where it could be another field's, or is spelled otherwise."""
    # Without an escape in the whole chunk, a name that is there once is the name of the field that was decoded.
    if _BACKSLASH in payload or payload.count(name) != 1:
        return None
    for opening in (name + b':"', name + b': "'):
        before, found, after = payload.partition(b'%b%b"' % (opening, text))
        if found:
            return before + opening, b'"' + after
    return None

"""Tells the chunks of a stream that differ from one before them in their text alone, which most do, without decoding.

Of a chunk that was read, all but its text is remembered, as it came and as it was sent. A later one with the same bytes
around a text of plain characters says the same but for that text: it parses alike, and goes out alike. What differs in
anything else, or whose text has an escape, is read as ever.

Invariant: what is told here is what decoding would have told, byte for byte. Not here: what a chunk means (``relay``).
"""

from collections.abc import Sequence

from meterhouse.http.chunk import UNSEEN_BYTES, Chunk, is_set

MOST_TRIES = 3
"""After so many chunks in a row that were remembered for nothing, a stream is taken for one whose chunks all differ."""


class AlikeChunks:
    """The chunks of one stream."""

    __slots__ = ("_after", "_before", "_sent_after", "_sent_before", "_tries")

    def __init__(self) -> None:
        self._before = self._after = self._sent_before = self._sent_after = b""
        self._tries = MOST_TRIES

    def tell(self, payloads: Sequence[bytes], begin: int) -> tuple[list[str], list[bytes]]:
        """Return the texts of the chunks from one on, and what goes to the client for each, up to one to be read."""
        before, after, sent_before, sent_after = self._before, self._after, self._sent_before, self._sent_after
        texts: list[str] = []
        sent: list[bytes] = []
        if not before:
            return texts, sent
        for position in range(begin, len(payloads)):
            payload = payloads[position]
            if not payload.startswith(before) or not payload.endswith(after):
                break
            raw = payload[len(before) : -len(after)]
            if not raw or b'"' in raw or b"\\" in raw:
                break
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                break
            if not text.isprintable():
                break
            texts.append(text)
            sent.append(sent_before + raw + sent_after)
        if texts:
            self._tries = MOST_TRIES
        return texts, sent

    def learn(self, payload: bytes, chunk: Chunk, sent: bytes) -> None:
        """Remember a chunk that was read, and what went to the client for it, if it says nothing but a text."""
        named = _find_text(chunk) if self._tries else None
        if named is None:
            return
        parts, sent_parts = _split(payload, *named), _split(sent, *named)
        if parts is None or sent_parts is None or len(parts[0]) + len(parts[1]) > UNSEEN_BYTES:
            return
        self._tries -= 1
        self._before, self._after = parts
        self._sent_before, self._sent_after = sent_parts


def _find_text(chunk: Chunk) -> tuple[bytes, bytes] | None:
    """Return the name and the value of the one text of a chunk; None when it has several, or says something else."""
    choices = chunk.choices
    if choices is None or len(choices) != 1 or chunk.x_groq is not None or is_set(chunk.usage):
        return None
    choice = choices[0]
    delta = choice.delta
    if delta is None or choice.finish_reason is not None or is_set(choice.usage) or is_set(delta.audio):
        return None
    if any(said is not None for said in (delta.tool_calls, delta.function_call, delta.refusal, delta.reasoning)):
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

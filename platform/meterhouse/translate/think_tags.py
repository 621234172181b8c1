"""Thoughts that a local model writes into its text as ``<think>...</think>``, as ``reasoning_content``.

Only an answer that begins with the tag (after blanks) is taken for one with thoughts: elsewhere the tag is text. What
may be the beginning of a tag is held back until more of it is there, so that a tag cut into pieces is found; only the
tags, and the blanks around them, are lost. Payloads that need no change pass byte for byte.

Invariant: pure; the same text gives the same result however it is cut. Not here: where it applies (the provider's row).
"""

from typing import Any, Literal, Protocol

import msgspec

OPEN, CLOSE = "<think>", "</think>"

_TOLD_APART = ("reasoning_content", "reasoning", "tool_calls")

_State = Literal["start", "opened", "thinking", "after", "text"]


class Reader(Protocol):
    """What turns a provider's bytes into payloads."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the payloads that they complete."""
        ...

    def close(self) -> list[bytes]:
        """Say that the bytes have ended; returns what was still to come."""
        ...


class ThinkTags:
    """Splits the text of one choice, as it comes."""

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._state: _State = "start"
        self._held = ""

    @property
    def is_over(self) -> bool:
        """Whether everything from here on is text."""
        return self._state == "text"

    def split(self, piece: str) -> tuple[str, str]:
        """Return (reasoning, text) that a piece brings."""
        held, self._held = self._held + piece, ""
        reasoning = ""
        if self._state == "start":
            bare = held.lstrip()
            if not bare.startswith(OPEN):
                if OPEN.startswith(bare):
                    self._held = held
                    return "", ""
                self._state = "text"
                return "", held
            self._state, held = "opened", bare.removeprefix(OPEN)
        if self._state == "opened":
            held = held.lstrip("\n")
            if held:
                self._state = "thinking"
        if self._state == "thinking":
            reasoning, found, held = held.partition(CLOSE)
            if not found:
                keep = _length_of_beginning(reasoning)
                self._held = reasoning[len(reasoning) - keep :]
                return reasoning[: len(reasoning) - keep], ""
            self._state = "after"
        if self._state == "after":
            held = held.lstrip()
            if held:
                self._state = "text"
        return reasoning, held

    def give_up(self) -> None:
        """Take everything for text: the server has told thoughts from text itself."""
        if self._state == "start" and not self._held:
            self._state = "text"

    def finish(self) -> tuple[str, str]:
        """Return what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        is_thinking = self._state in {"opened", "thinking"}
        self._state = "text"
        return (held, "") if is_thinking else ("", held)


def _length_of_beginning(text: str) -> int:
    """Return how much of the end of a text may be the beginning of the closing tag."""
    longest = min(len(CLOSE) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if CLOSE.startswith(text[-length:])), 0)


class ThinkTagReader:
    """Wraps the reader of a streamed answer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._choices: dict[int, ThinkTags] = {}

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the payloads that they complete. Raises as the reader does."""
        return self._read_all(self._reader.feed(data))

    def close(self) -> list[bytes]:
        """Say that the bytes have ended; returns what was still to come. Raises as the reader does."""
        return self._read_all(self._reader.close())

    def _read_all(self, payloads: list[bytes]) -> list[bytes]:
        return [read for payload in payloads if (read := self._read(payload))]

    def _read(self, payload: bytes) -> bytes:
        """Return a payload told apart; empty: all that it said is held back."""
        if self._choices and all(tags.is_over for tags in self._choices.values()):
            # A choice that begins later than all others ended is not looked at: none was ever seen.
            return payload
        try:
            chunk = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return payload  # [DONE], or garbage, which others deal with
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        rows = [choice for choice in choices or () if isinstance(choice, dict)]
        changes = [self._split(choice) for choice in rows]
        if not any(changes):
            return payload
        says_nothing = not chunk.get("usage") and not any(row.get("delta") or row.get("finish_reason") for row in rows)
        return b"" if says_nothing else msgspec.json.encode(chunk)

    def _split(self, choice: dict[str, Any]) -> bool:
        delta, index = choice.get("delta"), choice.get("index", 0)
        if not isinstance(delta, dict) or not isinstance(index, int):
            return False
        tags = self._choices.setdefault(index, ThinkTags())
        if any(delta.get(name) for name in _TOLD_APART):
            tags.give_up()
        said = delta.get("content")
        piece = said if isinstance(said, str) else ""
        reasoning, text = tags.split(piece) if piece else ("", "")
        if choice.get("finish_reason"):
            more_reasoning, more_text = tags.finish()
            reasoning, text = reasoning + more_reasoning, text + more_text
        if text == piece and not reasoning:
            return False
        delta.pop("content", None)
        if text:
            delta["content"] = text
        if reasoning:
            delta["reasoning_content"] = reasoning
        return True


def split_whole(body: bytes) -> bytes:
    """Return an answer that is not streamed with its thoughts apart; one without, or that is none, as it is."""
    if b"think>" not in body:
        return body
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    choices = answer.get("choices") if isinstance(answer, dict) else None
    changes = [_split_message(choice.get("message")) for choice in choices or () if isinstance(choice, dict)]
    return msgspec.json.encode(answer) if any(changes) else body


def _split_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str) or message.get("reasoning_content"):
        return False
    tags = ThinkTags()
    reasoning, text = tags.split(message["content"])
    more_reasoning, more_text = tags.finish()
    if not (reasoning or more_reasoning):
        return False
    message["content"], message["reasoning_content"] = text + more_text, reasoning + more_reasoning
    return True

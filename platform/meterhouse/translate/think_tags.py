"""Thoughts that a local model writes into its text as ``<think>...</think>``, as ``reasoning_content``.

Only an answer that begins with the tag (after blanks) is taken for one with thoughts: elsewhere the tag is text. What
may be the beginning of a tag is held back until more of it is there, so that a tag cut into pieces is found; only the
tags, and the blanks around them, are lost. Payloads that need no change pass byte for byte.

Invariant: pure; the same text gives the same result however it is cut; what is held back is short. Not here: where it
applies (the provider's row), what is counted and billed: that is what the provider sent, blanks and tags included.
"""

from typing import Any, Literal

import msgspec

from meterhouse.translate.said import choices_of, object_in

OPEN, CLOSE = "<think>", "</think>"
TAG_END = b"think>"
"""What both end with: there are no thoughts in a body without it."""

MOST_BLANKS = 256
"""So many blanks may come before the tag; an answer that begins with more is one without thoughts."""
MAX_CHOICES = 128
"""No request has more choices (wire.md 1.2); those beyond it pass as they came."""

Held = list[tuple[int, str, str]]
"""Per choice what is held back: (index, reasoning, text)."""

_TOLD_APART = ("reasoning_content", "reasoning", "tool_calls")
_SAYING = ("delta", "finish_reason", "logprobs", "usage")

_State = Literal["start", "opened", "thinking", "after", "text"]


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
            if is_no_tag(held):
                self._state = "text"
                return "", held
            bare = held.lstrip()
            if not bare.startswith(OPEN):
                self._held = held
                return "", ""
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

    def waiting(self) -> tuple[str, str]:
        """Return what is held back, as the (reasoning, text) that it is if nothing follows."""
        return (self._held, "") if self._state in {"opened", "thinking"} else ("", self._held)

    def finish(self) -> tuple[str, str]:
        """Return what was held back, at the end of the answer."""
        held = self.waiting()
        self._state, self._held = "text", ""
        return held


def is_no_tag(text: str) -> bool:
    """Whether an answer that begins so, after blanks, is one without thoughts, whatever comes next."""
    bare = text.lstrip()
    if bare and bare[0] != OPEN[0]:
        return True
    return len(text) - len(bare) > MOST_BLANKS or not (bare.startswith(OPEN) or OPEN.startswith(bare))


def _length_of_beginning(text: str) -> int:
    """Return how much of the end of a text may be the beginning of the closing tag."""
    longest = min(len(CLOSE) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if CLOSE.startswith(text[-length:])), 0)


class ThoughtsApart:
    """One streamed answer, of so many choices as were asked for."""

    def __init__(self, choices: int) -> None:
        self._asked = choices
        self._choices: dict[int, ThinkTags] = {}

    @property
    def is_over(self) -> bool:
        """Whether everything from here on passes as it comes: every choice that was asked for says its text."""
        choices = self._choices
        # By their names: a server may have others, and choices that said nothing yet need not be known here.
        return all(index in choices for index in range(self._asked)) and all(tags.is_over for tags in choices.values())

    def waiting(self) -> Held:
        """Return what is held back, cheaply."""
        return [(index, *held) for index, tags in self._choices.items() if any(held := tags.waiting())]

    def rewrite_chunk(self, payload: bytes) -> bytes:
        """Return the payload to send instead of one of a stream; empty: all that it said is held back."""
        try:
            chunk = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return payload
        rows = choices_of(object_in(chunk))
        changes = [self._split(choice) for choice in rows]
        if not any(changes):
            return payload
        says_nothing = not chunk.get("usage") and not any(row.get(name) for row in rows for name in _SAYING)
        return b"" if says_nothing else msgspec.json.encode(chunk)

    def _split(self, choice: dict[str, Any]) -> bool:
        delta, index = choice.get("delta"), choice.get("index", 0)
        if delta is None and choice.get("finish_reason"):
            delta = {}  # some servers say nothing but the finish; what was held back comes with it all the same
        if not isinstance(delta, dict) or not isinstance(index, int):
            return False
        tags = self._tags(index)
        if tags is None:
            return False
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
        choice["delta"] = delta
        delta.pop("content", None)
        if text:
            delta["content"] = text
        if reasoning:
            delta["reasoning_content"] = reasoning
        return True

    def _tags(self, index: int) -> ThinkTags | None:
        tags = self._choices.get(index)
        if tags is None and len(self._choices) < MAX_CHOICES:
            tags = self._choices[index] = ThinkTags()
        return tags


def split_whole(body: bytes) -> bytes:
    """Return an answer that is not streamed with its thoughts apart; one without, or that is none, as it is."""
    if TAG_END not in body:
        return body
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    changes = [_split_message(choice.get("message")) for choice in choices_of(object_in(answer))]
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

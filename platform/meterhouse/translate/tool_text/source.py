"""An answer's text as it comes, and the steps with which a grammar reads it.

Each step is a generator: it yields where the text that is here does not decide, and goes on when more has come. What
a grammar has read is held until it is dropped (it was a call) or released (it was none). Every character is looked at
once, but for a word that may be cut in two, so the time is linear however the text is cut; and what is found does not
depend on the cuts. Not here: what a call looks like (a family's file), what happens with text (``parser``).
"""

import re
from collections.abc import Generator, Iterable
from enum import StrEnum
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Steps = Generator[None, None, Result]

MAX_HELD_CHARACTERS = 262_144
"""No call is longer: what goes on beyond this is text."""

MAX_WORD_CHARACTERS = 256

_BLANKS = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_WORD = re.compile(r"[\w.:-]*")


class Reason(StrEnum):
    """Why something is not a call."""

    MALFORMED = "malformed"
    UNKNOWN_FUNCTION = "unknown_function"
    UNFINISHED = "unfinished"
    TOO_LONG = "too_long"


class Mismatch(Exception):
    """What is read is no call; the source stands at the first character that does not fit."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class KnowsNames(Protocol):
    """The names that may be called."""

    def is_name(self, name: str) -> bool:
        """Whether a function has this name."""
        ...

    def begins_name(self, text: str) -> bool:
        """Whether a function's name begins with this."""
        ...


class Scanner(Protocol):
    """Recognises a value character by character."""

    is_done: bool
    is_broken: bool

    def scan(self, text: str, at: int, end: int) -> int:
        """Go on in ``text`` from ``at``, at most to ``end``; returns the index after what belongs to the value."""
        ...


class Words:
    """Words that are looked for in a text; none of them begins another."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self.longest = max((len(word) for word in self.words), default=0)
        self._pattern = re.compile("|".join(map(re.escape, self.words)) or r"(?!)")
        self._firsts = frozenset(word[0] for word in self.words)

    def find(self, text: str, at: int, end: int) -> re.Match[str] | None:
        """Return the first of the words in a part of a text."""
        return self._pattern.search(text, at, end)

    def at(self, text: str, at: int, end: int) -> str | None:
        """Return the word that is here, ``""`` where none is, None while one may still come."""
        found = self._pattern.match(text, at, end)
        if found is not None:
            return found[0]
        return None if end - at < self.longest and self.begins(text[at:end]) else ""

    def begins(self, text: str) -> bool:
        """Whether a text is the beginning of a word."""
        return any(word.startswith(text) for word in self.words)

    def cut_length(self, text: str, at: int, end: int) -> int:
        """Return how many characters at the end may be the beginning of a word."""
        for begin in range(max(at, end - self.longest + 1), end):
            if text[begin] in self._firsts and self.begins(text[begin:end]):
                return end - begin
        return 0


class Source:
    """The text: ``feed`` adds to it, grammars read on in it."""

    def __init__(self) -> None:
        self._text = ""
        self._start = 0
        """Where in ``_text`` that begins which is held; before it, ``_held`` has pieces of earlier texts."""
        self._at = 0
        self._held: list[str] = []
        self._held_characters = 0
        self.is_over = False
        self.is_cut = False
        """The answer ended where its bound was, and not where the model wanted."""
        self.is_committed = False
        """What is held can hardly be anything but a call, so that it counts as a failure if it is none."""

    def feed(self, text: str) -> None:
        """Add text at the end."""
        if self._at > self._start:
            self._hold()
        self._text = self._text[self._at :] + text
        self._start = self._at = 0

    def waiting(self) -> tuple[list[str], int, str]:
        """Return what is held and not read yet, cheaply: the list only grows, so its length is as good as a copy."""
        return self._held, len(self._held), self._text[self._start :]

    def is_at_end(self) -> bool:
        """Whether everything was read, and nothing more will come."""
        return self.is_over and self._at == len(self._text)

    def begin(self) -> None:
        """Hold from here on; what was held before is dropped."""
        if self._held:
            # A new list: a snapshot may still look at the old one.
            self._held = []
            self._held_characters = 0
        self._start = self._at
        self.is_committed = False

    def commit(self) -> None:
        """Say that what is held is meant to be a call."""
        self.is_committed = True

    def release(self) -> str:
        """Return what was held, and hold from here on."""
        text = "".join([*self._held, self._text[self._start : self._at]])
        self.begin()
        return text

    def blanks(self) -> Steps[None]:
        """Read white space."""
        while True:
            end = self._end
            found = _BLANKS.match(self._text, self._at, end)
            assert found is not None
            self._at = found.end()
            if self._at < end or not (yield from self._more()):
                return

    def peek(self) -> Steps[str]:
        """Return the next character without reading it; ``""`` at the end of the answer."""
        while self._at >= self._end:
            if not (yield from self._more()):
                return ""
        return self._text[self._at]

    def accept(self, words: Words) -> Steps[str]:
        """Read one of several words; ``""``, and nothing read, where none is here."""
        while True:
            found = words.at(self._text, self._at, self._end)
            if found is None and (yield from self._more()):
                continue
            self._at += len(found or "")
            return found or ""

    def expect(self, words: Words) -> Steps[str]:
        """Read one of several words.

        Raises:
            Mismatch: None of them is here.
        """
        found = yield from self.accept(words)
        if not found:
            raise Mismatch(Reason.UNFINISHED if self.is_at_end() else Reason.MALFORMED)
        return found

    def until(self, words: Words) -> Steps[tuple[str, str]]:
        """Read up to the first of several words and past it; returns what was before it, and it (``""``: the end)."""
        pieces: list[str] = []
        while True:
            end = self._end
            found = words.find(self._text, self._at, end)
            if found is not None:
                pieces.append(self._text[self._at : found.start()])
                self._at = found.end()
                return "".join(pieces), found[0]
            stop = end - words.cut_length(self._text, self._at, end)
            pieces.append(self._text[self._at : stop])
            self._at = stop
            if not (yield from self._more()):
                pieces.append(self._text[stop:end])
                self._at = end
                return "".join(pieces), ""

    def name(self, names: KnowsNames) -> Steps[str]:
        """Read the name of a function.

        Raises:
            Mismatch: What is here is none, or goes on as none does.
        """
        while True:
            end = self._end
            found = _NAME.match(self._text, self._at, end)
            assert found is not None
            if not names.begins_name(found[0]):
                raise Mismatch(Reason.UNKNOWN_FUNCTION)
            if found.end() < end or not (yield from self._more()):
                break
        if not names.is_name(found[0]):
            raise Mismatch(Reason.UNFINISHED if self.is_over and found.end() == end else Reason.UNKNOWN_FUNCTION)
        self._at = found.end()
        return found[0]

    def word(self) -> Steps[str]:
        """Read letters, digits and ``_.:-``, at least one; what they mean is for the caller to say.

        Raises:
            Mismatch: There are none, or more than such a word has.
        """
        while True:
            end = self._end
            found = _WORD.match(self._text, self._at, end)
            assert found is not None
            if found.end() - self._at > MAX_WORD_CHARACTERS:
                raise Mismatch(Reason.MALFORMED)
            if found.end() < end or not (yield from self._more()):
                break
        if not found[0]:
            raise Mismatch(Reason.UNFINISHED if self.is_at_end() else Reason.MALFORMED)
        self._at = found.end()
        return found[0]

    def value(self, scanner: Scanner) -> Steps[str]:
        """Read what a scanner recognises, as it is written.

        Raises:
            Mismatch: It is no such value, or the answer ended within it.
        """
        pieces: list[str] = []
        while True:
            at = self._at
            self._at = scanner.scan(self._text, at, self._end)
            pieces.append(self._text[at : self._at])
            if scanner.is_done:
                return "".join(pieces)
            if scanner.is_broken:
                raise Mismatch(Reason.MALFORMED)
            if not (yield from self._more()):
                raise Mismatch(Reason.UNFINISHED)

    def skim(self, words: Words, into: list[str]) -> Steps[str]:
        """Hand text on as it comes, up to the first of several words, which is read and held; ``""`` at the end."""
        while True:
            end = len(self._text)
            found = words.find(self._text, self._at, end)
            stop = found.start() if found is not None else end
            if found is None and not self.is_over:
                stop -= words.cut_length(self._text, self._at, end)
            if stop > self._at:
                into.append(self._text[self._at : stop])
                self._at = stop
            self.begin()
            if found is not None:
                self._at = found.end()
                return found[0]
            if self.is_over:
                return ""
            yield

    @property
    def _end(self) -> int:
        """How far a grammar may look: to the end of the text, or to the bound of what is held."""
        return min(len(self._text), self._start + MAX_HELD_CHARACTERS - self._held_characters)

    def _more(self) -> Steps[bool]:
        """Wait for more text; False when none will come.

        Raises:
            Mismatch: So much is held that it is no call.
        """
        if self._end < len(self._text) or self._held_characters + len(self._text) - self._start >= MAX_HELD_CHARACTERS:
            self._at = self._end
            raise Mismatch(Reason.TOO_LONG)
        if self.is_over:
            return False
        yield
        return True

    def _hold(self) -> None:
        self._held.append(self._text[self._start : self._at])
        self._held_characters += self._at - self._start

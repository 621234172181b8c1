"""Splits the text of one choice into what is said and what is called, while it comes.

Text is handed on at once, but for the end of it that may be the beginning of a call, and for what a grammar is reading.
What turns out to be no call comes back as the text that it was. Calls are not looked for in fenced code, nor in a
leading ``<think>`` block. Not here: how a family writes (its file), the answer around the text (``answer``).
"""

from collections import Counter
from collections.abc import Iterator

from meterhouse.translate.tool_text.grammar import Grammar
from meterhouse.translate.tool_text.source import Mismatch, Source, Steps, Words
from meterhouse.translate.tool_text.tools import Call, Tools

Piece = str | Call
"""Text, or a call."""

PARSED = "parsed"
MAX_BLANKS = 4_096
"""So many blanks in a row are kept back where blanks around an answer mean nothing; more of them are text."""

_FENCE = "```"
_THINK = "<think>"
_LEADS = Words([_FENCE])
_FIRST_LEADS = Words([_FENCE, _THINK])
_FENCE_END = Words([_FENCE])
_THINK_END = Words(["</think>"])


class Trimmer:
    """Takes the white space around a text away, while it comes."""

    def __init__(self) -> None:
        self._has_begun = False
        self._blanks: list[str] = []
        self._blank_characters = 0

    def feed(self, text: str) -> str:
        """Take text; returns what is surely not the end's white space."""
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        kept = text.rstrip()
        blanks = text[len(kept) :]
        if kept:
            kept = self._pop() + kept
        self._blanks.append(blanks)
        self._blank_characters += len(blanks)
        if self._blank_characters >= MAX_BLANKS:
            waiting = self._pop()
            whole = len(waiting) // MAX_BLANKS * MAX_BLANKS
            kept += waiting[:whole]
            self._blanks, self._blank_characters = [waiting[whole:]], len(waiting) - whole
        return kept

    def drop(self) -> None:
        """Forget the white space at the end: a call follows."""
        self._pop()

    def _pop(self) -> str:
        blanks = "".join(self._blanks)
        self._blanks, self._blank_characters = [], 0
        return blanks


class ToolTextParser:
    """One choice's text. ``results`` counts what was found, by ``parsed`` or the reason that it was no call."""

    def __init__(self, grammar: Grammar, tools: Tools) -> None:
        self._grammar = grammar
        self._tools = tools
        self._source = Source()
        self._markers = Words(grammar.markers)
        self._openers = Words([*grammar.markers, f"\n{_FENCE}"])
        self._trimmer = Trimmer() if grammar.trims else None
        self._said: list[str] = []
        self._pieces: list[Piece] = []
        self._steps: Iterator[None] = self._run()
        self.results: Counter[str] = Counter()
        self.is_over = False

    @property
    def calls(self) -> int:
        """How many calls there were so far."""
        return self.results[PARSED]

    def feed(self, text: str) -> list[Piece]:
        """Take text as it comes; returns the pieces that it decides."""
        self._source.feed(text)
        return self._advance()

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        """Say that the text has ended, or was cut at its bound; returns what was still held."""
        if self.is_over:
            return []
        self.is_over = True
        self._source.is_cut = is_cut
        self._source.is_over = True
        return self._advance()

    def waiting(self) -> tuple[list[str], int, str]:
        """Return what came and is neither said nor called yet, as ``Source.waiting`` does."""
        return self._source.waiting()

    def add(self, call: Call) -> None:
        """Take a call from the grammar."""
        self.results[PARSED] += 1
        self._say_all()
        if self._trimmer is not None:
            self._trimmer.drop()
        self._pieces.append(call)
        self._source.begin()

    def _advance(self) -> list[Piece]:
        next(self._steps, None)
        self._say_all()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _say_all(self) -> None:
        text = "".join(self._said)
        self._said.clear()
        if text and self._trimmer is not None:
            text = self._trimmer.feed(text)
        if text:
            self._pieces.append(text)

    def _run(self) -> Steps[None]:
        """Go on through the text for as long as there is some."""
        source = self._source
        is_fresh = True
        while not source.is_at_end():
            marker = ""
            try:
                if is_fresh:
                    is_fresh = yield from self._lead()
                if is_fresh and not source.is_at_end():
                    marker = yield from source.accept(self._markers)
                if not marker and not (is_fresh and self._grammar.is_bare):
                    self._say_held()
                    marker = yield from self._skim()
                    if not marker:
                        break
                if not source.is_at_end() or marker:
                    yield from self._read(marker)
                    is_fresh = True
            except Mismatch as mismatch:
                if source.is_committed:
                    self.results[mismatch.reason.value] += 1
                self._say_held()
                is_fresh = False
        self._say_held()

    def _lead(self) -> Steps[bool]:
        """Read the white space before a place where a call may begin; False where code is fenced instead."""
        source = self._source
        has_called = self.calls > 0
        yield from source.blanks()
        if has_called:
            # White space between calls, and after them, says nothing.
            source.begin()
        found = yield from source.accept(_LEADS if has_called else _FIRST_LEADS)
        if not found:
            return True
        self._say_held()
        yield from self._pass(_FENCE_END if found == _FENCE else _THINK_END)
        return (yield from self._lead()) if found == _THINK else False

    def _skim(self) -> Steps[str]:
        """Hand text on up to the next marker, past fenced code; ``""`` at the end."""
        while True:
            opener = yield from self._source.skim(self._openers, self._said)
            if opener != f"\n{_FENCE}":
                return opener
            self._say_held()
            yield from self._pass(_FENCE_END)

    def _pass(self, end: Words) -> Steps[None]:
        """Hand text on up to a word, and the word."""
        yield from self._source.skim(end, self._said)
        self._say_held()

    def _read(self, marker: str) -> Steps[None]:
        """Let the grammar read.

        Raises:
            Mismatch: What it began to read is no call.
        """
        if marker and not self._grammar.is_bare:
            self._source.commit()
        yield from self._grammar.read(self._source, self._tools, self, marker)
        # What it read behind its last call are marks that end it.
        self._source.begin()

    def _say_held(self) -> None:
        self._said.append(self._source.release())

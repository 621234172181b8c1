"""Recognises a value of JSON, or a literal of Python, while it comes: each character once, and strictly.

The first character that cannot be a part of the value breaks the scan, so that text that only begins like a call is
let go at once. Not here: what the value is; once it is whole, ``msgspec`` or ``python_value`` read it.
"""

import ast
import re
from collections.abc import Collection, Iterator
from enum import Enum, auto
from typing import Any

from msgspec import Raw

MAX_DEPTH = 100
MAX_TOKEN_CHARACTERS = 128
"""A number is not longer."""

_BLANKS = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r"[-+.\w]*")
_NUMBER_BEGINS = re.compile(r"-?(?:0|[1-9]\d*)?(?:(?<=\d)\.\d*)?(?:(?<=\d)[eE][-+]?\d*)?", re.ASCII)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_JSON_ESCAPES = frozenset('"\\/bfnrtu')
_UNKNOWN_ESCAPE = re.compile(r"""\\([^\\'"abfnrtvxuUN01234567\n])|\\.""", re.DOTALL)
_PYTHON_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


class _Next(Enum):
    """What may come next."""

    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()
    IN_STRING = auto()
    IN_ESCAPE = auto()
    IN_TOKEN = auto()


class LiteralScanner:
    """Scans one value. ``keys``: only these may be the keys of an object that is the value itself."""

    def __init__(self, *, is_python: bool = False, keys: Collection[str] = ()) -> None:
        self._is_python = is_python
        self._quotes = "\"'" if is_python else '"'
        self._openers = "{[(" if is_python else "{["
        self._words = tuple(_PYTHON_WORDS) if is_python else ("true", "false", "null")
        self._keys = keys
        self._key = ""
        self._stack: list[str] = []
        self._next = _Next.VALUE
        self._quote = ""
        self._is_key = False
        self._token = ""
        self.has_key = False
        """Whether one of ``keys`` was read."""
        self.is_done = False
        self.is_broken = False

    def scan(self, text: str, at: int, end: int) -> int:
        """Go on in ``text`` from ``at``, at most to ``end``; returns the index after what belongs to the value."""
        while at < end and not (self.is_done or self.is_broken):
            if self._next is _Next.IN_STRING:
                at = self._scan_string(text, at, end)
            elif self._next is _Next.IN_ESCAPE:
                at = self._take_if(self._is_python or text[at] in _JSON_ESCAPES, _Next.IN_STRING, at)
            elif self._next is _Next.IN_TOKEN:
                at = self._scan_token(text, at, end)
            else:
                found = _BLANKS.match(text, at, end)
                at = found.end() if found is not None else at
                if at < end:
                    at = self._scan_mark(text[at], at)
        return at

    def _take_if(self, is_good: bool, then: _Next, at: int) -> int:
        if not is_good:
            self.is_broken = True
            return at
        self._next = then
        return at + 1

    def _scan_string(self, text: str, at: int, end: int) -> int:
        found = _STRINGS[self._quote].match(text, at, end)
        stop = found.end() if found is not None else at
        if self._is_key and self._keys and len(self._stack) == 1:
            self._key += text[at : min(stop, at + MAX_TOKEN_CHARACTERS)]
            if not any(key.startswith(self._key) for key in self._keys):
                self.is_broken = True
                return at
        if stop == end:
            return stop
        if text[stop] == "\\":
            return self._take_if(True, _Next.IN_ESCAPE, stop)
        if text[stop] != self._quote or (self._key and self._key not in self._keys):
            self.is_broken = True
            return stop
        self.has_key = self.has_key or bool(self._key)
        self._key = ""
        self._end_value()
        if self._is_key:
            self._is_key = False
            self._next = _Next.COLON
        return stop + 1

    def _scan_token(self, text: str, at: int, end: int) -> int:
        found = _TOKEN.match(text, at, end)
        stop = found.end() if found is not None else at
        self._token += text[at : min(stop, at + MAX_TOKEN_CHARACTERS + 1)]
        begins = _NUMBER_BEGINS.fullmatch(self._token) or any(word.startswith(self._token) for word in self._words)
        if not begins or len(self._token) > MAX_TOKEN_CHARACTERS:
            self.is_broken = True
        elif stop < end:
            if _NUMBER.fullmatch(self._token) or self._token in self._words:
                self._token = ""
                self._end_value()
            else:
                self.is_broken = True
        return stop

    def _scan_mark(self, mark: str, at: int) -> int:
        awaited = self._next
        if awaited is _Next.COLON:
            return self._take_if(mark == ":", _Next.VALUE, at)
        if mark in _CLOSERS.values() and self._stack and mark == self._stack[-1]:
            if awaited in {_Next.VALUE_OR_END, _Next.KEY_OR_END, _Next.COMMA_OR_END}:
                self._stack.pop()
                self._end_value()
                return at + 1
        elif awaited is _Next.COMMA_OR_END:
            return self._take_if(mark == ",", self._after_comma(), at)
        elif mark in self._quotes:
            self._is_key = awaited in {_Next.KEY, _Next.KEY_OR_END}
            self._quote = mark
            return self._take_if(True, _Next.IN_STRING, at)
        elif awaited in {_Next.VALUE, _Next.VALUE_OR_END}:
            return self._begin_value(mark, at)
        self.is_broken = True
        return at

    def _begin_value(self, mark: str, at: int) -> int:
        if mark in self._openers and len(self._stack) < MAX_DEPTH:
            self._stack.append(_CLOSERS[mark])
            return self._take_if(True, _Next.KEY_OR_END if mark == "{" else _Next.VALUE_OR_END, at)
        self._next = _Next.IN_TOKEN
        # The token is read from its first character on by the next round.
        self.is_broken = not _TOKEN.fullmatch(mark)
        return at

    def _after_comma(self) -> _Next:
        if self._stack[-1] == "}":
            return _Next.KEY_OR_END if self._is_python else _Next.KEY
        return _Next.VALUE_OR_END if self._is_python else _Next.VALUE

    def _end_value(self) -> None:
        self._next = _Next.COMMA_OR_END
        self.is_done = not self._stack


_STRINGS = {'"': re.compile(r'[^"\\\x00-\x1f]*'), "'": re.compile(r"[^'\\\x00-\x1f]*")}

_PYTHON_TOKENS = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[-+.\w]+|[][(){},:])""", re.DOTALL)


def python_value(text: str) -> Any:
    """Read a literal that a Python scanner has recognised; its numbers stay as written, its tuples are lists.

    Raises:
        ValueError: A string has an escape that means nothing.
    """
    tokens = iter(_PYTHON_TOKENS.findall(text))
    return _read_value(next(tokens), tokens)


def _read_value(token: str, tokens: Iterator[str]) -> Any:
    match token:
        case "{":
            return _read_entries(tokens)
        case "[" | "(":
            return _read_items(tokens)
        case _ if token in _PYTHON_WORDS:
            return _PYTHON_WORDS[token]
    if token[0] not in "\"'":
        return Raw(token.encode())
    try:
        # One string: nothing is nested, so the parser's stack is not at stake. Python says of ``\\d`` that it is a
        # backslash and a d, and warns.
        return ast.literal_eval(_UNKNOWN_ESCAPE.sub(_escape_again, token))
    except SyntaxError as error:
        raise ValueError(str(error)) from None


def _escape_again(found: re.Match[str]) -> str:
    return "\\" + found[0] if found[1] else found[0]


def _read_entries(tokens: Iterator[str]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key in tokens:
        if key == "}":
            break
        if key != ",":
            next(tokens)
            entries[_read_value(key, tokens)] = _read_value(next(tokens), tokens)
    return entries


def _read_items(tokens: Iterator[str]) -> list[Any]:
    items: list[Any] = []
    for item in tokens:
        if item in {"]", ")"}:
            break
        if item != ",":
            items.append(_read_value(item, tokens))
    return items

"""Reading an nginx.conf as far as its directives go: words, blocks, includes, and what a place inherits.

Invariant: nothing is judged here (``checkup.edge``), and nothing is run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<mark>[{};])|"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:\\.|[^'\\])*)'|(?P<word>[^\s;{}"'][^\s;{]*)"""
)
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
MOST_INCLUDES = 100
ADDED_UP = frozenset({"proxy_set_header"})
"""Directives that may stand several times in a place, and are inherited only by places that have none."""


class ConfError(Exception):
    """The file cannot be read as an nginx.conf."""


@dataclass
class Directive:
    """One directive, with its block if it has one."""

    name: str
    words: list[str]
    block: "list[Directive]" = field(default_factory=list)

    def find(self, name: str) -> "Iterator[Directive]":
        """Find the directives of a name in the block, however deep."""
        for inner in self.block:
            if inner.name == name:
                yield inner
            yield from inner.find(name)


@dataclass(frozen=True)
class Place:
    """A block that passes requests on, and what is in force there: each directive's words, the last one's first."""

    passes_to: str
    in_force: Mapping[str, list[list[str]]]

    def value(self, name: str, default: str) -> str:
        """Return the first word of a directive."""
        return self.in_force[name][0][0] if name in self.in_force else default


def read_conf(path: Path) -> Directive:
    """Read a file and what it includes, as the block of a nameless directive.

    Raises:
        ConfError: It cannot be read.
    """
    return Directive("", [], _Reader(path.absolute().parent).read(path))


def find_places(root: Directive) -> Iterator[Place]:
    """Find each block with a ``proxy_pass``."""
    yield from _places(root, {})


def bytes_of(text: str) -> int:
    """Read ``20m`` as bytes; raises ConfError."""
    found = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if not found:
        raise ConfError(f"'{text}' is no size")
    return int(found[1]) * _SIZES[found[2]]


def seconds_of(text: str) -> float:
    """Read ``1m30s`` as seconds; raises ConfError."""
    pieces = re.findall(r"(\d+)(ms|[smhd]?)", text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise ConfError(f"'{text}' is no duration")
    return sum(int(number) * _SECONDS[unit] for number, unit in pieces)


def _places(directive: Directive, inherited: Mapping[str, list[list[str]]]) -> Iterator[Place]:
    own: dict[str, list[list[str]]] = {}
    for inner in directive.block:
        if inner.words and not inner.block:
            earlier = own.get(inner.name, []) if inner.name in ADDED_UP else []
            own[inner.name] = [inner.words, *earlier]
    passes_to = own.pop("proxy_pass", None)
    in_force = {**inherited, **own}
    if passes_to is not None:
        yield Place(passes_to[0][0], in_force)
    for inner in directive.block:
        if inner.block:
            yield from _places(inner, in_force)


class _Reader:
    """Reads files into blocks; one for all that a file includes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._included = 0

    def read(self, path: Path) -> list[Directive]:
        """Read one file."""
        self._included += 1
        if self._included > MOST_INCLUDES:
            raise ConfError(f"more than {MOST_INCLUDES} files are included")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfError(f"{path} cannot be read: {error}") from None
        blocks: list[list[Directive]] = [[]]
        words: list[str] = []
        for piece, is_mark in _split(text, path):
            if not is_mark:
                words.append(piece)
                continue
            self._end(piece, words, blocks, path)
            words = []
        if words or len(blocks) > 1:
            raise ConfError(f"{path} ends in the middle of a directive")
        return blocks[0]

    def _end(self, mark: str, words: list[str], blocks: list[list[Directive]], path: Path) -> None:
        """Take what a mark ends: a directive, the head of a block, or a block."""
        if mark == "}" and not words and len(blocks) > 1:
            blocks.pop()
        elif mark == "}" or not words:
            raise ConfError(f"{path}: '{mark}' stands where it cannot")
        elif mark == ";" and words[0] == "include":
            pattern = str(self._folder / words[-1])
            for name in sorted(Path("/").glob(pattern.lstrip("/"))):
                blocks[-1] += self.read(name)
        else:
            blocks[-1].append(Directive(words[0], words[1:]))
            if mark == "{":
                blocks.append(blocks[-1][-1].block)


def _split(text: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Split a text into words and marks."""
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ConfError(f"{path}: line {text.count(chr(10), 0, position) + 1} cannot be read")
        position = found.end()
        if found["mark"]:
            yield found["mark"], True
        elif (word := found["word"] or found["double"] or found["single"]) is not None:
            yield word, False
        elif found[0][:1] in {'"', "'"}:
            yield "", False

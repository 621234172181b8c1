"""Seals: what a row of the ledger hashes to, and whether rows continue one another without a gap.

The rows of an organization form a chain: each seal is the SHA-256 of everything in its row, of its place, and of the
seal before it. Whoever holds one seal can therefore prove every row before it.

Invariant: two different rows, or one row at two places, never encode to the same bytes; what a version hashes never
changes. Not here: the database (``db.seals``), files and signatures (``export``).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import cast

VERSION = 1
FIRST_PREVIOUS_HASH = ""
"""What the first row of an organization continues."""

Value = str | int | bool | None


class Kind(StrEnum):
    """What was sealed."""

    USAGE = "usage"
    ADJUSTMENT = "adjustment"


COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        Kind.USAGE: (
            *("request_id", "attempt", "requests", "organization_id", "project_id", "key_id", "root_key_id", "model"),
            *("served_model", "provider", "deployment", "upstream_model", "operation", "service_tier", "outcome"),
            *("exactness", "error_owner", "error_code", "is_streamed", "is_suspect", "input_tokens"),
            *("cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "input_audio_tokens"),
            *("output_audio_tokens", "price_id", "charge_nanos", "input_nanos", "cached_input_nanos"),
            *("cache_write_nanos", "output_nanos", "input_audio_nanos", "output_audio_nanos", "request_nanos"),
            *("overrun_nanos", "admitted_at_ms", "time_to_first_token_ms", "duration_ms", "trace_id"),
            "recorded_at_ms",
        ),
        Kind.ADJUSTMENT: (
            *("id", "organization_id", "project_id", "root_key_id", "period_start_ms", "nanos", "tokens", "reason"),
            *("created_at_ms", "created_by"),
        ),
    }
)
"""What version 1 hashes, in this order. A column that is added to a table makes a new version."""

Head = tuple[int, str, int]
"""The last sequence, hash and sealing time of an organization."""
_NO_HEAD: Head = (0, FIRST_PREVIOUS_HASH, 0)


def hash_row(
    kind: str, organization_id: str, sequence: int, previous_hash: str, sealed_at_ms: int, row: Mapping[str, Value]
) -> str:
    """Return the seal of a row: the version, a colon, and 64 hexadecimal digits.

    Each value is written as its name, its type (``s`` text, ``i`` integer, ``b`` truth value, ``n`` nothing), its
    length in bytes and its text in UTF-8, a line each, so that no value can pass for another, or for two.

    Raises:
        ValueError: The row has other columns than the version hashes, or a value of another type.
    """
    names = _names_of(kind, row)
    text = "".join(map(_line, names, map(row.__getitem__, names)))
    return _hash(_begin(kind, organization_id), sequence, previous_hash, sealed_at_ms, text)


def hash_rows(
    kind: str, columns: Mapping[str, Sequence[Value]], heads: MutableMapping[str, Head], now_ms: int
) -> list[tuple[str, Head]]:
    """Seal rows one after another, each in its organization's chain.

    Args:
        kind: of all of them.
        columns: their values by name, as ``hash_row`` takes them.
        heads: the last seal of each organization; it is moved on.
        now_ms: when they are sealed; an organization whose last seal is later goes on at that time.

    Returns:
        For each row the hash that it continues, and its own sequence, hash and sealing time.

    Raises:
        ValueError: As for ``hash_row``.
    """
    sealed = []
    begun: dict[str, str] = {}
    organization_ids = cast("Sequence[str]", columns["organization_id"])
    for organization_id, text in zip(organization_ids, _write(kind, columns), strict=True):
        last_sequence, previous_hash, last_ms = heads.get(organization_id, _NO_HEAD)
        begin = begun.get(organization_id) or begun.setdefault(organization_id, _begin(kind, organization_id))
        sequence, at_ms = last_sequence + 1, max(now_ms, last_ms)
        head = (sequence, _hash(begin, sequence, previous_hash, at_ms, text), at_ms)
        heads[organization_id] = head
        sealed.append((previous_hash, head))
    return sealed


def _begin(kind: str, organization_id: str) -> str:
    return f"meterhouse-seal {VERSION}\n{_line('kind', kind)}{_line('organization', organization_id)}"


def _hash(begin: str, sequence: int, previous_hash: str, sealed_at_ms: int, text: str) -> str:
    place = (_line("sequence", sequence), _line("previous_hash", previous_hash), _line("sealed_at_ms", sealed_at_ms))
    return f"{VERSION}:{hashlib.sha256(''.join((begin, *place, text)).encode()).hexdigest()}"


def _names_of(kind: str, given: Mapping[str, object]) -> tuple[str, ...]:
    """Return what is hashed of a kind, in its order; raises ValueError where something else is given."""
    names = COLUMNS.get(kind)
    if names is None:
        raise ValueError(f"'{kind}' is no kind of row")
    missing = [name for name in names if name not in given]
    if missing or len(given) != len(names):
        unknown = [name for name in given if name not in names]
        raise ValueError(
            ", ".join([*(f"{name} is missing" for name in missing), *(f"{n} is unknown" for n in unknown)])
        )
    return names


def _write(kind: str, columns: Mapping[str, Sequence[Value]]) -> Iterable[str]:
    """Write what rows say, as ``hash_row`` does; a column at a time, since most say the same in every row."""
    names = _names_of(kind, columns)
    lines, varied = list[str](), list[Sequence[object]]()
    for name in names:
        values = columns[name]
        types = set(map(type, values))
        if len(types) == 1 and values.count(values[0]) == len(values):
            lines.append(_line(name, values[0]).replace("%", "%%"))
        elif types == {int}:
            texts = list(map(str, values))
            lines.append(f"{name}=i%d:%s\n")
            varied += [list(map(len, texts)), texts]
        elif types == {str} and "".join(cast("Sequence[str]", values)).isascii():
            lines.append(f"{name}=s%d:%s\n")
            varied += [list(map(len, cast("Sequence[str]", values))), values]
        else:
            lines.append("%s")
            varied.append([_line(name, value) for value in values])
    line = "".join(lines)
    return map(line.__mod__, zip(*varied, strict=True)) if varied else [line % ()] * len(columns[names[0]])


def _line(name: str, value: Value) -> str:
    if type(value) is str and value.isascii():
        return f"{name}=s{len(value)}:{value}\n"
    if type(value) is int:
        digits = str(value)
        return f"{name}=i{len(digits)}:{digits}\n"
    if value is None:
        return f"{name}=n0:\n"
    if isinstance(value, str):
        return f"{name}=s{len(value.encode())}:{value}\n"
    if isinstance(value, bool):
        return f"{name}=b1:{int(value)}\n"
    raise ValueError(f"{name} is {type(value).__name__}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the ledger with its seal and its place."""

    kind: str
    organization_id: str
    sequence: int
    previous_hash: str
    hash: str
    sealed_at_ms: int
    row: Mapping[str, Value]

    @property
    def subject(self) -> str:
        """Which row it is, in words."""
        return name_row(self.kind, self.row)

    def find_fault(self) -> str | None:
        """Say why the seal is not that of the row; None when it is."""
        if not self.hash.startswith(f"{VERSION}:"):
            return f"this version of Meterhouse does not know the seal '{self.hash}'"
        try:
            expected = hash_row(
                self.kind, self.organization_id, self.sequence, self.previous_hash, self.sealed_at_ms, self.row
            )
        except ValueError as error:
            return f"the row cannot be what was sealed ({error})"
        if self.row["organization_id"] != self.organization_id:
            return "it is another organization's"
        return None if expected == self.hash else "what it says is not what was sealed"


def name_row(kind: str, row: Mapping[str, Value]) -> str:
    """Name a row by what identifies it."""
    if kind == Kind.ADJUSTMENT:
        return f"adjustment {row.get('id')}"
    return f"request {row.get('request_id')} attempt {row.get('attempt')}"


class Fault(StrEnum):
    """What is wrong with a row."""

    CHANGED = "changed"
    MISSING = "missing"
    INSERTED = "inserted"
    REORDERED = "reordered"
    UNREADABLE = "unreadable"
    NOT_SIGNED = "not signed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, where, and why."""

    fault: Fault
    detail: str
    organization_id: str = ""
    sequence: int = 0
    subject: str = ""
    until: int = 0
    """The last sequence of a gap that is longer than one row."""

    def __str__(self) -> str:
        if not self.organization_id:
            return f"{self.fault}: {self.detail}"
        rows = f"sequence {self.sequence}" + (f" to {self.until}" if self.until > self.sequence else "")
        subject = f" ({self.subject})" if self.subject else ""
        return f"{self.fault}: organization {self.organization_id}, {rows}{subject}: {self.detail}"

    @classmethod
    def of(cls, fault: Fault, entry: Entry, detail: str) -> "Finding":
        """Make a finding about a row."""
        return cls(fault, detail, entry.organization_id, entry.sequence, entry.subject)


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of an organization's chain there must be, and between which seals."""

    organization_id: str
    first_sequence: int
    last_sequence: int
    first_previous_hash: str
    last_hash: str


@dataclass(slots=True)
class _Chain:
    span: Span | None
    next_sequence: int
    last: Entry | None = None
    is_last_good: bool = False
    rivals: list[Entry] = field(default_factory=list)
    """Other rows with the last sequence: the next row says which of them it continues."""
    gaps: list[tuple[int, int]] = field(default_factory=list)


class ChainChecker:
    """Takes rows one after another and says what is wrong. Memory is one row per organization and the gaps.

    Args:
        spans: what there must be, by organization; None when nobody said, then chains may begin and end anywhere.
    """

    def __init__(self, spans: Mapping[str, Span] | None) -> None:
        self._spans = spans
        self._chains: dict[str, _Chain] = {}

    def take(self, entry: Entry) -> Iterator[Finding]:
        """Look at the next row."""
        fault = entry.find_fault()
        if fault is not None:
            yield Finding.of(Fault.CHANGED, entry, fault)
        chain = self._chain_of(entry)
        span = chain.span
        if self._spans is not None and (
            span is None or not span.first_sequence <= entry.sequence <= span.last_sequence
        ):
            yield Finding.of(Fault.INSERTED, entry, "no such row was signed")
            return
        if entry.sequence >= chain.next_sequence:
            yield from _advance(chain, entry, is_good=fault is None)
        elif _fill_gap(chain.gaps, entry.sequence):
            yield Finding.of(Fault.REORDERED, entry, f"it stands behind sequence {chain.next_sequence - 1}")
        elif chain.last is not None and chain.last.sequence == entry.sequence:
            chain.rivals.append(entry)
        else:
            yield Finding.of(Fault.INSERTED, entry, "its sequence is there twice")

    def finish(self) -> Iterator[Finding]:
        """Look at what did not come."""
        for organization_id, chain in self._chains.items():
            span = chain.span
            if span is None or chain.next_sequence != span.last_sequence + 1:
                yield from _settle_rivals(chain, None)
            else:
                yield from _settle_rivals(chain, span.last_hash)
                if chain.last is not None and chain.is_last_good and chain.last.hash != span.last_hash:
                    yield Finding.of(Fault.CHANGED, chain.last, "it was sealed again: another seal was signed")
            if span is not None and chain.next_sequence <= span.last_sequence:
                chain.gaps.append((chain.next_sequence, span.last_sequence))
            for first, last in chain.gaps:
                yield _missing(organization_id, first, last)
        for organization_id, span in (self._spans or {}).items():
            if organization_id not in self._chains:
                yield _missing(organization_id, span.first_sequence, span.last_sequence)

    def _chain_of(self, entry: Entry) -> _Chain:
        chain = self._chains.get(entry.organization_id)
        if chain is None:
            span = (self._spans or {}).get(entry.organization_id)
            chain = _Chain(span, entry.sequence if span is None else span.first_sequence)
            self._chains[entry.organization_id] = chain
        return chain


def _advance(chain: _Chain, entry: Entry, *, is_good: bool) -> Iterator[Finding]:
    """Take the next row, or one behind a gap."""
    if entry.sequence > chain.next_sequence:
        chain.gaps.append((chain.next_sequence, entry.sequence - 1))
        yield from _settle_rivals(chain, None)
    elif chain.last is not None:
        yield from _settle_rivals(chain, entry.previous_hash)
        if is_good and chain.is_last_good and chain.last.hash != entry.previous_hash:
            detail = f"it was sealed again: sequence {entry.sequence} continues another seal"
            yield Finding.of(Fault.CHANGED, chain.last, detail)
    elif is_good and entry.previous_hash != _first_previous_hash(chain, entry):
        yield Finding.of(Fault.CHANGED, entry, "it was sealed again: it continues another seal than was signed")
    chain.last = entry
    chain.is_last_good = is_good
    chain.next_sequence = entry.sequence + 1


def _first_previous_hash(chain: _Chain, entry: Entry) -> str:
    if chain.span is not None:
        return chain.span.first_previous_hash
    return FIRST_PREVIOUS_HASH if entry.sequence == 1 else entry.previous_hash


def _settle_rivals(chain: _Chain, continued_hash: str | None) -> Iterator[Finding]:
    """Decide which of several rows with one sequence is the true one: that which the next one continues."""
    if chain.last is None or not chain.rivals:
        return
    candidates = [chain.last, *chain.rivals]
    # Only one of two equal rows is the true one, so that they are told apart by where they stand.
    continued = [index for index, one in enumerate(candidates) if one.hash == continued_hash and not one.find_fault()]
    true = continued[0] if continued else 0
    for index, candidate in enumerate(candidates):
        if index != true:
            yield Finding.of(Fault.INSERTED, candidate, "its sequence is there twice, and nothing continues this one")
    chain.rivals = []
    chain.last = candidates[true]
    chain.is_last_good = chain.last.find_fault() is None


def _fill_gap(gaps: list[tuple[int, int]], sequence: int) -> bool:
    for index, (first, last) in enumerate(gaps):
        if first <= sequence <= last:
            gaps[index : index + 1] = [
                part for part in ((first, sequence - 1), (sequence + 1, last)) if part[0] <= part[1]
            ]
            return True
    return False


def _missing(organization_id: str, first: int, last: int) -> Finding:
    count = last - first + 1
    detail = "the row is not there" if count == 1 else f"{count} rows are not there"
    return Finding(Fault.MISSING, detail, organization_id, first, until=last)

"""The ledger in a file: rows with their seals, a statement of what there must be, and an Ed25519 signature of it.

JSON lines: a line per row, then the statement, then the signature. CSV: a line per row; the statement and the
signature are the two lines of a second file, ``FILE.sig``. The signature is over the statement, which names the
SHA-256 of everything before it, so that a file is written and checked in one pass.

Invariant: memory does not grow with the rows. Not here: where rows come from, and the database.
"""

import base64
import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meterhouse.ledger.seal import COLUMNS, ChainChecker, Entry, Fault, Finding, Kind, Span, Value

Layout = Literal["jsonl", "csv"]

FORMAT = "meterhouse-ledger-export"
VERSION = 1
_DOMAIN = b"meterhouse-ledger-export 1\n"
_PLACE = ("kind", "organization_id", "sequence", "previous_hash", "hash", "sealed_at_ms")
_CSV_COLUMNS = tuple(dict.fromkeys((*_PLACE, *COLUMNS[Kind.USAGE], *COLUMNS[Kind.ADJUSTMENT])))
_TRUTHS = frozenset({"is_streamed", "is_suspect"})
_NULLABLE = {Kind.USAGE: frozenset({"price_id", "time_to_first_token_ms"}), Kind.ADJUSTMENT: frozenset({"root_key_id"})}
_INTEGERS = frozenset(
    {"attempt", "requests", "nanos", "tokens"}
    | {name for name in _CSV_COLUMNS if name.endswith(("_tokens", "_nanos", "_ms"))}
)
_TAIL_BYTES = 1 << 16


class Totals(msgspec.Struct):
    """The sums of an export."""

    usage_rows: int = 0
    adjustment_rows: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charge_nanos: int = 0
    adjusted_tokens: int = 0
    adjusted_nanos: int = 0

    def add(self, entry: Entry) -> None:
        """Count a row; one whose values are no numbers counts as a row only."""
        if entry.kind == Kind.ADJUSTMENT:
            self.adjustment_rows += 1
            self.adjusted_tokens += _number(entry.row, "tokens")
            self.adjusted_nanos += _number(entry.row, "nanos")
            return
        self.usage_rows += 1
        for name in ("requests", "input_tokens", "output_tokens", "charge_nanos"):
            setattr(self, name, getattr(self, name) + _number(entry.row, name))


class Order(msgspec.Struct, frozen=True):
    """What was exported: whose rows, and sealed when; None: all."""

    exported_at_ms: int
    organization_id: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed."""

    format: str
    version: int
    layout: Layout
    order: Order
    totals: Totals
    chains: tuple[Span, ...]
    content_sha256: str
    public_key: str
    """Base64 of its 32 bytes, to see which key it was; never trusted."""

    @property
    def spans(self) -> dict[str, Span]:
        """What there must be, by organization."""
        return {span.organization_id: span for span in self.chains}


class ExportWriter:
    """Writes rows as they come, organization after organization in the order of their chains."""

    def __init__(self, out: BinaryIO, layout: Layout) -> None:
        self._out = out
        self._layout: Layout = layout
        self._sha256 = hashlib.sha256()
        self._totals = Totals()
        self._spans: dict[str, Span] = {}
        if layout == "csv":
            self._emit(_csv_line(_CSV_COLUMNS))

    @property
    def rows(self) -> int:
        """How many rows were written."""
        return self._totals.usage_rows + self._totals.adjustment_rows

    def write(self, entry: Entry) -> None:
        """Write the next row; raises OSError."""
        self._totals.add(entry)
        known = self._spans.get(entry.organization_id)
        first = (entry.sequence, entry.previous_hash)
        if known is not None:
            first = (known.first_sequence, known.first_previous_hash)
        self._spans[entry.organization_id] = Span(entry.organization_id, first[0], entry.sequence, first[1], entry.hash)
        self._emit(_json_line(entry) if self._layout == "jsonl" else _csv_line(_cells(entry)))

    def finish(self, order: Order, key: Ed25519PrivateKey) -> bytes:
        """Return the statement and the signature, a line each: the end of JSON lines, or the file beside a CSV."""
        statement = Statement(
            format=FORMAT,
            version=VERSION,
            layout=self._layout,
            order=order,
            totals=self._totals,
            chains=tuple(self._spans.values()),
            content_sha256=self._sha256.hexdigest(),
            public_key=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        )
        line = msgspec.json.encode({"statement": statement})
        signature = base64.b64encode(key.sign(_DOMAIN + line)).decode()
        return line + b"\n" + msgspec.json.encode({"signature": signature}) + b"\n"

    def _emit(self, line: bytes) -> None:
        self._sha256.update(line)
        self._out.write(line)


class _SignedLine(msgspec.Struct, frozen=True):
    statement: Statement


class _SignatureLine(msgspec.Struct, frozen=True):
    signature: str


class ExportReader:
    """An export that was opened: its statement, and its rows one after another. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = hashlib.sha256()
        self.totals = Totals()
        with path.open("rb") as file:
            self.layout: Layout = "csv" if file.read(5) == b"kind," else "jsonl"
        seal_path = signature_path(path)
        if self.layout == "csv":
            self._content_bytes = path.stat().st_size
            lines = seal_path.read_bytes().splitlines() if seal_path.exists() else []
        else:
            self._content_bytes, lines = _split_tail(path)
        self._lines = lines
        self.statement = _read_statement(lines)

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether the statement was signed with the other half of a key."""
        try:
            signature = base64.b64decode(msgspec.json.decode(self._lines[1], type=_SignatureLine).signature)
            key.verify(signature, _DOMAIN + self._lines[0])
        except (InvalidSignature, IndexError, ValueError, msgspec.MsgspecError):
            return False
        return True

    def read(self) -> Iterator[Entry | Finding]:
        """Read the rows; what is no row comes as a finding."""
        with self._path.open("rb") as file:
            lines = self._count(file)
            for found in _read_json(lines) if self.layout == "jsonl" else _read_csv(lines):
                if isinstance(found, Entry):
                    self.totals.add(found)
                yield found

    @property
    def content_sha256(self) -> str:
        """The hash of what was read; of all of it once ``read`` is exhausted."""
        return self._sha256.hexdigest()

    def _count(self, file: BinaryIO) -> Iterator[bytes]:
        left = self._content_bytes
        while left > 0 and (line := file.readline(left)):
            left -= len(line)
            self._sha256.update(line)
            yield line


def check_export(reader: ExportReader, key: Ed25519PublicKey) -> Iterator[Finding]:
    """Check an export by itself: the signature of a key, chains, the seal of every row, counts and sums."""
    statement = reader.statement
    if statement is None:
        yield Finding(Fault.NOT_SIGNED, "the file does not end with a statement and its signature; it may be cut off")
    elif not reader.is_signed_by(key):
        yield Finding(Fault.NOT_SIGNED, "the signature is not this key's, or the statement was changed after signing")
    checker = ChainChecker(None if statement is None else statement.spans)
    is_clean = True
    for found in reader.read():
        if isinstance(found, Finding):
            is_clean = False
            yield found
            continue
        for finding in checker.take(found):
            is_clean = False
            yield finding
    for finding in checker.finish():
        is_clean = False
        yield finding
    if statement is not None:
        yield from _compare_totals(statement, reader, is_clean=is_clean)


def signature_path(path: Path) -> Path:
    """Return where the signature of a CSV file is."""
    return path.with_name(f"{path.name}.sig")


def _compare_totals(statement: Statement, reader: ExportReader, *, is_clean: bool) -> Iterator[Finding]:
    signed, read = msgspec.structs.asdict(statement.totals), msgspec.structs.asdict(reader.totals)
    for name, value in signed.items():
        if value != read[name]:
            yield Finding(Fault.CHANGED, f"the sum of {name} is {read[name]}, signed was {value}")
            is_clean = False
    if is_clean and statement.content_sha256 != reader.content_sha256:
        yield Finding(Fault.CHANGED, "every row is good, but the bytes of the file are not those that were signed")


def _number(row: Mapping[str, Value], name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) else 0


def _json_line(entry: Entry) -> bytes:
    return msgspec.json.encode(entry) + b"\n"


def _read_json(lines: Iterator[bytes]) -> Iterator[Entry | Finding]:
    decoder = msgspec.json.Decoder(Entry)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            yield Finding(Fault.UNREADABLE, f"line {number} is no row of the ledger: {error}")


def _csv_line(cells: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    # A writer quotes what is a part of its own line's end: a lone carriage return would end the row for a reader.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n").encode() + b"\n"


def _cells(entry: Entry) -> tuple[object, ...]:
    values = {**entry.row, **{name: getattr(entry, name) for name in _PLACE}}
    return tuple(_cell(values.get(name)) for name in _CSV_COLUMNS)


def _cell(value: Value) -> object:
    return ("true" if value else "false") if isinstance(value, bool) else value


def _read_csv(lines: Iterator[bytes]) -> Iterator[Entry | Finding]:
    rows = csv.reader((line.decode(errors="backslashreplace") for line in lines), strict=True)
    try:
        header = next(rows, [])
        if tuple(header) != _CSV_COLUMNS:
            yield Finding(Fault.UNREADABLE, "the first line does not name the columns of a ledger")
        for cells in rows:
            try:
                yield _entry_of(dict(zip(_CSV_COLUMNS, cells, strict=True)))
            except ValueError as error:
                yield Finding(Fault.UNREADABLE, f"line {rows.line_num} is no row of the ledger: {error}")
    except csv.Error as error:
        yield Finding(Fault.UNREADABLE, f"line {rows.line_num} is no line of CSV: {error}")


def _entry_of(cells: dict[str, str]) -> Entry:
    kind = cells["kind"]
    if kind not in COLUMNS:
        raise ValueError(f"'{kind}' is no kind of row")
    return Entry(
        kind=kind,
        organization_id=cells["organization_id"],
        sequence=int(cells["sequence"]),
        previous_hash=cells["previous_hash"],
        hash=cells["hash"],
        sealed_at_ms=int(cells["sealed_at_ms"]),
        row={
            name: None if cells[name] == "" and name in _NULLABLE[Kind(kind)] else _value_of(name, cells[name])
            for name in COLUMNS[kind]
        },
    )


def _value_of(name: str, text: str) -> Value:
    if name in _TRUTHS:
        if text not in {"true", "false"}:
            raise ValueError(f"{name} is '{text}', neither true nor false")
        return text == "true"
    return int(text) if name in _INTEGERS else text


def _read_statement(lines: list[bytes]) -> Statement | None:
    try:
        statement = msgspec.json.decode(lines[0], type=_SignedLine).statement
    except (IndexError, msgspec.MsgspecError):
        return None
    return statement if statement.format == FORMAT and statement.version == VERSION else None


def _split_tail(path: Path) -> tuple[int, list[bytes]]:
    """Return how many bytes the rows take, and the two lines behind them; all bytes when there are no such lines."""
    size = path.stat().st_size
    tail = b""
    with path.open("rb") as file:
        position = size
        while position > 0 and tail.count(b"\n") < 3:  # noqa: PLR2004 - two lines, and the end of the one before
            step = min(max(_TAIL_BYTES, len(tail)), position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
    lines = tail.splitlines()[-2:]
    if not lines or not lines[0].startswith(b'{"statement":'):
        return size, []
    return size - len(tail) + tail.rindex(lines[0]), lines

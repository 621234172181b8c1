"""Structured logs: the list of event names, the one configuration, and the line that every request writes.

A line is one record: it has no line break in it, is at most 16 KB, and holds no secret. ``RequestLog`` bypasses
structlog, because its processors cost a request more than the rest of its log line (speed.md). What is not here:
deciding what to log, and the access log of the HTTP server, which stays off.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import BinaryIO, Literal

import msgspec
import structlog

from meterhouse.telemetry.console import event_line, request_line
from meterhouse.telemetry.redact import describe_exception, may_hold_secret, redact
from meterhouse.telemetry.sink import LineSink

MAX_LINE_BYTES = 16_384

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]
CallLater = Callable[[float, Callable[[], None]], object]
"""``loop.call_later``: seconds, then what to call."""
Log = structlog.typing.FilteringBoundLogger

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SHORT_CHARACTERS = 1_024
_NAME_CHARACTERS = 64
_NANOS_PER_SECOND = 1_000_000_000
_QUIET_LIBRARIES = ("aiosqlite", "alembic", "asyncio", "urllib3", "uvicorn", "sqlalchemy.engine")


_encoder = msgspec.json.Encoder()


class Event(StrEnum):
    """Every event that is logged: a noun, a dot, and what happened to it."""

    REQUEST_FINISHED = "request.finished"
    REQUEST_FAILED = "request.failed"
    ATTEMPT_FAILED = "attempt.failed"
    PARAMETER_DROPPED = "parameter.dropped"
    DEPLOYMENT_OPENED = "deployment.opened"
    """It is not asked for a while."""
    DEPLOYMENT_CLOSED = "deployment.closed"
    """It is asked again."""
    GENERATION_STARTED = "generation.started"
    """The parameters with which a local model that writes its calls as text answers; at the level ``debug``."""
    TOOL_CALL_NOT_PARSED = "tool_call.not_parsed"
    """A model's text looked like a tool call and was none, so that it stayed text."""
    KEY_CREATED = "key.created"
    KEY_REFUSED = "key.refused"
    ISSUER_FAILED = "issuer.failed"
    """The public keys of the identity provider could not be read, or some of them are not used."""
    JOURNAL_OPENED = "journal.opened"
    JOURNAL_ADOPTED = "journal.adopted"
    JOURNAL_CORRUPTED = "journal.corrupted"
    JOURNAL_FILLED = "journal.filled"
    JOURNAL_SYNC_FAILED = "journal.sync_failed"
    JOURNAL_WRITE_FAILED = "journal.write_failed"
    SHIPPER_RETRYING = "shipper.retrying"
    SHIPPER_RECOVERED = "shipper.recovered"
    LEDGER_DAMAGED = "ledger.damaged"
    """A row is not what was sealed."""
    METER_LOST = "meter.lost"
    METER_RETURNED = "meter.returned"
    ALLOWANCE_FAILED = "allowance.failed"
    SUPPLY_CHANGED = "supply.changed"
    """A price, a provider or a route was set."""
    PROVIDER_REFUSED = "provider.refused"
    """One that was set through the API cannot be switched on here."""
    ALERT_FIRED = "alert.fired"
    """A spend alert; what is to be told lies in the outbox."""
    ALERT_HELD_BACK = "alert.held_back"
    """Its organization has had as many messages as it may in a day; this alert, and its others, fire later."""
    DELIVERY_FAILED = "delivery.failed"
    """A webhook or an e-mail did not arrive; it is tried again."""
    DELIVERY_GIVEN_UP = "delivery.given_up"
    INVOICE_FAILED = "invoice.failed"
    """One organization's was not issued; it is tried again, and the others' are issued."""
    INVOICES_ISSUED = "invoices.issued"
    EXPORT_FAILED = "export.failed"
    STORE_FAILED = "store.failed"
    TASK_FAILED = "task.failed"
    SETTINGS_LOADED = "settings.loaded"
    SERVER_STARTED = "server.started"
    SERVER_STOPPED = "server.stopped"
    SERVER_REFUSED_RELOAD = "server.refused_reload"
    WORKER_STARTED = "worker.started"
    WORKER_DRAINING = "worker.draining"
    WORKER_WORN = "worker.worn"
    WORKER_STOPPED = "worker.stopped"
    WORKER_FAILED = "worker.failed"
    WORKER_CANCELLED_REQUESTS = "worker.cancelled_requests"
    CLERK_STARTED = "clerk.started"
    CLERK_STOPPED = "clerk.stopped"
    CLERK_FAILED = "clerk.failed"
    """It ended without being told to, or hangs; workers ship and seal until the next one serves."""
    LOG_LINES_DROPPED = "log.lines_dropped"
    SPANS_UNSENT = "spans.unsent"
    """The collector does not take them; told once until it does again."""
    LIBRARY_LOGGED = "library.logged"
    """A line of a library (uvicorn, sqlalchemy, opentelemetry) that came through ``logging``."""


def configure(*, format: Format, level: Level, stream: BinaryIO) -> None:  # noqa: A002 - the setting has this name
    """Configure structlog and ``logging`` once for this process; both write lines of ``format`` to ``stream``."""
    sink = LineSink(stream)
    logger = _LineLogger(sink)
    renderer = _Renderer(is_console=format == "console", is_coloured=sink.is_terminal)
    structlog.configure(
        processors=[structlog.processors.add_log_level, _add_time, _describe_exceptions, _redact, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(LEVELS[level])
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))


def choose_format(setting: Literal["auto", "console", "json"], stream: BinaryIO) -> Format:
    """Return the format of a stream by the setting: ``auto`` is for people on a terminal."""
    if setting != "auto":
        return setting
    return "console" if stream.isatty() else "json"


def get_logger(**context: object) -> Log:
    """Return a logger that adds ``context`` to each event: ``log.info(Event.KEY_CREATED, key_id=...)``."""
    log: Log = structlog.get_logger(**context)
    return log


def encode_line(fields: Mapping[str, object]) -> bytes:
    """Encode a record as one line of JSON of at most ``MAX_LINE_BYTES``; long values are cut, then left out."""
    line = msgspec.json.encode(fields)
    if len(line) <= MAX_LINE_BYTES:
        return line
    short = {name: _shorten(value) for name, value in fields.items()} | {"cut_from_bytes": len(line)}
    shortened = msgspec.json.encode(short)
    if len(shortened) <= MAX_LINE_BYTES:
        return shortened
    kept = {name: short[name] for name in ("timestamp", "level", "event") if name in short}
    return msgspec.json.encode(kept | {"cut_from_bytes": len(line)})


def _shorten(value: object) -> object:
    if isinstance(value, datetime | bool | int | float | None):
        return value
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _SHORT_CHARACTERS else text[:_SHORT_CHARACTERS] + "..."


def _add_time(_log: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    event["timestamp"] = datetime.now(UTC)
    return event


def _describe_exceptions(_log: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Turn ``exc_info`` (True, an exception or the classic triple) into one field of one line."""
    given = event.pop("exc_info", None)
    if not given:
        return event
    if isinstance(given, BaseException):
        error: object = given
    else:
        error = given[1] if isinstance(given, tuple) else sys.exception()
    if isinstance(error, BaseException):
        event["exception"] = describe_exception(error)
    return event


def _redact(_log: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    moment = event.pop("timestamp")
    level = event.pop("level")
    name = event.pop("event")
    return {"timestamp": moment, "level": level, **redact({"event": name, **event})}


class _Renderer:
    """The last processor: the event becomes the bytes of its line, without the line break."""

    def __init__(self, *, is_console: bool, is_coloured: bool) -> None:
        self._is_console = is_console
        self._is_coloured = is_coloured

    def __call__(self, _log: object, _method: str, event: MutableMapping[str, object]) -> bytes:
        if not self._is_console:
            return encode_line(event)
        line = event_line(event, is_coloured=self._is_coloured).encode()
        return line if len(line) <= MAX_LINE_BYTES else line[: MAX_LINE_BYTES - 3] + b"..."


class _LineLogger:
    """What structlog calls at the end of its processors, one method per level."""

    def __init__(self, sink: LineSink) -> None:
        self._write_line = sink.write_line

    def msg(self, line: bytes) -> None:
        """Write one rendered line."""
        self._write_line(line)

    debug = info = warning = error = critical = msg


class _LibraryHandler(logging.Handler):
    """Brings the lines of libraries into the one stream, with the same redaction, cap and format."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            message = str(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        name = record.name[:_NAME_CHARACTERS]
        get_logger().log(level, Event.LIBRARY_LOGGED, logger=name, message=message, exc_info=record.exc_info)


class RequestLog:
    """The ``request.finished`` lines, kept for at most 50 ms and then written together.

    Bounded: while the stream takes nothing, at most 10,000 lines wait and the oldest are dropped and counted. A
    crash may lose what waits; the ledger does not depend on it.
    """

    BATCH_SECONDS = 0.05
    CLOSE_SECONDS = 1.0
    MAX_WAITING_LINES = 10_000

    def __init__(self, *, format: Format, level: Level, stream: BinaryIO, call_later: CallLater) -> None:  # noqa: A002 - as in configure
        self._sink = LineSink(stream)
        self._call_later = call_later
        self._is_console = format == "console"
        self._is_on = LEVELS[level] <= logging.INFO
        self._lines: deque[bytes] = deque()
        self._is_scheduled = False
        self._dropped = 0
        self._reported = 0

    @property
    def dropped_lines(self) -> int:
        """Lines that were never written, since the start: too many waited, or the stream failed."""
        return self._dropped + self._sink.lost_lines

    def write(self, fields: Mapping[str, object], ended_ns: int | None = None, others_words: str | None = None) -> None:
        """Add the line of one request. Never raises. ``timestamp``, ``level`` and ``event`` come from here.

        Args:
            fields: what it says.
            ended_ns: when the request ended, by the wall's clock; None: now.
            others_words: all in it that is neither a number nor an id, a name or a word of our own: no secret can be
                anywhere else. None: anything may be others'.
        """
        if not self._is_on:
            return
        moment = datetime.now(UTC) if ended_ns is None else datetime.fromtimestamp(ended_ns / _NANOS_PER_SECOND, UTC)
        record = {"timestamp": moment, "level": "info", "event": Event.REQUEST_FINISHED, **fields}
        try:
            line = _encoder.encode(record)
        except (TypeError, ValueError):
            line = b""
        searched = line.decode() if others_words is None else others_words
        if self._is_console or not line or len(line) > MAX_LINE_BYTES or may_hold_secret(searched):
            line = self._render(record)
        lines = self._lines
        if len(lines) >= self.MAX_WAITING_LINES:
            lines.popleft()
            self._dropped += 1
        lines.append(line)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_later(self.BATCH_SECONDS, self._flush)

    def close(self) -> None:
        """Write what waits, for at most a second; what a stuck reader then has not taken is dropped and counted."""
        deadline = time.monotonic() + self.CLOSE_SECONDS
        self._sink.write_ready(self._lines)
        while self._lines and self._sink.wait_ready(max(0.0, deadline - time.monotonic())):
            self._sink.write_ready(self._lines)
        self._dropped += len(self._lines)
        self._lines.clear()

    def _flush(self) -> None:
        self._is_scheduled = False
        self._sink.write_ready(self._lines)
        if self._lines:
            self._is_scheduled = True
            self._call_later(self.BATCH_SECONDS, self._flush)
        elif self._dropped > self._reported:
            lines = self._dropped - self._reported
            self._reported = self._dropped
            get_logger().warning(Event.LOG_LINES_DROPPED, lines=lines)

    def _render(self, record: dict[str, object]) -> bytes:
        """Write what is not simply encoded: for a console, or where something in it is to be hidden or cut."""
        if self._is_console:
            return request_line(redact(record), is_coloured=self._sink.is_terminal).encode()[:MAX_LINE_BYTES]
        return encode_line(redact(record))

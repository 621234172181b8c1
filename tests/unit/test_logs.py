"""What a log line may and may not hold, and what becomes of request lines when nobody reads them."""

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.telemetry.logs import MAX_LINE_BYTES, Event, RequestLog, configure, get_logger
from meterhouse.telemetry.redact import MAX_DEPTH, MAX_NODES, redact, redact_text

CANARIES = {
    "our key": "sk-mh-live-8Jd2kXw0-" + "Zx81" * 8 + "9fA3bQ",
    "our admin key": "sk-mh-admin-8Jd2kXw0-" + "Zx81" * 8,
    "an openai key": "sk-proj-4f9a8b7c6d5e4f3a2b1c0d",
    "a bearer": "Bearer opaque-canary-value",
    "an aws key id": "AKIAIOSFODNN7EXAMPLE",
    "a pem": "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIcanary\n-----END EC PRIVATE KEY-----",
    "a cut pem": "-----BEGIN PRIVATE KEY-----\nMHcCAQEEIcanary",
    "a jwt": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlY2FuYXJ5",
    "a database url": "postgresql://meterhouse:canary-pass@db:5432/meterhouse",
    "a redis url": "redis://:canary-pass@cache/0",
    "an assignment": "connect failed: password=canary-pass host=db",
    "a header in a repr": "{'Authorization': 'Basic canary-pass=='}",
    "a cookie header": "Cookie: session=canary-pass; csrf=canary-pass",
}
SECRET_PARTS = ("Zx81", "4f9a8b7c", "opaque-canary", "IOSFODNN7", "MHcCAQ", "c2lnbmF0", "canary-pass", "zdWIiOi")
SECRET_KEYS = (
    "authorization",
    "Proxy-Authorization",
    "api_key",
    "x-api-key",
    "apikey",
    "access_token",
    "token",
    "client_secret",
    "password",
    "Set-Cookie",
    "credentials",
)


class Timers:
    """Stands for ``loop.call_later``: keeps what was asked for until the test lets time pass."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.waiting.append((seconds, callback))

    def fire(self) -> None:
        due, self.waiting = self.waiting, []
        for _, callback in due:
            callback()


class CountingStream(io.BytesIO):
    writes = 0

    def write(self, data: bytes) -> int:
        self.writes += 1
        return super().write(data)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Leave the process's logging as it was: a gateway of other tests may run, and goes on logging as it did."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    was_configured, before = structlog.is_configured(), structlog.get_config()
    yield
    root.handlers = handlers
    root.setLevel(level)
    if was_configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()


@pytest.fixture
def stream() -> io.BytesIO:
    stream = io.BytesIO()
    configure(format="json", level="info", stream=stream)
    return stream


def lines_of(stream: io.BytesIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_time_level_and_name(stream: io.BytesIO) -> None:
    get_logger(worker=1).info(Event.KEY_CREATED, key_id="key_1")
    (line,) = lines_of(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "info", "event": "key.created", "worker": 1, "key_id": "key_1"}


@pytest.mark.parametrize("name", CANARIES)
def test_a_secret_is_found_by_its_look(stream: io.BytesIO, name: str) -> None:
    canary = CANARIES[name]
    get_logger().warning(Event.ATTEMPT_FAILED, detail=f"before {canary} after", deep={"list": [{"text": canary}]})
    get_logger().error(Event.REQUEST_FAILED, exc_info=UpstreamDown("failed", detail=f"said {canary}"))
    logging.getLogger("some.library").error("it was %s", canary)
    written = stream.getvalue().decode()
    assert not [part for part in SECRET_PARTS if part in written]
    assert written.count("[redacted]") >= 4
    assert len(lines_of(stream)) == 3


@pytest.mark.parametrize("name", SECRET_KEYS)
def test_a_secret_is_hidden_by_the_name_of_its_field(stream: io.BytesIO, name: str) -> None:
    get_logger().info(Event.SETTINGS_LOADED, settings={name: "plain-canary", "nested": [{name: ["plain-canary"]}]})
    written = stream.getvalue().decode()
    assert "plain-canary" not in written
    assert written.count("[redacted]") == 2


def test_counts_of_tokens_and_ids_are_not_secrets() -> None:
    fields = {"input_tokens": 3, "time_to_first_token_ms": 9, "key_id": "key_8Jd2kXw0", "model": "risk-model-4"}
    assert redact(fields) == fields


def test_a_secret_at_the_cut_of_a_long_text_leaves_nothing_behind() -> None:
    for padding in range(16_384 - 60, 16_384 + 2):
        assert "Zx81" not in redact_text("a " * (padding // 2) + CANARIES["our key"])


def test_cyclic_and_shared_objects_are_written_once() -> None:
    shared = {"text": "x"}
    cycle: dict[str, object] = {"left": shared, "right": shared}
    cycle["self"] = cycle
    assert redact({"cycle": cycle}) == {
        "cycle": {"left": {"text": "x"}, "right": "[seen above]", "self": "[seen above]"},
    }


def test_a_structure_that_doubles_at_each_level_stays_small() -> None:
    value: list[object] = ["leaf"]
    for _ in range(60):
        value = [value, value]
    assert len(json.dumps(redact({"value": value}))) < 500


def test_wide_and_deep_structures_are_bounded() -> None:
    wide = redact({"wide": list(range(100_000)), "map": {str(n): n for n in range(100_000)}})
    assert len(json.dumps(wide)) < 20 * MAX_NODES
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    assert json.dumps(redact({"deep": deep})).count("[") == MAX_DEPTH


@dataclass
class Holder:
    name: str
    password: str


def test_objects_are_shown_by_their_fields_or_their_type_only(stream: io.BytesIO) -> None:
    get_logger().info(
        Event.SETTINGS_LOADED, holder=Holder("a", "plain-canary"), raw=b"plain-canary", other=object(), big=2**80
    )
    (line,) = lines_of(stream)
    assert line["holder"] == {"name": "a", "password": "[redacted]"}
    assert line["raw"] == "<12 bytes>"
    assert line["other"] == "<object>"
    assert line["big"] == hex(2**80)


@pytest.mark.parametrize("format_", ["json", "console"])
def test_nothing_in_a_value_or_a_name_can_begin_a_new_line(format_: str) -> None:
    stream = io.BytesIO()
    configure(format=format_, level="info", stream=stream)
    forged = 'x\r\n{"event": "key.created"}\u2028\u2029\x85\x1b[2J\x00\ud800'
    get_logger().info(Event.KEY_REFUSED, reason=forged, **{forged: 1})
    logging.getLogger("library").warning(forged)
    log = RequestLog(format=format_, level="info", stream=stream, call_later=Timers().call_later)
    log.write({"model": forged, "status": 200, "path": forged})
    log.close()
    written = stream.getvalue()
    assert written.count(b"\n") == 3
    assert not [c for c in (b"\r", b"\x1b", b"\x00") if c in written]


def test_an_exception_is_one_field_of_one_line(stream: io.BytesIO) -> None:
    try:
        try:
            raise ValueError("inner\nsecond line")
        except ValueError as error:
            raise UpstreamDown("outer", detail="said no") from error
    except UpstreamDown:
        get_logger().exception(Event.REQUEST_FAILED)
    (line,) = lines_of(stream)
    assert line["exception"].startswith("UpstreamDown: outer (said no) [test_logs.py:")
    assert " <- ValueError: inner second line [test_logs.py:" in line["exception"]
    assert "\n" not in line["exception"]


def test_a_record_is_capped_and_says_what_it_was(stream: io.BytesIO) -> None:
    get_logger().info(Event.LIBRARY_LOGGED, text="x" * 1_000_000, small="kept")
    get_logger().info(Event.LIBRARY_LOGGED, **{f"field_{n}": "y" * 4_000 for n in range(100)})
    raw = stream.getvalue().splitlines()
    assert max(len(line) for line in raw) <= MAX_LINE_BYTES
    first, second = lines_of(stream)
    assert first["small"] == "kept"
    assert first["text"].endswith("...")
    assert second["event"] == "library.logged"
    assert second["cut_from_bytes"] > MAX_LINE_BYTES


def test_levels_below_the_configured_one_are_not_written() -> None:
    stream = io.BytesIO()
    configure(format="json", level="warning", stream=stream)
    get_logger().info(Event.KEY_CREATED)
    logging.getLogger("library").info("quiet")
    log = RequestLog(format="json", level="warning", stream=stream, call_later=Timers().call_later)
    log.write({"status": 200})
    log.close()
    assert stream.getvalue() == b""


def test_a_library_that_formats_wrongly_or_has_its_own_level_is_still_logged(stream: io.BytesIO) -> None:
    (handler,) = [
        handler for handler in logging.getLogger().handlers if type(handler).__module__.startswith("meterhouse")
    ]
    handler.handle(logging.LogRecord("library", logging.ERROR, __file__, 1, "%d and %d", ("one",), None))
    handler.handle(logging.LogRecord("library", 33, __file__, 1, "odd level", (), None))
    first, second = lines_of(stream)
    assert (first["message"], first["logger"]) == ("%d and %d", "library")
    assert (second["message"], second["level"]) == ("odd level", "warning")


def test_logging_to_a_closed_stream_does_not_raise() -> None:
    stream = io.BytesIO()
    configure(format="json", level="info", stream=stream)
    log = RequestLog(format="json", level="info", stream=stream, call_later=Timers().call_later)
    stream.close()
    get_logger().error(Event.STORE_FAILED)
    log.write({"status": 200})
    log.close()
    assert log.dropped_lines == 1


def test_request_lines_are_written_together_after_50_ms() -> None:
    timers, stream = Timers(), CountingStream()
    log = RequestLog(format="json", level="info", stream=stream, call_later=timers.call_later)
    for number in range(100):
        log.write({"request_id": f"req_{number}", "status": 200})
    assert stream.writes == 0
    assert [seconds for seconds, _ in timers.waiting] == [0.05]
    timers.fire()
    assert stream.writes == 1
    lines = lines_of(stream)
    assert [line["request_id"] for line in lines] == [f"req_{number}" for number in range(100)]
    assert {(line["event"], line["level"]) for line in lines} == {("request.finished", "info")}
    assert timers.waiting == []
    log.write({"status": 200})
    assert len(timers.waiting) == 1


def test_closing_writes_what_waits() -> None:
    stream = io.BytesIO()
    log = RequestLog(format="json", level="info", stream=stream, call_later=Timers().call_later)
    log.write({"status": 200})
    log.close()
    assert len(lines_of(stream)) == 1
    assert log.dropped_lines == 0


def test_while_a_pipe_is_stuck_nothing_waits_and_the_oldest_lines_are_dropped_and_counted() -> None:
    timers, events = Timers(), io.BytesIO()
    configure(format="json", level="info", stream=events)
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe, os.fdopen(reader, "rb", buffering=0) as reading:
        log = RequestLog(format="json", level="info", stream=pipe, call_later=timers.call_later)
        log.MAX_WAITING_LINES = 500
        for number in range(2_000):
            log.write({"number": number, "text": "x" * 300})
            if number % 100 == 0:
                timers.fire()
        assert 0 < log.dropped_lines < 2_000
        received = b""
        while timers.waiting:
            received += reading.read(65_536)
            timers.fire()
        log.close()
        os.set_blocking(reading.fileno(), False)
        while chunk := reading.read(65_536):
            received += chunk
    numbers = [json.loads(line)["number"] for line in received.splitlines()]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 1_999
    assert len(numbers) + log.dropped_lines == 2_000
    (report,) = lines_of(events)
    assert (report["event"], report["lines"]) == ("log.lines_dropped", log.dropped_lines)


def test_closing_on_a_stuck_pipe_gives_up_and_counts() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe, os.fdopen(reader, "rb"):
        log = RequestLog(format="json", level="info", stream=pipe, call_later=Timers().call_later)
        log.CLOSE_SECONDS = 0.01
        for _ in range(1_000):
            log.write({"text": "x" * 1_000})
        log.close()
        assert log.dropped_lines > 0


def test_a_request_line_holds_no_secret_a_client_put_into_a_field() -> None:
    stream = io.BytesIO()
    log = RequestLog(format="json", level="info", stream=stream, call_later=Timers().call_later)
    log.write({"model": CANARIES["our key"], "path": "/v1/x", "status": 404})
    log.write({"model": "m", "odd": object(), "status": 200})
    log.write({"model": "m" * 100_000, "status": 200})
    log.close()
    first, second, third = lines_of(stream)
    assert first["model"] == "[redacted]"
    assert second["odd"] == "<object>"
    assert len(json.dumps(third)) <= MAX_LINE_BYTES
    assert all(line["timestamp"].endswith("Z") for line in (first, second, third))


def test_the_console_line_of_a_request_reads_at_a_glance() -> None:
    stream = io.BytesIO()
    log = RequestLog(format="console", level="info", stream=stream, call_later=Timers().call_later)
    log.write(
        {
            "request_id": "req_1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "status": 200,
            "model": "gpt-4o-mini",
            "provider": "openai",
            "outcome": "completed",
            "input_tokens": 12,
            "output_tokens": 34,
            "charge_nanos": 1_500_000,
            "time_to_first_token_ms": 20,
            "duration_ms": 210,
        }
    )
    log.close()
    assert stream.getvalue().decode()[9:] == (
        "200 POST /v1/chat/completions gpt-4o-mini > openai 12+34 tokens $0.0015 first 20 ms 210 ms req_1\n"
    )


PLAIN_VALUES = st.recursive(
    st.none() | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=8), PLAIN_VALUES, max_size=4))
def test_any_plain_value_can_be_logged(fields: dict[str, object]) -> None:
    stream = io.BytesIO()
    log = RequestLog(format="json", level="info", stream=stream, call_later=Timers().call_later)
    log.write(fields)
    log.close()
    assert len(lines_of(stream)) == 1

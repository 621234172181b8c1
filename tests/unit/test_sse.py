"""Event streams, cut anywhere, give what a parser written straight from the rules gives."""

import itertools
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.http.sse import MAX_EVENT_BYTES, SseReader, frame

MEGABYTE = 1_048_576


def reference(stream: bytes) -> list[bytes]:
    """Split all of a stream by the rules of the HTML standard; an event without its empty line is not one."""
    payloads: list[bytes] = []
    data: list[bytes] = []
    *lines, _unfinished = re.split(rb"\r\n|\r|\n", stream)
    for line in lines:
        if not line:
            payloads += [b"\n".join(data)] if data else []
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return payloads


def read(*pieces: bytes) -> list[bytes]:
    reader = SseReader()
    return [payload for piece in pieces for payload in reader.feed(piece)] + reader.close()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(borders)]


line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
texts = st.sampled_from([b"", b" ", b"a", b" a", b'{"x": "y"}', b"data: z", b":", b"\xff\x00", "é".encode()])
fields = st.sampled_from([b"data:", b"data: ", b"data", b"data2:", b"event: ", b"id:", b"retry: ", b":", b": ", b""])
lines = st.builds(lambda field, text: field + text if field != b"data" else field, fields, texts)
streams = st.lists(st.tuples(lines, line_ends), max_size=30).map(lambda rows: b"".join(a + b for a, b in rows))
plain_streams = st.lists(lines, max_size=30).map(b"\n".join)
places = st.lists(st.integers(0, 10_000), max_size=12)


@given(streams, places)
@example(b"data: a\r\n\n", [8, 9])
@example(b"data: a\r\n\r\n", [8, 9, 10])
@example(b"data: a\n\r\n", [8, 9])
@example(b"data: a\r\rdata: b\n\n", [8])
def test_any_cut_of_any_stream_gives_what_the_rules_say(stream: bytes, where: list[int]) -> None:
    assert read(*cut(stream, where)) == reference(stream)


@given(plain_streams, places)
@example(b"event: x\ndata: a\n\nevent: y\ndata:  b\n\n", [])
@example(b"event: x\ndata: a\nid: 1\n\n", [])
@example(b"event: x\ndata:a\ndata: b\n\n", [])
def test_any_cut_of_a_stream_with_line_feeds_gives_what_the_rules_say(stream: bytes, where: list[int]) -> None:
    assert read(*cut(stream, where)) == reference(stream)


@given(streams)
def test_byte_by_byte_gives_the_same_as_at_once(stream: bytes) -> None:
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == read(stream) == reference(stream)


@given(plain_streams, streams, places)
def test_a_stream_may_begin_to_use_carriage_returns_anywhere(first: bytes, second: bytes, where: list[int]) -> None:
    assert read(*cut(first + second, where)) == reference(first + second)


def test_an_event_is_given_as_soon_as_its_empty_line_is_there() -> None:
    reader = SseReader()
    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\nda") == [b"a"]
    assert reader.feed(b"ta: b\n\n") == [b"b"]
    assert reader.feed(b"data: c\r\n\r") == [b"c"]
    assert reader.feed(b"\ndata: d\n\n") == [b"d"]


def test_an_event_without_its_empty_line_is_not_delivered() -> None:
    assert read(b"data: a\n\ndata: b\n") == [b"a"]


def test_bytes_of_nothing_change_nothing() -> None:
    assert read(b"data: a\r", b"", b"\n", b"", b"\r", b"", b"\n") == [b"a"]


# --- long events


def seconds_for(stream: bytes, size: int) -> float:
    reader = SseReader()
    began = time.process_time()
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
    return time.process_time() - began


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_an_event_of_a_megabyte_may_come_byte_by_byte(end: bytes) -> None:
    text = b"x" * (MEGABYTE - 100)
    stream = b": comment" + end + b"data: " + text + end
    reader = SseReader()
    began = time.process_time()
    payloads = [payload for i in range(len(stream)) for payload in reader.feed(stream[i : i + 1])]
    assert payloads == [text]
    # Quadratic work on a megabyte takes minutes.
    assert time.process_time() - began < 10


@pytest.mark.parametrize("line", [b"data:\r\n", b"data: {\n", b": x\r"])
def test_an_event_of_very_many_lines_is_read_in_linear_time(line: bytes) -> None:
    assert seconds_for(line * (MEGABYTE // 2 // len(line)), 4_096) < 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1_000, 65_536, 4 * MEGABYTE])
def test_an_event_over_a_megabyte_is_refused_however_it_comes(end: bytes, size: int) -> None:
    for stream in (
        b"data: " + b"x" * (MEGABYTE + 1) + end + end,
        (b"data: " + b"x" * 1_000 + end) * 1_100 + end,
        b"data: " + b"x" * (MEGABYTE + 1),
    ):
        with pytest.raises(UpstreamDown) as caught:
            read(*(stream[start : start + size] for start in range(0, len(stream), size)))
        assert caught.value.code == "upstream_protocol_error"


def test_many_events_together_may_be_longer_than_one_may_be() -> None:
    payload = b"x" * 100_000
    assert read((b"data: " + payload + b"\n\n") * 30) == [payload] * 30
    assert read((b"data: " + payload + b"\r\n\r\n") * 30) == [payload] * 30


def test_keep_alive_comments_without_end_are_no_event() -> None:
    assert read(*[b": keep-alive\n\n"] * 100_000) == []
    assert MAX_EVENT_BYTES == MEGABYTE


# --- framing


@given(st.binary())
def test_a_framed_payload_is_read_back_as_one_event(payload: bytes) -> None:
    single = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    assert read(frame(payload)) == [single]


def test_line_breaks_in_a_payload_become_blanks() -> None:
    assert frame(b'{\r\n"a": 1}') == b'data: {  "a": 1}\n\n'

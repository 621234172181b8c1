"""Request ids are UUIDv7 (RFC 9562); other ids are random and wear a prefix."""

import os
import re
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.ids import (
    BASE62,
    IdSource,
    new_id,
    new_request_id,
    parse_request_id,
    public_request_id,
    random_base62,
    request_id_time_ms,
)


def test_a_request_id_is_a_uuid_of_version_seven() -> None:
    for _ in range(200):
        text = new_request_id()
        parsed = uuid.UUID(text)
        assert (parsed.hex, parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)


def test_a_request_id_says_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = new_request_id()
    after = time.time_ns() // 1_000_000
    assert before <= request_id_time_ms(made) <= after


def test_a_later_request_id_sorts_after_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for moments in ((1_700_000_000_000, 1_700_000_000_001), (0xFFFF_FFFF, 0x1_0000_0000)):
        made = []
        for moment in moments:
            monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
            made.append(new_request_id())
        assert made == sorted(made)
        assert tuple(map(request_id_time_ms, made)) == moments


def test_request_ids_of_one_moment_differ() -> None:
    assert len({new_request_id() for _ in range(20_000)}) == 20_000


def test_a_source_gives_nothing_twice_however_often_it_draws() -> None:
    source, other = IdSource(), IdSource()
    made = [one.new_request_id(time.time_ns()) for _ in range(2_000) for one in (source, other)]
    spans = [source.random_hex(16) for _ in range(2_000)]
    assert len(set(made)) == len(made)
    assert len(set(spans)) == len(spans)
    assert {len(text) for text in spans} == {16}
    assert all(uuid.UUID(text).version == 7 for text in made)


def test_what_a_source_gives_is_what_the_system_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    urandom = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: drawn.append(urandom(size)) or drawn[-1])
    source = IdSource()
    first, second = source.random_hex(16), source.random_hex(32)
    assert len(drawn) == 1
    assert drawn[0].hex().startswith(first + second)


def test_every_random_bit_is_used() -> None:
    source = IdSource()
    found = [int(source.new_request_id(time.time_ns()), 16) for _ in range(300)]
    ones = zeros = 0
    for value in found:
        ones |= value
        zeros |= ~value
    random_bits = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)
    assert ones & random_bits == zeros & random_bits == random_bits


def test_every_form_that_a_person_may_paste_is_read() -> None:
    bare = new_request_id()
    hyphened = str(uuid.UUID(bare))
    for form in (bare, public_request_id(bare), hyphened, hyphened.upper(), f"req_{hyphened}", bare.upper()):
        assert parse_request_id(form) == bare


@given(st.text(max_size=40))
def test_a_text_that_is_read_is_an_id(text: str) -> None:
    found = parse_request_id(text)
    assert found is None or re.fullmatch(r"[0-9a-f]{12}7[0-9a-f]{19}", found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "req_",
        "req_1",
        "0123456789ab4def8123456789abcdef",
        "g" * 32,
        "0" * 31,
        "0" * 33,
        "req_req_" + "7" * 32,
        "\uff17" * 32,
    ],
)
def test_what_is_no_request_id_is_none(text: str) -> None:
    assert parse_request_id(text) is None


def test_other_ids_are_long_random_and_readable() -> None:
    found = {new_id("org") for _ in range(1_000)}
    assert len(found) == 1_000
    assert all(re.fullmatch(r"org_[0-9A-Za-z]{20}", text) for text in found)
    assert set("".join(found).replace("org_", "")) <= set(BASE62)
    assert len(set(random_base62(5_000))) == 62

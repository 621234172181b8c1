"""Form bombs (CVE-2024-53981, CVE-2026-40347, CVE-2026-42561): forms whose reading costs more than their length."""

import time
import tracemalloc

import pytest

from api.asking import error_of
from fakes.gateway import Gateway
from meterhouse.errors import Malformed
from meterhouse.translate.form import MAX_PARTS, read_form

MEGABYTE = 1_048_576
PATIENCE_SECONDS = 1.5
TYPE = "multipart/form-data; boundary=b"
PART = b'--b\r\ncontent-disposition: form-data; name="a[]"\r\n\r\n\r\n'
BEGIN = b"--b\r\n"
BOMBS = {
    "boundaries": BEGIN + b"\r\n--b" * (2 * MEGABYTE),
    "short fields": BEGIN + b"xy\r\n--b" * (2 * MEGABYTE) + b"--",
    "fields": PART * (MAX_PARTS + 1) + b"--b--",
    "beginnings of boundaries": BEGIN + b"\r\n--" * (4 * MEGABYTE),
    "line ends": BEGIN + b"\r\n" * (8 * MEGABYTE),
    "a head without an end": BEGIN + b"x: y\r\n" * (2 * MEGABYTE) + b"\r\n--b--",
    "a parameter without an end": BEGIN
    + b"content-disposition: form-data; name="
    + b'"a' * MEGABYTE
    + b"\r\n\r\n\r\n--b--",
    "spaces": BEGIN + b"content-disposition: form-data;" + b" " * 1_900 + b"x\r\n\r\n\r\n--b--",
    "semicolons": BEGIN + b"content-disposition: form-data" + b"; " * 900 + b"\r\n\r\n\r\n--b--",
}
each = pytest.mark.parametrize("name", BOMBS)


@each
def test_a_bomb_is_refused_in_bounded_time(gateway: Gateway, name: str) -> None:
    began = time.monotonic()
    status, _, body = gateway.request("POST", "/v1/audio/transcriptions", BOMBS[name], headers={"content-type": TYPE})
    assert (status, error_of(body)["code"]) == (400, "invalid_form")
    assert time.monotonic() - began < PATIENCE_SECONDS


@each
def test_a_bomb_is_refused_in_bounded_memory(name: str) -> None:
    """The body itself and a copy or two, but nothing for each byte of it."""
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            read_form(BOMBS[name], TYPE)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * len(BOMBS[name]) + MEGABYTE


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data;" + " " * 7_000 + "x",
        "multipart/form-data" + "; " * 3_500,
        "multipart/form-data; boundary=" + "b" * 7_000,
        'multipart/form-data; boundary="' + "b" * 7_000,
    ],
    ids=["spaces", "semicolons", "a boundary", "an open boundary"],
)
def test_a_type_that_goes_on_and_on(gateway: Gateway, content_type: str) -> None:
    began = time.monotonic()
    headers = {"content-type": content_type}
    status, _, body = gateway.request("POST", "/v1/audio/transcriptions", PART + b"--b--", headers=headers)
    assert (status, error_of(body)["code"]) == (400, "invalid_form")
    assert time.monotonic() - began < PATIENCE_SECONDS

"""A provider that does not answer in time."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


@pytest.mark.parametrize("model", ["never-answers", "comments-forever"])
def test_a_stream_that_does_not_begin_is_a_504(gateway: Gateway, model: str) -> None:
    status, headers, body = gateway.chat(f"fake/{model}", stream=True)
    error = error_of(body)
    assert (status, error["type"], error["code"]) == (504, "upstream_error", "upstream_timeout")
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.charge_nanos) == ("upstream_failed", 0)


def test_a_body_that_does_not_come_is_a_504(gateway: Gateway) -> None:
    status, _, body = gateway.chat("fake/never-answers")
    assert (status, error_of(body)["code"]) == (504, "upstream_timeout")

"""A provider that does not answer in time."""

from concurrent.futures import ThreadPoolExecutor

from api.asking import error_of
from fakes.gateway import Gateway

SLOW = [("fake/never-answers", False), ("fake/never-answers", True), ("fake/comments-forever", True)]


def test_an_answer_that_does_not_begin_in_time_is_a_504(gateway: Gateway) -> None:
    # At the same time, because each of them takes its timeout.
    with ThreadPoolExecutor(len(SLOW)) as pool:
        answers = list(pool.map(lambda asked: gateway.chat(asked[0], stream=asked[1]), SLOW))
    for status, headers, body in answers:
        error = error_of(body)
        assert (status, error["type"], error["code"]) == (504, "upstream_error", "upstream_timeout")
        assert headers["content-type"] == "application/json"
        (record,) = gateway.records(headers["x-request-id"])
        assert (record.outcome, record.charge_nanos) == ("upstream_failed", 0)

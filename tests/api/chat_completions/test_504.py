"""A provider that does not answer in time."""

from concurrent.futures import ThreadPoolExecutor

from api.asking import error_of, events_of
from fakes.gateway import Gateway

SLOW = [("fake/never-answers", False), ("fake/never-answers", True), ("fake/comments-forever", True)]


def test_an_answer_that_does_not_come_in_time_is_a_504_or_an_error_event(hasty: Gateway) -> None:
    # At the same time, because each of them takes its timeout.
    with ThreadPoolExecutor(len(SLOW) + 1) as pool:
        stalling = pool.submit(hasty.chat, "fake/stall", stream=True)
        answers = list(pool.map(lambda asked: hasty.chat(asked[0], stream=asked[1]), SLOW))
        status, headers, body = stalling.result()
    *chunks, last = events_of(body)
    assert (status, len(chunks), error_of(last)["code"]) == (200, 6, "upstream_timeout")
    (record,) = hasty.records(headers["x-request-id"])
    assert (record.outcome, record.usage.output_tokens) == ("upstream_failed", 5)
    for status, headers, body in answers:
        error = error_of(body)
        assert (status, error["type"], error["code"]) == (504, "upstream_error", "upstream_timeout")
        assert headers["content-type"] == "application/json"
        (record,) = hasty.records(headers["x-request-id"])
        assert (record.outcome, record.charge_nanos) == ("upstream_failed", 0)

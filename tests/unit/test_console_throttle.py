"""The console counts failed sign-ins itself, because the gateway sees all of them come from one address."""

from meterhouse.console.sessions import FAILURE_SECONDS, MOST_FAILURES, MOST_FAILURES_IN_ALL, Throttle


def test_many_addresses_together_have_one_guess_each_and_others_are_let_in() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for number in range(MOST_FAILURES_IN_ALL):
        assert throttle.wait_seconds(f"10.0.0.{number}") == 0
        throttle.note_failure(f"10.0.0.{number}")
    assert throttle.wait_seconds("10.0.0.1") == FAILURE_SECONDS
    assert throttle.wait_seconds("10.9.9.9") == 0
    now[0] += FAILURE_SECONDS
    assert throttle.wait_seconds("10.0.0.1") == 0


def test_an_address_has_so_many_guesses() -> None:
    throttle = Throttle(lambda: 0.0)
    for _ in range(MOST_FAILURES):
        assert throttle.wait_seconds("10.0.0.1") == 0
        throttle.note_failure("10.0.0.1")
    assert throttle.wait_seconds("10.0.0.1") == FAILURE_SECONDS

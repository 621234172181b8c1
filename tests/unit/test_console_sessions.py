"""A sign-in at the console ends by itself, also while a page goes on asking."""

from meterhouse.console.sessions import IDLE_SECONDS, LONGEST_SECONDS, MOST_SESSIONS, Sessions


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_a_page_asks_by_itself_keeps_no_session_open() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    cookie, session = sessions.open("secret", "reader")
    step = IDLE_SECONDS / 3
    clock.seconds = step
    assert sessions.find(cookie) is session
    for _ in range(3):
        clock.seconds += step
        assert sessions.find(cookie, is_use=False) is session
    clock.seconds += 1
    assert sessions.find(cookie, is_use=False) is None
    assert sessions.find(cookie) is None


def test_a_session_in_use_ends_in_the_end() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    cookie, session = sessions.open("secret", "operator")
    while clock.seconds < LONGEST_SECONDS - IDLE_SECONDS:
        clock.seconds += IDLE_SECONDS
        assert sessions.find(cookie) is session
    clock.seconds = LONGEST_SECONDS + 1
    assert sessions.find(cookie) is None


def test_the_session_that_was_idle_the_longest_makes_room() -> None:
    sessions = Sessions(Clock())
    first, second = sessions.open("a", "tenant")[0], sessions.open("b", "tenant")[0]
    assert sessions.find(first)
    for _ in range(MOST_SESSIONS - 1):
        sessions.open("c", "tenant")
    assert sessions.find(second) is None
    assert sessions.find(first)

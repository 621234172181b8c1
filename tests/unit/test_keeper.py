"""The parent's side of the clerk, with clerks that are real processes and do one thing each."""

import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from meterhouse import keeper
from meterhouse.keeper import BEAT, Keeper


def serve(line: socket.socket) -> None:
    """Beat once, wait for the end, and end."""
    line.send(BEAT)
    line.recv(1)
    os._exit(0)


def fail(line: socket.socket) -> None:
    os._exit(1)


def hang(line: socket.socket) -> None:
    line.send(BEAT)
    while True:
        signal.pause()


class Parent:
    """Looks after its clerk as often as asked; remembers each that it had."""

    def __init__(self, run) -> None:
        self.is_wanted = True
        self.keeper = Keeper(run, lambda: self.is_wanted)
        self.pids: list[int] = []

    def look(self) -> list[int]:
        self.keeper.look_after(lambda: None)
        self.pids += [pid for pid in self.clerks if pid not in self.pids]
        return self.clerks

    @property
    def clerks(self) -> list[int]:
        return [child.pid for child in self.keeper._children]

    def wait(self, is_so) -> None:
        deadline = time.monotonic() + 20
        while not (self.look(), is_so())[1]:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def wait_ready(self) -> int:
        self.wait(lambda: any(child.is_ready and child.told_at is None for child in self.keeper._children))
        return self.clerks[-1]


@pytest.fixture
def parent_of(monkeypatch):
    monkeypatch.setattr(keeper, "FIRST_DELAY_SECONDS", 0.01)
    parents = []

    def make(run) -> Parent:
        parents.append(Parent(run))
        return parents[-1]

    yield make
    monkeypatch.setattr(keeper, "LEAVE_SECONDS", 0.05)
    for parent in parents:
        parent.keeper.close()
        assert not parent.clerks
        assert not any(Path(f"/proc/{pid}").exists() for pid in parent.pids)


def test_one_that_serves_is_left_alone_and_one_that_is_killed_is_replaced_at_once(parent_of):
    parent = parent_of(serve)
    first = parent.wait_ready()
    assert parent.look() == [first]
    os.kill(first, signal.SIGKILL)
    parent.wait(lambda: first not in parent.clerks)
    assert len(parent.clerks) == 1


def test_one_that_cannot_start_is_tried_again_ever_less_often(parent_of):
    parent = parent_of(fail)
    parent.wait(lambda: len(parent.pids) == 4)
    assert parent.keeper._failures >= 3
    assert parent.keeper._start_after - time.monotonic() < 0.01 * 2**3
    parent.keeper.replace()  # a reload is a new beginning
    assert (parent.keeper._failures, parent.keeper._start_after) == (0, 0.0)


def test_one_that_hangs_is_ended_and_replaced(parent_of, monkeypatch):
    parent = parent_of(hang)
    first = parent.wait_ready()
    monkeypatch.setattr(keeper, "STALL_SECONDS", 0.0)
    parent.wait(lambda: first not in parent.clerks)
    assert not Path(f"/proc/{first}").exists()


def test_one_that_is_replaced_ends_by_itself_while_the_next_one_serves(parent_of):
    parent = parent_of(serve)
    first = parent.wait_ready()
    parent.keeper.replace()
    second = parent.wait_ready()
    assert second != first
    parent.wait(lambda: parent.clerks == [second])


def test_one_that_does_not_leave_is_ended(parent_of, monkeypatch):
    parent = parent_of(hang)
    first = parent.wait_ready()
    monkeypatch.setattr(keeper, "LEAVE_SECONDS", 0.02)
    parent.keeper.replace()
    parent.wait(lambda: first not in parent.clerks)


def test_there_is_none_where_none_is_wanted(parent_of):
    parent = parent_of(serve)
    parent.is_wanted = False
    assert parent.look() == []
    parent.is_wanted = True
    first = parent.wait_ready()
    parent.is_wanted = False
    parent.keeper.replace()
    parent.wait(lambda: parent.clerks == [])
    assert parent.pids == [first]


def test_where_the_system_has_no_room_for_one_the_parent_goes_on_and_tries_again(parent_of):
    parent = parent_of(serve)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert parent.look() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    parent.wait_ready()


def test_one_without_a_parent_ends(parent_of):
    parent = parent_of(serve)
    first = parent.wait_ready()
    parent.keeper.forget()  # as when the parent is no more: nobody has the other end
    assert os.waitpid(first, 0) == (first, 0)

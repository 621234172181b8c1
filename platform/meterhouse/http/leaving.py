"""Whether the client of a request is still there: its connection says so, and no task has to wait for it.

A task, its coroutines and what they wait for take more than a kilobyte of each stream. Not here: what is done about a
client that left (``call``).
"""

from typing import Any, Protocol, TypeVar

from starlette.types import Scope

from meterhouse.http.flow import Flow

CLIENT = "meterhouse.client"
"""The key in the scope of a request whose client can be asked after."""

Subject = TypeVar("Subject")
Subject_contra = TypeVar("Subject_contra", contravariant=True)


class Watcher(Protocol[Subject_contra]):
    """Who wants to know."""

    def leave(self, subject: Subject_contra, /) -> None:
        """Hear that the client has left."""
        ...


class Leaving:
    """The client of one request. It knows its watcher until ``forget``, so that none is kept by a connection."""

    __slots__ = ("_subject", "_watcher", "flow", "is_gone")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._watcher: Watcher[Any] | None = None
        self._subject: object = None
        self.is_gone = False

    def watch(self, watcher: Watcher[Subject], subject: Subject) -> None:
        """Tell somebody once the client is gone, at once if it is; until then the connection is read."""
        if self.is_gone:
            watcher.leave(subject)
            return
        self._watcher, self._subject = watcher, subject
        # The end of a connection that is not read is not seen.
        self.flow.resume_reading()

    def settle_down(self) -> None:
        """Take note that the answer takes its time: what only the next request needs may go."""

    def forget(self) -> None:
        """Tell nobody."""
        self._watcher = self._subject = None

    def tell(self) -> None:
        """Note that the client is gone."""
        self.is_gone = True
        watcher, subject = self._watcher, self._subject
        self.forget()
        if watcher is not None:
            watcher.leave(subject)


def leaving_of(scope: Scope) -> Leaving | None:
    """Return the client of a request; None for a server that does not say."""
    found: Leaving | None = scope.get(CLIENT)
    return found

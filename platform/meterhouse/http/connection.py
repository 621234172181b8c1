"""A client's connection: uvicorn's own, which also drops a client that does not read, and can be drained.

Everything that is sent ends here, so this is the one place where a stalled client is dropped, whoever waits for it;
to the request it looks like any client that left. Without it, a connection that is closed while its client reads
nothing would stay open for ever, because closing waits for what is still to be sent.
"""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """One connection."""

    stall_seconds: ClassVar[float] = 30.0
    """How long a client may leave unread what waits for it, once that is more than 64 KB."""

    _drop: asyncio.TimerHandle | None = None
    _is_draining = False
    _idle_since = 0.0

    def drain(self) -> None:
        """Say with the next head that is sent that the connection is closed after its answer.

        An answer whose head is on its way has not said so: the connection then stays for one more, because a proxy may
        send a request the moment that answer has ended, and would not send it again.
        """
        self._is_draining = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def release(self, idle_seconds: float) -> None:
        """Close the connection if it has been idle for so long."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.loop.time() - self._idle_since >= idle_seconds:
            self.shutdown()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn says it
        """Begin to be idle."""
        self._idle_since = self.loop.time()
        super().connection_made(transport)

    def on_response_complete(self) -> None:
        """Be idle again."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        super().on_headers_complete()
        if self._is_draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._drop_later()

    def resume_writing(self) -> None:
        """Forget that the client did not read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._keep()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; what its client has not read yet is not waited for without an end."""
        super().timeout_keep_alive_handler()
        self._drop_later()

    def shutdown(self) -> None:
        """Close the connection when its request is over, as above."""
        super().shutdown()
        if self.transport.is_closing():
            self._drop_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self._keep()
        super().connection_lost(exc)

    def _drop_later(self) -> None:
        if self._drop is None:
            self._drop = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def _keep(self) -> None:
        if self._drop is not None:
            self._drop.cancel()
            self._drop = None


def connection_type(stall_seconds: float) -> type[Connection]:
    """Return the class of connections whose clients are dropped after so long."""
    return type("Connection", (Connection,), {"stall_seconds": stall_seconds})

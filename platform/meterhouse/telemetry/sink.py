"""Where log lines go: a byte stream that may be slow, broken or closed without ever failing a request.

A line is written whole. What is not here: what a line says (``logs``).
"""

import os
import select
import stat
import threading
from collections import deque
from typing import BinaryIO

# What a pipe takes at once, without waiting and without mixing it with another writer's lines (POSIX: PIPE_BUF).
_ATOMIC_BYTES = select.PIPE_BUF
_POLL_READY = select.POLLOUT


class LineSink:
    """Writes lines to one stream, from any thread. A stream that fails loses its lines and counts them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._poll = _poll_if_pipe(stream)
        self.is_terminal = stream.isatty()
        self.lost_lines = 0

    def write_line(self, line: bytes) -> None:
        """Write one line now; waits while a pipe is full."""
        self._write(line + b"\n", 1)

    def write_ready(self, lines: deque[bytes]) -> None:
        """Write and take away from the left as many lines as the stream takes without waiting.

        A file takes all of them in one write. A pipe whose reader is stuck takes none; of lines longer than
        ``PIPE_BUF`` it may take one too many, and then this waits.
        """
        while lines:
            if self._poll is None:
                batch = [line + b"\n" for line in lines]
                lines.clear()
            elif self._poll.poll(0):
                batch = _take_atomic(lines)
            else:
                return
            self._write(b"".join(batch), len(batch))

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Wait until the stream takes something; False when it did not in time."""
        return self._poll is None or bool(self._poll.poll(timeout_seconds * 1000))

    def _write(self, data: bytes, lines: int) -> None:
        try:
            with self._lock:
                self._stream.write(data)
                self._stream.flush()
        except (OSError, ValueError):
            # A broken pipe, a full disk, a closed stream: there is nowhere left to say so but in the count.
            self.lost_lines += lines


def _poll_if_pipe(stream: BinaryIO) -> "select.poll | None":
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return None
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    poll = select.poll()
    poll.register(descriptor, _POLL_READY)
    return poll


def _take_atomic(lines: deque[bytes]) -> list[bytes]:
    batch = [lines.popleft() + b"\n"]
    size = len(batch[0])
    while lines and size + len(lines[0]) + 1 <= _ATOMIC_BYTES:
        batch.append(lines.popleft() + b"\n")
        size += len(batch[-1])
    return batch

"""Linux's own asynchronous I/O (io_submit(2)), as far as it makes files durable: a worker of the kernel runs fdatasync.

The C library has no functions for these system calls, so that they are made by number; structures and constants are
those of ``linux/aio_abi.h``. The operation is there since Linux 4.18.

Invariant: one sync at a time; a result counts only for the sync that it is of. Nothing here waits for a disk but
``close``. Not here: what to do with a result (``kernel_syncer``).
"""

import ctypes
import errno
import os
import select
import sys
from typing import NamedTuple

_FDSYNC = 3
"""IOCB_CMD_FDSYNC."""
_FLAG_RESFD = 1
"""IOCB_FLAG_RESFD: a completion is told to the event descriptor."""
_REQUESTS = 1
"""How many are under way at most; a host has ``fs.aio-max-nr`` of them for all its processes."""
_IN_MEMORY = "/dev"
_PROOF_SECONDS = 1.0


class _Numbers(NamedTuple):
    """The numbers of the system calls."""

    setup: int
    destroy: int
    getevents: int
    submit: int


_NUMBERS = {"x86_64": _Numbers(206, 207, 208, 209), "aarch64": _Numbers(0, 1, 4, 2)}
"""By machine: ``arch/x86/entry/syscalls/syscall_64.tbl`` and ``asm-generic/unistd.h``, for 64 bits."""


class _Request(ctypes.Structure):
    """``struct iocb`` of a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_descriptor", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """``struct io_event``."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class SyncQueue:
    """A queue of the kernel's for one sync at a time. It is this process's alone: a fork does not inherit it.

    Raises:
        OSError: This system has none, forbids it, or has no more of them (``fs.aio-max-nr``).
    """

    def __init__(self) -> None:
        numbers = _NUMBERS.get(os.uname().machine)
        if sys.platform != "linux" or numbers is None or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, "no asynchronous sync is known of this system")
        # With the GIL held: what does not wait is over sooner than the GIL is had back from another thread.
        self._call = ctypes.PyDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._waiting_call = ctypes.CDLL(None).syscall
        self._submit, self._destroy = ctypes.c_long(numbers.submit), ctypes.c_long(numbers.destroy)
        self._getevents = ctypes.c_long(numbers.getevents)
        self._none, self._one = ctypes.c_long(0), ctypes.c_long(1)
        self._context = ctypes.c_ulong(0)
        self.event_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Becomes readable when there is a result to take."""
        self._request = _Request(opcode=_FDSYNC, flags=_FLAG_RESFD, event_descriptor=self.event_descriptor)
        self._requests = (ctypes.POINTER(_Request) * 1)(ctypes.pointer(self._request))
        self._event = _Event()
        self._event_at = ctypes.byref(self._event)
        self._number = 0
        setup = ctypes.c_long(numbers.setup)
        if self._call(setup, ctypes.c_long(_REQUESTS), ctypes.byref(self._context)) != 0:
            os.close(self.event_descriptor)
            raise _last_error("io_setup")

    def submit(self, descriptor: int) -> None:
        """Have a file made durable; its result can be taken later, and nothing may be submitted before that.

        Raises:
            OSError: The kernel does not take it, so that nothing will come.
        """
        self._number += 1
        self._request.data = self._number
        self._request.descriptor = descriptor
        if self._call(self._submit, self._context, self._one, self._requests) != 1:
            raise _last_error("io_submit")

    def take(self) -> bool:
        """Take the result of what was submitted last: True when the file is durable, False when there is none yet.

        Raises:
            OSError: The sync failed, or the kernel does not say how it ended.
        """
        try:
            os.eventfd_read(self.event_descriptor)
        except BlockingIOError:
            return False
        self._event.data = 0
        while self._event.data != self._number:
            taken = self._call(self._getevents, self._context, self._none, self._one, self._event_at, None)
            if taken < 0:
                raise _last_error("io_getevents")
            if taken == 0:
                return False
        if self._event.result < 0:
            raise OSError(-self._event.result, os.strerror(-self._event.result))
        return True

    def prove(self) -> None:
        """Sync a folder that lies in memory, to see that everything works here; waits at most a second.

        Raises:
            OSError: Something does not. After a TimeoutError the queue cannot be closed either.
        """
        folder = os.open(_IN_MEMORY, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.submit(folder)
            waiting = select.poll()
            waiting.register(self.event_descriptor, select.POLLIN)
            if not waiting.poll(_PROOF_SECONDS * 1_000) or not self.take():
                raise TimeoutError(errno.ETIMEDOUT, "an asynchronous sync does not end")
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let go of it; waits for what is under way, however long the disk takes."""
        self._waiting_call(self._destroy, self._context)
        os.close(self.event_descriptor)


def _last_error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")

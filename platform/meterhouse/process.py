"""What this process asks of the kernel and of the C library: no core dump, no look into its memory, no memory in vain.

A core dump would hold every key, credential and prompt of the moment. Workers inherit that from the parent. Not here:
limits of what it may open (``serve.raise_file_limit``).
"""

import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
KEPT_BYTES = 67_108_864
"""What the C library may keep of memory that was freed."""
OWN_MAPPING_BYTES = 33_554_432
"""The most that glibc takes; longer buffers come from the kernel, and go back to it."""


def forbid_dumps() -> bool:
    """Let nothing write this process's memory to a disk, or read it but for the superuser; whether all of it took.

    ``PR_SET_DUMPABLE`` (prctl(2)) also closes ``/proc/PID/mem`` and ``ptrace`` to other processes of the same user,
    and, unlike the limit, holds where core dumps are piped to a program. Elsewhere than on Linux there is only the
    limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return False
    status: int = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    return status == 0


def keep_buffers() -> bool:
    """Use the memory of long bodies again, in place of getting it from the kernel page by page for each; whether so.

    That was a fifth of what a prompt of a megabyte costs. All threads share it, because what one of them keeps is of no
    use to another. To be called before there are threads. Only glibc has mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    orders = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, OWN_MAPPING_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in orders)

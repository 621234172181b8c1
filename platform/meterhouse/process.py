"""What this process asks of the kernel: no core dump and no look into its memory, and a name of its own.

A core dump would hold every key, credential and prompt of the moment. Workers inherit both from the parent. Not here:
limits of what it may open (``serve.raise_file_limit``).
"""

import ctypes
import resource
import sys

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
MOST_NAME_BYTES = 15


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


def name_process(name: str) -> bool:
    """Let ``ps`` and ``top`` show this process under a name of its own, cut to 15 bytes (prctl(2)); whether it took."""
    if not sys.platform.startswith("linux"):
        return False
    status: int = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NAME, name.encode()[:MOST_NAME_BYTES], 0, 0, 0)
    return status == 0

"""What the kernel says of processes: their CPU time, their memory, and how many files they may open."""

import os
import resource
from contextlib import suppress
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_KIBIBYTE = 1024
_NANOS = 1_000_000_000


def read_cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """Return user + system time of processes with their threads and children, also of children that have ended.

    Raises:
        ProcessLookupError: One of the processes themselves has ended.
    """
    times: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            # The parent; then user and system time of its own, and of children that it has waited for.
            times[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in times.items():
        children.setdefault(parent, []).append(pid)
    found = {}
    for name, pid in pids.items():
        if pid not in times:
            raise ProcessLookupError(f"{name} (process {pid}) has ended while it was measured")
        ticks, family = 0, [pid]
        while family:
            member = family.pop()
            ticks += times[member][1]
            family += children.get(member, ())
        found[name] = ticks / CLOCK_TICKS
    return found


def read_thread_seconds(pid: int) -> dict[int, float]:
    """Return for how long each thread of a process has run, by its number."""
    found: dict[int, float] = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(entry.name)] = int((entry / "schedstat").read_text(encoding="utf-8").split()[0]) / _NANOS
        except OSError:
            continue  # it has just ended
    return found


def read_kernel_seconds(core: int) -> float:
    """Return for how long the kernel's own workers of a core have run."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text(encoding="utf-8", errors="replace").startswith(f"kworker/{core}:"):
                    found += int((entry / "schedstat").read_text(encoding="utf-8").split()[0])
            except OSError:
                continue  # it has just ended
    return found / _NANOS


def read_watched(words: list[str]) -> dict[str, int]:
    """Read ``NAME=PID`` words."""
    return {name: int(pid) for name, _, pid in (word.partition("=") for word in words)}


def read_memory_bytes(pid: int) -> int:
    """Return how much memory of a process is resident; raises ProcessLookupError when it has ended."""
    with suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * _KIBIBYTE
    raise ProcessLookupError(f"process {pid} has ended while it was measured")


def raise_file_limit() -> int:
    """Let this process open as many files as the system allows; returns how many those are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most

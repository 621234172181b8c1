"""What a worker asks of the C library."""

import resource
import subprocess
import sys

FAULTS = """
import resource, sys
from meterhouse.process import keep_buffers
if sys.argv[1] == "kept":
    assert keep_buffers()
for _ in range(20):
    bytes(1_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    held = [bytes(1_000_000 + size) for size in range(8)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _count_faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_of_long_bodies_is_used_again() -> None:
    """The kernel gives a page once, and not for each body."""
    pages = 8_000_000 // resource.getpagesize()
    assert _count_faults("kept") < 2 * pages
    assert _count_faults("left") > 10 * pages

"""The entry point of the command ``meterhouse``: what must be so before anything else is imported.

What is imported lives as long as the process. With Python's own threshold the garbage collector looks through it again
and again while it grows, which is a fifth of the time that a start takes (measured on 2026-11-29: 1.9 s of processor
time with it, 1.5 s without). Not here: the commands (``cli``), and how often a running server collects.
"""

import gc

THRESHOLD = 50_000
"""So many new objects make the collector look at the youngest."""


def main() -> None:
    """Run the command line."""
    gc.set_threshold(THRESHOLD)
    from meterhouse.cli import main as run  # noqa: PLC0415 - the threshold comes first

    run()

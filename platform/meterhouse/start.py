"""The entry point of the command ``meterhouse``: keeps the garbage collector out of the way of its imports.

What is imported lives as long as the process. With Python's own settings the collector looks through it again and
again while it grows. Not here: the commands (``cli``), and how often a running server collects.
"""

import gc

THRESHOLD = 50_000
"""So many new objects make the collector look at the youngest; a server imports more once its command has begun."""


def main() -> None:
    """Run the command line."""
    gc.disable()
    from meterhouse.cli import main as run  # noqa: PLC0415 - the collector is out of the way first

    gc.freeze()
    gc.set_threshold(THRESHOLD)
    gc.enable()
    run()

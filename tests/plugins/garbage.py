"""Keeps the garbage collector away from what lives as long as the run: modules, and thousands of tests.

One look through all of it takes most of a second, and it is looked through whenever much was made. So nothing is
collected until the tests are, and what is there by then is never looked at again; a gateway does the same at its start.
"""

import gc

THRESHOLD = 50_000
"""So many new objects make the collector look at the youngest; what a gateway sets as well."""


def pytest_configure() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)
    gc.enable()

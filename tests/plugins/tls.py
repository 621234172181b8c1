"""One default TLS context for all SDK clients of a run: making one takes 20 ms, and there are thousands."""

from functools import cache

import httpcore2


def pytest_configure() -> None:
    httpcore2.default_ssl_context = cache(httpcore2.default_ssl_context)

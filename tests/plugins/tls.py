"""One default TLS context for all SDK clients of a run: making one takes 20 ms, and there are thousands."""

import os
import ssl
from functools import cache
from typing import Any

import httpcore2


def pytest_configure() -> None:
    make = httpcore2.default_ssl_context
    shared = cache(make)

    def default_ssl_context(**options: Any) -> ssl.SSLContext:
        # Whom the environment trusts is asked for each time.
        own = {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys()
        return make(**options) if own else shared(**options)

    httpcore2.default_ssl_context = default_ssl_context

"""A part of a running gateway that fails in a way nobody foresaw."""

from collections.abc import Iterator
from contextlib import contextmanager

from fakes.gateway import Gateway


class Broken:
    """Whatever is asked of it, it crashes."""

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError(name)


@contextmanager
def broken_routes(gateway: Gateway) -> Iterator[None]:
    """Let every look-up of a model crash."""
    routes = gateway.parts.supply.routes
    good = routes.snapshot
    gateway.call(lambda: routes.replace(Broken()))  # type: ignore[arg-type]
    try:
        yield
    finally:
        gateway.call(lambda: routes.replace(good))

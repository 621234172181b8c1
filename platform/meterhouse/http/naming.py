"""One model, one set of limits: a limit of a model binds it under every name that it can be asked for.

A model has a listed name, and can be asked for as ``provider/upstream-model`` too. Demands and records go by the listed
name, so the names in limits are translated to it before the meter sees them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from meterhouse.metering import Limit
from meterhouse.providers.routes import Routes

MAX_REMEMBERED = 4_096

Limits = tuple[Limit, ...]


class LimitNames:
    """Translates limits. The same limits give the same tuple, because the meter plans by its identity."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._renamed: Callable[[Limits, tuple[str | None, ...]], Limits] = lru_cache(MAX_REMEMBERED)(_rename)

    def translate(self, limits: Limits) -> Limits:
        """Return the limits under the listed names of their models."""
        if all(limit.model is None for limit in limits):
            return limits
        find = self._routes.snapshot.listed_name
        return self._renamed(limits, tuple(None if limit.model is None else find(limit.model) for limit in limits))


def _rename(limits: Limits, names: tuple[str | None, ...]) -> Limits:
    return tuple(replace(limit, model=name) for limit, name in zip(limits, names, strict=True))

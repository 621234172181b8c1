"""What a route's deployments cost at a moment, and what its requests may be charged by about now.

Invariant: what is remembered of a route is an answer to a question only, and the same as without it. Not here: where
prices come from (``prices``), and how long one holds of a name (``routes``).
"""

from bisect import bisect_right
from dataclasses import replace
from typing import NamedTuple

from meterhouse.money import PossiblePrices, Price
from meterhouse.providers.prices import PriceBook, price_at
from meterhouse.providers.provider import Deployment, Route

ADMISSION_MS = 5_000
"""How far the meter, whose clock decides what a request costs, may be from the clock by which it was routed."""
MAX_CHANGING = 1_024
"""Models of which it is remembered what they cost around a change; when there are more, it is worked out anew."""
FOREVER_MS = 1 << 63


class _Around(NamedTuple):
    """What requests may be charged by near a change of prices, from one moment to before another."""

    deployments: tuple[Deployment, ...]
    from_ms: int
    until_ms: int
    prices: PossiblePrices


class Pricing:
    """The prices of a snapshot's deployments."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices
        self._around: dict[str, _Around] = {}
        """By model, as far as somebody asked near a change."""

    def find(self, deployment: Deployment) -> tuple[Price, ...]:
        """Return all prices of a deployment, in the order in which they begin."""
        return self._prices.find(deployment.provider.name, deployment.upstream_model)

    def priced(self, deployment: Deployment, at_ms: int) -> Deployment:
        """Return a deployment with its price of a moment."""
        return replace(deployment, price=price_at(self.find(deployment), at_ms))

    def reprice(self, route: Route, at_ms: int) -> Route:
        """Return a route with the prices of another moment; the route itself where they are the same."""
        if route.from_ms <= at_ms < route.until_ms:
            return route
        for deployment in route.deployments:
            if price_at(self.find(deployment), at_ms) is not deployment.price:
                return Route(route.model, tuple(self.priced(d, at_ms) for d in route.deployments))
        return route

    def around(self, route: Route, at_ms: int) -> PossiblePrices:
        """Return what a request may be charged by that is admitted about now: a hold covers the dearest of them."""
        if route.from_ms <= at_ms - ADMISSION_MS and at_ms + ADMISSION_MS < route.until_ms:
            return route.prices
        known = self._around.get(route.model)
        if known is None or not known.from_ms <= at_ms < known.until_ms or known.deployments != route.deployments:
            if len(self._around) >= MAX_CHANGING:
                self._around.clear()
            known = self._around[route.model] = self._look_around(route, at_ms)
        return known.prices

    def _look_around(self, route: Route, at_ms: int) -> _Around:
        prices = route.prices.prices
        for moment_ms in (at_ms - ADMISSION_MS, at_ms + ADMISSION_MS):
            other = self.reprice(route, moment_ms)
            if other is not route:
                prices += other.prices.known
        changes = {price.effective_from_ms for d in route.deployments for price in self.find(d)}
        moments = sorted(change + shift for change in changes for shift in (-ADMISSION_MS, ADMISSION_MS))
        place = bisect_right(moments, at_ms)
        moments = [-FOREVER_MS, *moments, FOREVER_MS]
        return _Around(route.deployments, moments[place], moments[place + 1], PossiblePrices(prices))

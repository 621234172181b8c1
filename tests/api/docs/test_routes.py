"""Every address that answers is in the description of the API, or on the list below, which says why it is not."""

from collections.abc import Iterator
from typing import Any

from fakes.gateway import Gateway
from meterhouse.app import build_app

EXEMPT = {
    "GET /docs": "a page for people",
    "GET /docs/oauth2-redirect": "a page for people",
    "GET /redoc": "a page for people",
    "GET /openapi.json": "the description itself",
}


def served(routes: Any) -> Iterator[str]:
    """Walk the routes of the application, those of its routers too."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            yield from served(inner)
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD":
                yield f"{method} {route.path.replace(':path}', '}')}"


def test_every_route_is_described_or_exempt(gateway: Gateway) -> None:
    app: Any = build_app(gateway.parts)
    found = set(served(app._rest.router.routes))
    described = {f"{method.upper()} {path}" for path, item in app._rest.openapi()["paths"].items() for method in item}
    print("exempt from the description:", *sorted(f"{route} ({why})" for route, why in EXEMPT.items()), sep="\n  ")
    assert len(found) > 60, "this looks at the wrong place"
    assert found - described == set(EXEMPT)
    assert described <= found, "described, but nothing answers"

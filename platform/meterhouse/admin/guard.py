"""Who may administrate, and how often: sign-in by admin key, with slowapi's limiter per address.

The limiter's storage blocks, so it runs in one synchronous dependency that FastAPI puts on a thread (design.md 6). Its
ASGI middleware is not used: it breaks streams.
"""

import time
from typing import Annotated

from fastapi import Depends, Request
from limits import RateLimitItem, parse
from slowapi import Limiter

from meterhouse.errors import InvalidKey, NotPermitted, RateLimited
from meterhouse.identity import Operator
from meterhouse.keys.keyring import Keyring

OPERATOR_ROLE = "operator"


class AdminLimiter:
    """Counts requests and failed sign-ins per address, in slowapi's grammar (``300/minute``)."""

    def __init__(self, rate: str, failure_rate: str) -> None:
        self._limiter = Limiter(key_func=_address, storage_uri="memory://").limiter
        self._rate = parse(rate)
        self._failure_rate = parse(failure_rate)

    def admit(self, address: str) -> None:
        """Count a request.

        Raises:
            RateLimited: The address sent too many, or failed to sign in too often.
        """
        if not self._limiter.test(self._failure_rate, "failures", address):
            raise self._refuse(self._failure_rate, "failures", address, "Too many failed sign-ins from this address.")
        if not self._limiter.hit(self._rate, "requests", address):
            raise self._refuse(self._rate, "requests", address, "Too many administration requests from this address.")

    def note_failure(self, address: str) -> None:
        """Count a failed sign-in."""
        self._limiter.hit(self._failure_rate, "failures", address)

    def _refuse(self, rate: RateLimitItem, name: str, address: str, message: str) -> RateLimited:
        reset_at_seconds = self._limiter.get_window_stats(rate, name, address).reset_time
        wait = max(1.0, reset_at_seconds - time.time())
        return RateLimited(f"{message} Try again in {wait:.0f} seconds.", retry_after_seconds=wait)


def limit_address(request: Request) -> None:
    """Refuse an address that asks too often (a synchronous dependency: it runs on a thread)."""
    limiter: AdminLimiter = request.app.state.admin_limiter
    limiter.admit(_address(request))


async def sign_in_operator(request: Request, _limited: Annotated[None, Depends(limit_address)]) -> Operator:
    """Resolve the admin key of a request.

    Raises:
        InvalidKey: There is no admin key, or it is not good.
        NotPermitted: Its role may not do this.
    """
    keyring: Keyring = request.app.state.keyring
    limiter: AdminLimiter = request.app.state.admin_limiter
    try:
        operator = await keyring.verify_operator(request.headers.get("authorization"))
    except InvalidKey:
        limiter.note_failure(_address(request))
        raise
    if operator.role != OPERATOR_ROLE:
        raise NotPermitted(f"The role '{operator.role}' may not do this: it takes an operator's admin key.")
    return operator


SignedInOperator = Annotated[Operator, Depends(sign_in_operator)]


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"

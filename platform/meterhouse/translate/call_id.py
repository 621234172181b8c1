"""Makes the ids of tool calls that a model named without one."""

from collections.abc import Callable

from meterhouse.ids import random_base62

NewCallId = Callable[[], str]


def new_call_id() -> str:
    """Return a fresh tool-call id: ``call_`` and 24 characters."""
    return f"call_{random_base62(24)}"


def new_short_call_id() -> str:
    """Return a fresh id of nine letters and digits: Mistral's templates refuse any others (wire.md 3.2)."""
    return random_base62(9)

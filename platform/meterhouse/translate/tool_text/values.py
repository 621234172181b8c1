"""Writes arguments as the families do that write each value as bare text."""

from typing import Any

import msgspec


def write_values(arguments: str) -> dict[str, str]:
    """Return the arguments of a JSON object, each as text: a string as it is, everything else as JSON."""
    values: dict[str, Any] = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    return {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in values.items()
    }

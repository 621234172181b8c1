"""The arguments of a tool call in the history, for wires that take them as an object and not as text."""

from typing import Any

import msgspec

from meterhouse.errors import Malformed


def read_arguments(text: str | None, position: int, index: int) -> dict[str, Any]:
    """Decode the arguments of a call; None: it is no call of a function.

    Raises:
        Malformed: It is none, or they are no JSON object; ``param`` names the call by its message and its place there.
    """
    param = f"messages[{position}].tool_calls[{index}]"
    if text is None:
        raise Malformed("This model knows only tool calls of type function.", param=param)
    try:
        arguments = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as error:
        raise Malformed("The arguments of a tool call are not JSON.", param=param) from error
    if not isinstance(arguments, dict):
        raise Malformed("The arguments of a tool call must be a JSON object.", param=param)
    return arguments

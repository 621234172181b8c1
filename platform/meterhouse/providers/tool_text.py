"""What an operator says about a local server's tool calls: which models write them as text, and who tells the model.

Not here: the formats themselves (``translate.tool_text``), which this package may not know; a test compares the names.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

from meterhouse.providers.provider import Provider, ToolCallFormat, ToolsHandling

TOOL_CALL_FORMATS: tuple[ToolCallFormat, ...] = get_args(ToolCallFormat)
TOOLS_HANDLINGS: tuple[ToolsHandling, ...] = get_args(ToolsHandling)
_TOOL_PARAMETERS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
_GLM4 = "glm4"
_GLM4_MAX_TOKENS = 1_024
_EVERY_MODEL = ""


def read_formats(name: str, text: str) -> Mapping[str, ToolCallFormat]:
    """Read ``format`` or ``model=format``, several separated by commas; the key ``""`` holds for every other model.

    Raises:
        ValueError: A format is unknown, or a model has two.
    """
    formats: dict[str, ToolCallFormat] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, given = part.rpartition("=")
        found = next((known for known in TOOL_CALL_FORMATS if known == given.strip()), None)
        if found is None:
            raise ValueError(
                f"provider {name}: the tool call format {given.strip()[:40]!r} is unknown; "
                f"known are {', '.join(TOOL_CALL_FORMATS)}"
            )
        if model.strip() in formats:
            raise ValueError(f"provider {name}: two tool call formats for {model.strip() or 'every model'}")
        formats[model.strip()] = found
    return MappingProxyType(formats)


def read_handling(name: str, text: str, formats: Mapping[str, ToolCallFormat]) -> ToolsHandling:
    """Read what happens to a request's tools.

    Raises:
        ValueError: It is none of the words, or the tools are to be put into the prompt in no known format.
    """
    found = next((known for known in TOOLS_HANDLINGS if known == text), None)
    if found is None:
        raise ValueError(f"provider {name}: tools {text[:40]!r} is none of {', '.join(TOOLS_HANDLINGS)}")
    if found == "prompt" and not formats:
        raise ValueError(f"provider {name}: tools in the prompt need a tool call format, so that it can be asked for")
    return found


def adapt_row(
    row: Provider, formats: Mapping[str, ToolCallFormat], handling: ToolsHandling, upstream_model: str
) -> Provider:
    """Return a provider's row as it is for one of its models."""
    chosen = formats.get(upstream_model) or formats.get(_EVERY_MODEL)
    if chosen is not None:
        row = replace(row, tool_call_format=chosen)
    if chosen == _GLM4:
        row = replace(row, refuses_assistant_last=True, default_max_tokens=row.default_max_tokens or _GLM4_MAX_TOKENS)
    if handling == "prompt" and chosen is not None:
        row = replace(row, renders_tools=True)
    if handling == "withhold" or row.renders_tools:
        row = replace(row, dropped_parameters=row.dropped_parameters | _TOOL_PARAMETERS)
    return row

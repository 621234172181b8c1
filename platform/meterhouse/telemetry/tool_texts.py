"""Counts the tool calls that models wrote as text."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter

MAX_CHILDREN = 256
OTHER = "other"


class ToolTexts:
    """One counter, whose labels stay few."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counter = Counter(
            "meterhouse_tool_texts_total",
            "Texts of models that looked like a tool call: parsed, or why they stayed text",
            ("provider", "result"),
            registry=registry,
        )
        self._children: dict[tuple[str, str], Counter] = {}

    def add(self, provider: str, results: Mapping[str, int]) -> None:
        """Count; a result is ``parsed`` or why a text stayed text."""
        for result, count in results.items():
            key = (provider, result)
            child = self._children.get(key)
            if child is None and len(self._children) >= MAX_CHILDREN:
                child = self._counter.labels(OTHER, result)
            elif child is None:
                child = self._children[key] = self._counter.labels(*key)
            child.inc(count)

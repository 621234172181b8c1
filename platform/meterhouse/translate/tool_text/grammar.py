"""What a family of models must say for the parser to know its calls: one subclass per family, in a file of its own."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from meterhouse.translate.call_id import NewCallId, new_call_id
from meterhouse.translate.tool_text.source import Source, Steps
from meterhouse.translate.tool_text.tools import Call, Tools


class Calls(Protocol):
    """Takes the calls that a grammar finds."""

    def add(self, call: Call) -> None:
        """Take a call. What was read until here is a part of it, and can no more become text."""
        ...


class Grammar(ABC):
    """How a family writes a call. Stateless: what is read so far is in the steps of ``read``."""

    markers: ClassVar[tuple[str, ...]]
    """What begins a call wherever it stands."""
    is_bare: ClassVar[bool] = False
    """Whether a call may also begin without a marker, where nothing but calls came before it; such a family says
    itself when it is sure enough for a failure (``Source.commit``)."""
    trims: ClassVar[bool] = False
    """Whether white space around an answer's text means nothing."""

    @property
    def new_call_id(self) -> NewCallId:
        """What makes the ids of its calls."""
        return new_call_id

    @abstractmethod
    def read(self, source: Source, tools: Tools, calls: Calls, marker: str) -> Steps[None]:
        """Read a call, or several in a row, behind a marker (``""``: there was none).

        Raises:
            Mismatch: It is no call; those that were added stay.
        """

    @abstractmethod
    def write(self, name: str, arguments: str) -> str:
        """Write a call as the family does; ``arguments`` is a JSON object as text."""

"""INTENTs that wait for the end of the loop's turn, so that those of one turn are one write; and what waits for them.

Invariant: what an INTENT stands for begins after it is written, and never where it is not. Not here: writing them
(``journal``, ``chain``), and what begins (whoever asked for the admission).
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from meterhouse.errors import JournalDown

OnKnown = Callable[[JournalDown | None], None]


class Admission(msgspec.Struct, eq=False):
    """Whether one INTENT is in the journal. A struct, because one is made for each attempt."""

    payload: bytes
    write: Callable[[], None] | None
    """Writes it; None: it is written already."""
    is_given: bool = False
    """Whether it is written, so that what it stands for may begin."""
    error: JournalDown | None = None
    """Why it is not, and will not be."""
    on_known: OnKnown | None = None
    """Who is to be told."""

    def tell(self, on_known: OnKnown) -> None:
        """Call back when it is known, and at once if it is: with None when it is written, else with the reason."""
        if self.is_given or self.error is not None:
            on_known(self.error)
        else:
            self.on_known = on_known

    def insist(self) -> None:
        """Have it written now, for what cannot be held back.

        Raises:
            JournalDown: It is not in the journal and will not be.
        """
        error = self.find_error()
        if error is not None:
            raise error

    def find_error(self) -> JournalDown | None:
        """Return why it is not written; where that is not known, it is written now."""
        if not self.is_given and self.error is None and self.write is not None:
            self.write()
        return self.error


class AdmitsIntents(Protocol):
    """What whoever begins something needs of the journal."""

    def admit(self, payload: bytes) -> Admission:
        """Append an INTENT, to be written at the end of this turn of the loop at the latest."""
        ...


class Admissions:
    """The INTENTs of a journal that wait for the end of this turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, write: Callable[[], None]) -> None:
        self.waiting: list[Admission] = []
        self._loop = loop
        self._write = write
        self._is_due = False

    def add(self, payload: bytes) -> Admission:
        """Let one wait; it is written with the others of this turn, or before with any other record."""
        admission = Admission(payload, self._write)
        self.waiting.append(admission)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._end_turn)
        return admission

    def give(self) -> None:
        """Let go everything that waits: it is written."""
        waiting, self.waiting = self.waiting, []
        for admission in waiting:
            admission.is_given = True
            if admission.on_known is not None:
                admission.on_known(None)

    def give_each(self, append: Callable[[bytes], object], last: int) -> None:
        """Append the last ones, each by itself, and refuse those that are not written; the others are written."""
        waiting, self.waiting = self.waiting, []
        written = len(waiting) - last
        for number, admission in enumerate(waiting):
            try:
                if number >= written:
                    append(admission.payload)
            except JournalDown as error:
                admission.error = error
            admission.is_given = admission.error is None
            if admission.on_known is not None:
                admission.on_known(admission.error)

    def _end_turn(self) -> None:
        self._is_due = False
        if self.waiting:
            self._write()

"""What the scripts of learning are told and answer; the other half is ``lua/learn_*``, ``open`` and ``known``.

Not here: the other scripts and the names of slots (``layout``), and what is learned when (``learning``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from meterhouse.limits.layout import NO, Reply, Status, encode, text_of
from meterhouse.metering import Sums


class SlotState(NamedTuple):
    """Where a slot stood when its learning began."""

    slot: str
    is_known: bool
    spent: int
    start_ms: int
    """Of the period that it counts; 0 for a total."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer to ``learn_begin``."""

    begin_ms: int
    """Requests admitted from here on, and the live ones, are Redis's to account for; all others the ledger's."""
    slots: tuple[SlotState, ...]
    live: frozenset[str]
    """The ids of all live reservations of the organization."""
    reaped: frozenset[str]
    """Those of the reaped ones that may be settled yet; what the slots count of them is no part of their ``spent``."""


class SlotCorrection(NamedTuple):
    """What ``learn_finish`` shall do with a slot."""

    slot: str
    start_ms: int
    delta: int
    may_lower: bool


def encode_learn_begin(token: str, lock_ms: int, slots: Sequence[str]) -> bytes:
    """Lock slots for a learner and attach those that are new."""
    return encode([token, lock_ms, *slots])


def decode_learn_begin(reply: Reply, slots: Sequence[str]) -> Begun | Status:
    """Read where the slots stand, or why it did not begin: ``BUSY`` or ``UNKNOWN``."""
    if reply[0] != Status.DONE:
        return Status(reply[0])
    end = 2 + 3 * len(slots)
    states = tuple(
        SlotState(slot, reply[at] == 1, reply[at + 1], reply[at + 2])
        for slot, at in zip(slots, range(2, end, 3), strict=True)
    )
    names = [text_of(name) for name in reply[end + 1 :]]
    live = reply[end]
    return Begun(reply[1], states, frozenset(names[:live]), frozenset(names[live:]))


def encode_learn_finish(
    token: str,
    corrections: Sequence[SlotCorrection],
    reaped: Iterable[tuple[str, Sums]] = (),
    quiet_since_ms: int | None = None,
    young: Sequence[str] = (),
) -> bytes:
    """Correct slots by what the ledger says, make them known, and unlock them.

    Args:
        token: the learner's, as in ``encode_learn_begin``.
        corrections: what to do with which slot.
        reaped: reaped reservations, and what the ledger has of each.
        quiet_since_ms: a reaped one of which nothing was heard since then is over: the ledger accounts for it from now
            on. None: each may still run.
        young: the ids of the young corrections that the ledger's sums have.
    """
    flat: list[str | int] = []
    for request_id, sums in reaped:
        flat += (request_id, sums.requests, sums.total_tokens, sums.charge_nanos)
    slots = [field for correction in corrections for field in correction]
    return encode([token, slots, flat, NO if quiet_since_ms is None else quiet_since_ms, young])


def untouched(slots: Iterable[str]) -> list[SlotCorrection]:
    """Return what unlocks slots after a failure and leaves them as they are: corrections of no period."""
    return [SlotCorrection(slot, NO, 0, may_lower=False) for slot in slots]


def decode_status(reply: Reply) -> Status:
    """Read a reply that says nothing more.

    ``learn_finish``: ``DONE``, ``BUSY`` (the lock of a slot was lost; the others are finished), ``UNKNOWN``.
    ``open``: ``DONE`` (opened), ``OPEN`` (it was), or ``RESOLVED`` (the organization is known).
    ``known`` and ``create``: ``DONE``, or ``UNKNOWN`` where there was nothing to do it to.
    """
    return Status(reply[0])


def encode_known(opened_at_ms: int) -> bytes:
    """Say that an organization is registered, as it was opened at a moment."""
    return encode([opened_at_ms])

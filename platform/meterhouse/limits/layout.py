"""What the scripts are told and what they answer: keys, the names of slots and owners, payloads, replies.

A slot is a counter's name on Redis; every limit that differs in nothing but its amount counts on one slot. A payload
is one MessagePack array; a reply is a flat array that begins with a ``Status``. The scripts in ``lua/`` are the other
half of this module: a change here is a change there. Not here: what to do with an answer.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import msgspec

from meterhouse.limits.window import period_of
from meterhouse.metering import (
    Correction,
    Demand,
    Kind,
    Limit,
    LimitState,
    Nature,
    Period,
    Refusal,
    RefusalKind,
    Reservation,
    Scope,
    Settlement,
    Use,
    Window,
)
from meterhouse.usage import Exactness

Reply = Sequence[Any]
"""A flat array of integers and byte strings."""
encode = msgspec.msgpack.Encoder().encode
"""Writes a payload."""
EMPTY = encode([])
ACTIVE_KEY = "mh:active"
"""Sorted set of organizations by the milliseconds of their last activity; the one key outside a hash tag."""
MOST_PLANS = 10_000
REAP_NOTHING = -1
"""In place of a silence: no expired lease is reaped now."""
NO = -1
"""Stands for None in payloads and replies."""


class Status(IntEnum):
    """The first element of a reply."""

    DONE = 0
    REFUSED = 1
    LEARN = 2
    """The slots that follow must be learned first."""
    UNKNOWN = 3
    """Redis does not know the organization: it must be recovered first."""
    RESOLVED = 4
    """The request was settled or reaped before."""
    BUSY = 5
    """Another worker is learning one of the slots."""
    MISSING = 6
    """The reservation is not live."""
    OPEN = 7
    """The organization's live reservations are being registered."""


_TYPES = {
    (Nature.RATE, Kind.REQUESTS): 1,
    (Nature.RATE, Kind.TOKENS): 2,
    (Nature.GAUGE, Kind.CONCURRENT): 3,
    (Nature.QUOTA, Kind.REQUESTS): 4,
    (Nature.QUOTA, Kind.TOKENS): 5,
    (Nature.BUDGET, Kind.SPEND): 6,
}
"""The numbers by which ``lua/prelude.lua`` knows how a limit behaves."""
_CALENDAR = {Window.TOTAL: 0, Window.DAY: 1, Window.MONTH: 2}
_REFUSALS = (RefusalKind.RESERVED, RefusalKind.RATE, RefusalKind.SPENT, RefusalKind.TOO_LARGE)

# --- names


def keys_of(organization_id: str) -> tuple[str, str, str]:
    """Return the counters, holds and leases of an organization: KEYS of every script, on one shard."""
    return f"mh:{{{organization_id}}}:m", f"mh:{{{organization_id}}}:h", f"mh:{{{organization_id}}}:l"


def slot_of(limit: Limit) -> str:
    """Return what a limit counts on, whatever its amount."""
    return f"{limit.scope}:{limit.scope_id}|{limit.kind}|{limit.window}|{limit.multiple}|{limit.model or ''}"


def limit_of(slot: str) -> Limit:
    """Return a limit that counts on a slot; its amount is 0."""
    owner, kind, window, multiple, model = slot.split("|", 4)
    scope, _, scope_id = owner.partition(":")
    return Limit(Scope(scope), scope_id, Kind(kind), Window(window), 0, int(multiple), model or None)


def period_of_slot(slot: str, start_ms: int) -> Period:
    """Return the period of a slot that begins at ``start_ms``; 0 for a total."""
    limit = limit_of(slot)
    return Period(limit, None, None) if limit.window is Window.TOTAL else period_of(limit, start_ms)


# --- reserving


class Plan(msgspec.Struct, frozen=True, eq=False):
    """What judges the requests of one key for one model; one is equal to itself alone."""

    limits: tuple[Limit, ...]
    """The strictest of each slot that bind the demand, in their order."""
    packed: msgspec.Raw
    """Them and their owners, as the script reads them."""
    organization_id: str
    keys: tuple[str, str, str]
    """Where it all is: ``keys_of`` the organization."""


class Plans:
    """Plans of principals, each computed once: a principal's limits stay the same tuple."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, str, str], tuple[tuple[Limit, ...], Plan]] = {}

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._plans)

    def of(self, demand: Demand) -> Plan:
        """Return the plan of a demand."""
        key = (id(demand.limits), demand.model, demand.root_key_id)
        found = self._plans.get(key)
        if found is not None:
            return found[1]
        limits = strictest(limit for limit in demand.limits if limit.model in {None, demand.model})
        packed = msgspec.Raw(encode([demand.model, *_lists_of(demand), *_flatten(limits)]))
        plan = Plan(limits, packed, demand.organization_id, keys_of(demand.organization_id))
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()
        # The tuple is kept with its plan, so that its id is not given to another.
        self._plans[key] = (demand.limits, plan)
        return plan


def strictest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Return the least amount for each slot, in the order in which the slots come first."""
    least: dict[str, Limit] = {}
    for limit in limits:
        slot = slot_of(limit)
        other = least.get(slot)
        if other is None or limit.amount < other.amount:
            least[slot] = limit
    return tuple(least.values())


def _attachments_of(scope: Scope, scope_id: str) -> str:
    """Return the field that lists the slots which everything in a scope moves."""
    return f"a|{scope}:{scope_id}"


def _lists_of(demand: Demand) -> tuple[str, str, str]:
    return (
        _attachments_of(Scope.KEY, demand.root_key_id),
        _attachments_of(Scope.PROJECT, demand.project_id),
        _attachments_of(Scope.ORGANIZATION, demand.organization_id),
    )


def encode_reserve(demands: Iterable[tuple[Plan, Demand, object]], lease_ms: int, silence_ms: int) -> bytes:
    """Ask for demands of one organization to be held, each judged by its plan; what else comes with one is not told."""
    numbers: dict[Plan, int] = {}
    packed: list[msgspec.Raw] = []
    plan_of: list[int] = []
    payload: list[object] = [lease_ms, silence_ms, packed, plan_of]
    for plan, demand, _ in demands:
        if plan not in numbers:
            packed.append(plan.packed)
            numbers[plan] = len(packed)
        plan_of.append(numbers[plan])
        payload.append(
            (
                demand.request_id,
                demand.rate_input_tokens,
                demand.held_input_tokens,
                demand.output_tokens,
                demand.rate_output_tokens,
                demand.choices,
                1 if demand.is_streamed and not demand.holds_whole_allowance else 0,
                demand.input_nanos_per_million,
                demand.output_nanos_per_million,
                demand.request_nanos,
            )
        )
    return encode(payload)


def decode_reserve(reply: Reply, request_id: str, limits: Sequence[Limit]) -> Reservation | Refusal:
    """Read a decision; of an id that was ``RESOLVED`` a reservation that holds and allows nothing."""
    status = reply[0]
    if status == Status.DONE:
        allowance, held_output = reply[2], reply[3]
        return Reservation(
            request_id,
            reply[1],
            None if allowance == NO else allowance,
            None if held_output == NO else held_output,
            reply[4],
            _read_states(limits, reply, 5),
        )
    if status == Status.REFUSED:
        _, index, kind, used, demanded, wait_ms, *_ = reply
        retry_after_seconds = None if wait_ms == NO else wait_ms / 1000
        return Refusal(
            _REFUSALS[kind], limits[index], used, demanded, retry_after_seconds, _read_states(limits, reply, 6)
        )
    return Reservation(request_id, reply[1], 0, 0, 0, ())


def decode_slots(reply: Reply) -> list[str]:
    """Read the slots of a ``LEARN`` reply."""
    return [text_of(slot) for slot in reply[1:]]


# --- live reservations


def encode_extend(request_id: str, held_output_tokens: int) -> bytes:
    """Ask for so much output over all choices to be held."""
    return encode((request_id, held_output_tokens))


def encode_settle(settlements: Iterable[tuple[str, Settlement]]) -> bytes:
    """Tell the truth about requests."""
    flat: list[str | int] = []
    for request_id, truth in settlements:
        is_reported = 1 if truth.exactness is Exactness.REPORTED else 0
        flat += (request_id, truth.requests, truth.total_tokens, truth.charge_nanos, is_reported)
    return encode(flat)


def encode_renew(lease_ms: int, uses: Mapping[str, Use]) -> bytes:
    """Tell what live requests have used so far."""
    flat: list[str | int] = [lease_ms]
    for request_id, use in uses.items():
        flat += (request_id, 1 if use.is_sent else 0, use.total_tokens, use.charge_nanos)
    return encode(flat)


def decode_ids(reply: Reply) -> list[str]:
    """Read the ids of a reply to ``renew``."""
    return [text_of(name) for name in reply[1:]]


def encode_register(lease_ms: int, reservations: Collection[tuple[Demand, Reservation, Use | None]]) -> bytes:
    """Describe live reservations, with what each has used so far."""
    return encode([lease_ms, *[_describe(*reservation) for reservation in reservations]])


def _describe(demand: Demand, reservation: Reservation, use: Use | None) -> list[object]:
    key, project, _ = _lists_of(demand)
    bound = strictest(limit for limit in demand.limits if limit.model in {None, demand.model})
    periods = [limit for limit in bound if limit.nature in {Nature.QUOTA, Nature.BUDGET}]
    is_sent = use is not None and use.is_sent
    return [
        demand.request_id,
        reservation.admitted_at_ms,
        NO if reservation.allowance_tokens is None else reservation.allowance_tokens,
        NO if reservation.held_output_tokens is None else reservation.held_output_tokens,
        reservation.held_nanos,
        key,
        project,
        demand.model,
        demand.held_input_tokens,
        demand.input_nanos_per_million,
        demand.output_nanos_per_million,
        demand.request_nanos,
        demand.output_tokens * demand.choices,
        1 if is_sent else 0,
        0 if use is None else use.total_tokens,
        0 if use is None else use.charge_nanos,
        [field for limit in periods for field in (slot_of(limit), limit.amount)],
    ]


# --- looking and correcting


def encode_states(limits: Sequence[Limit]) -> bytes:
    """Ask where limits stand."""
    return encode(_flatten(limits))


def decode_states(reply: Reply, limits: Sequence[Limit]) -> list[LimitState]:
    """Read where limits stand, in their order."""
    return _read_states(limits, reply, 1)


def encode_sweep(most: int, cursor: str, silence_ms: int) -> bytes:
    """Ask for at most so many leases to be reaped, and for the page of the counters at a cursor; ``0`` is the first."""
    return encode([most, cursor, silence_ms])


def decode_sweep(reply: Reply) -> tuple[int, str, list[str]]:
    """Read how many leases were reaped, the cursor of the next page, and the known slots of this one."""
    return reply[1], text_of(reply[2]), [text_of(slot) for slot in reply[3:]]


def encode_adjust(correction: Correction) -> bytes:
    """Tell a correction that the ledger has."""
    lists = [
        _attachments_of(Scope.PROJECT, correction.project_id),
        _attachments_of(Scope.ORGANIZATION, correction.organization_id),
    ]
    if correction.root_key_id is not None:
        lists.append(_attachments_of(Scope.KEY, correction.root_key_id))
    return encode([correction.id, correction.at_ms, correction.nanos, correction.tokens, *lists])


def _flatten(limits: Iterable[Limit]) -> list[str | int]:
    flat: list[str | int] = []
    for limit in limits:
        is_rate = limit.nature is Nature.RATE
        aux = limit.window_ms if is_rate else _CALENDAR.get(limit.window, 0)
        flat += (slot_of(limit), _TYPES[limit.nature, limit.kind], limit.amount, aux)
    return flat


def _read_states(limits: Sequence[Limit], reply: Reply, first: int) -> list[LimitState]:
    """Read three numbers for each limit, the first of them at a place of a reply."""
    return [
        LimitState(limit, spent, reserved, None if resets_at_ms == NO else resets_at_ms)
        for limit, spent, reserved, resets_at_ms in zip(
            limits, reply[first::3], reply[first + 1 :: 3], reply[first + 2 :: 3], strict=True
        )
    ]


def text_of(name: str | bytes) -> str:
    """Read a name of a reply."""
    return name.decode() if isinstance(name, bytes) else name

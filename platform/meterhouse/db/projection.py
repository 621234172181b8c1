"""The hourly projection of the ledger: what one record adds to it, in Python and, to check it, in SQL.

Invariant: both ways of counting agree for every record, and every measure adds up, so that the projection can be
dropped and rebuilt. Not here: transactions and queries (``db.ledger``).
"""

from bisect import bisect_left
from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from meterhouse.db.tables import (
    COMPONENT_COLUMNS,
    DURATION_BOUNDS_MS,
    DURATION_COLUMNS,
    FIRST_TOKEN_BOUNDS_MS,
    FIRST_TOKEN_COLUMNS,
    HOUR_MS,
    MEASURE_COLUMNS,
    TOKEN_COLUMNS,
    usage_record,
)
from meterhouse.usage import UsageRecord

_SAME_IN_BOTH = frozenset({"requests", "charge_nanos", *TOKEN_COLUMNS, *COMPONENT_COLUMNS.values()})
_TOKENS_AT = MEASURE_COLUMNS.index(TOKEN_COLUMNS[0])
_CHARGE_AT = MEASURE_COLUMNS.index("charge_nanos")
_COMPONENT_AT = {component: MEASURE_COLUMNS.index(column) for component, column in COMPONENT_COLUMNS.items()}
_FIRST_TOKEN_AT = MEASURE_COLUMNS.index(FIRST_TOKEN_COLUMNS[0])
_DURATION_AT = MEASURE_COLUMNS.index(DURATION_COLUMNS[0])


def fold(records: Iterable[UsageRecord]) -> list[tuple[str | int, ...]]:
    """Sum records by hour and key, as rows of ``HOUR_KEY_COLUMNS`` and ``MEASURE_COLUMNS``.

    The rows are in the order of the primary key, so that two writers cannot deadlock.
    """
    groups: dict[tuple[str | int, ...], list[int]] = {}
    for record in records:
        group = _group_of(record)
        sums = groups.get(group)
        if sums is None:
            sums = groups[group] = [0] * len(MEASURE_COLUMNS)
        _add(sums, record)
    return [(*group, *groups[group]) for group in sorted(groups)]


def _group_of(record: UsageRecord) -> tuple[str | int, ...]:
    return (
        record.organization_id,
        record.admitted_at_ms - record.admitted_at_ms % HOUR_MS,
        record.project_id,
        record.key_id,
        record.root_key_id,
        record.model,
        record.provider,
        record.operation,
        record.service_tier,
        record.outcome.value,
        record.error_owner,
    )


def _add(sums: list[int], record: UsageRecord) -> None:
    sums[0] += record.requests
    if record.attempt > 0:
        sums[1] += 1
    for at, tokens in enumerate(msgspec.structs.astuple(record.usage), _TOKENS_AT):
        sums[at] += tokens
    sums[_CHARGE_AT] += record.charge_nanos
    for component, nanos in record.charges:
        sums[_COMPONENT_AT[component]] += nanos
    if record.time_to_first_token_ms is not None:
        sums[_FIRST_TOKEN_AT + bisect_left(FIRST_TOKEN_BOUNDS_MS, record.time_to_first_token_ms)] += 1
    sums[_DURATION_AT + bisect_left(DURATION_BOUNDS_MS, record.duration_ms)] += 1


def record_measure(name: str) -> sa.ColumnElement[int]:
    """Return what one row of ``usage_record`` adds to a measure, as an SQL expression."""
    columns = usage_record.c
    if name in _SAME_IN_BOTH:
        return columns[name]
    if name == "attempts":
        return sa.case((columns.attempt > 0, 1), else_=0)
    prefix, _, bucket = name.rpartition("_")
    if prefix == "duration":
        return _falls_into(columns.duration_ms, DURATION_BOUNDS_MS, int(bucket))
    return _falls_into(columns.time_to_first_token_ms, FIRST_TOKEN_BOUNDS_MS, int(bucket))


def record_key(name: str) -> sa.ColumnElement[str | int]:
    """Return the value of a key column of ``usage_hour`` for one row of ``usage_record``, as an SQL expression."""
    if name == "hour_ms":
        return usage_record.c.admitted_at_ms - usage_record.c.admitted_at_ms % HOUR_MS
    return usage_record.c[name]


def _falls_into(value: sa.ColumnElement[int], bounds: tuple[int, ...], bucket: int) -> sa.ColumnElement[int]:
    conditions = []
    if bucket > 0:
        conditions.append(value > bounds[bucket - 1])
    if bucket < len(bounds):
        conditions.append(value <= bounds[bucket])
    return sa.case((sa.and_(*conditions), 1), else_=0)

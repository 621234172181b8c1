"""The hourly projection of the ledger: what one record adds to it, in Python and, to check it, in SQL.

Invariant: both ways of counting agree for every record, and every measure adds up, so that the projection can be
dropped and rebuilt. Not here: transactions and queries (``db.ledger``).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from meterhouse.db.tables import (
    COMPONENT_COLUMNS,
    DURATION_BOUNDS_MS,
    DURATION_COLUMNS,
    FIRST_TOKEN_BOUNDS_MS,
    FIRST_TOKEN_COLUMNS,
    HOUR_KEY_COLUMNS,
    HOUR_MS,
    MEASURE_COLUMNS,
    TOKEN_COLUMNS,
    usage_record,
)

_SAME_IN_BOTH = ("requests", "charge_nanos", *TOKEN_COLUMNS, *COMPONENT_COLUMNS.values())
_ATTEMPTS_AT = MEASURE_COLUMNS.index("attempts")
_FIRST_TOKEN_AT = MEASURE_COLUMNS.index(FIRST_TOKEN_COLUMNS[0])
_DURATION_AT = MEASURE_COLUMNS.index(DURATION_COLUMNS[0])


def fold(columns: Mapping[str, Sequence[Any]]) -> list[tuple[str | int, ...]]:
    """Sum records, given as columns of ``usage_record``, by hour and key.

    Returns rows of ``HOUR_KEY_COLUMNS`` and ``MEASURE_COLUMNS``, in the order of the primary key, so that two writers
    cannot deadlock.
    """
    hours = [at_ms - at_ms % HOUR_MS for at_ms in columns["admitted_at_ms"]]
    added = [(MEASURE_COLUMNS.index(name), columns[name]) for name in _SAME_IN_BOTH if any(columns[name])]
    added.append((_ATTEMPTS_AT, [int(attempt > 0) for attempt in columns["attempt"]]))
    first_tokens, durations = columns["time_to_first_token_ms"], columns["duration_ms"]
    groups: dict[tuple[str | int, ...], list[int]] = {}
    keys = zip(*(hours if name == "hour_ms" else columns[name] for name in HOUR_KEY_COLUMNS), strict=True)
    for number, key in enumerate(keys):
        sums = groups.get(key)
        if sums is None:
            sums = groups[key] = [0] * len(MEASURE_COLUMNS)
        for at, values in added:
            sums[at] += values[number]
        if (first_token_ms := first_tokens[number]) is not None:
            sums[_FIRST_TOKEN_AT + bisect_left(FIRST_TOKEN_BOUNDS_MS, first_token_ms)] += 1
        sums[_DURATION_AT + bisect_left(DURATION_BOUNDS_MS, durations[number])] += 1
    return [(*key, *groups[key]) for key in sorted(groups)]


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

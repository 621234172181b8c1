"""Chains of sealed rows that no database has seen."""

from dataclasses import replace

from meterhouse.ledger.seal import COLUMNS, Entry, Kind, hash_row

SEALED_MS = 1_800_000_000_000


def usage_row(number, **changes):
    row = dict.fromkeys(COLUMNS[Kind.USAGE], 0)
    texts = ("project_id", "key_id", "root_key_id", "model", "served_model", "provider", "deployment", "trace_id")
    more = ("upstream_model", "operation", "service_tier", "outcome", "exactness", "error_owner", "error_code")
    row |= {name: f"{name} of {number}" for name in (*texts, *more)}
    row |= {"request_id": f"{number:032x}", "attempt": 1, "requests": 1, "organization_id": "org_1"}
    row |= {"is_streamed": number % 2 == 0, "is_suspect": False, "price_id": None, "time_to_first_token_ms": None}
    row |= {"charge_nanos": 1_000 + number, "input_tokens": 10 * number, "output_tokens": number}
    return {**row, **changes}


def chain(length, organization_id="org_1", **changes):
    """Make the first rows of an organization's chain."""
    entries = []
    previous = ""
    for number in range(1, length + 1):
        row = usage_row(number, organization_id=organization_id, **changes)
        sealed_at_ms = SEALED_MS + number
        sealed = hash_row("usage", organization_id, number, previous, sealed_at_ms, row)
        entries.append(Entry("usage", organization_id, number, previous, sealed, sealed_at_ms, row))
        previous = sealed
    return entries


def reseal(entry, **changes):
    """Change a row as somebody would who knows how seals are made."""
    row = {**entry.row, **changes}
    sealed = hash_row(entry.kind, entry.organization_id, entry.sequence, entry.previous_hash, entry.sealed_at_ms, row)
    return replace(entry, row=row, hash=sealed)

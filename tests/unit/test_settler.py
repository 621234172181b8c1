"""Who pays for what: from a tally to the records and to the settlement of its reservation."""

from typing import Any

import msgspec
import pytest

from meterhouse.errors import JournalDown, UpstreamDown, UpstreamRefused
from meterhouse.identity import Principal
from meterhouse.ledger.record import Terminal, encode
from meterhouse.ledger.settler import Settler, build_records, charged_usage
from meterhouse.metering import Reservation, Settlement
from meterhouse.money import Component, Meterable, Price
from meterhouse.request import Attempt, Tally
from meterhouse.usage import Exactness, Outcome, Usage

REPORTED = Usage(input_tokens=11, cached_input_tokens=2, output_tokens=7, reasoning_tokens=3)
COUNTED = Usage(input_tokens=13, output_tokens=9)
ESTIMATED = Usage(input_tokens=33, output_tokens=10)
NOTHING = Usage()
PRICE = Price(
    "price_1",
    "fake",
    "model",
    (Component(Meterable.INPUT, 1_000_000), Component(Meterable.OUTPUT, 4_000_000)),
    0,
    "test",
)
PRINCIPAL = Principal("org_1", "proj_1", "key_2", "key_1", frozenset(), None, (), None)
SECOND = 1_000_000_000


def attempt_of(outcome: Outcome | None, number: int = 1, **changes: Any) -> Attempt:
    """An attempt that sent 3 events of 40 bytes."""
    attempt = Attempt(
        number=number,
        provider="fake",
        deployment="fake/model",
        upstream_model="model",
        price=PRICE,
        started_ns=10 * SECOND,
        first_event_ns=10 * SECOND + 250_000_000,
        ended_ns=12 * SECOND,
        outcome=outcome,
        output_events=3,
        output_bytes=40,
    )
    for name, value in changes.items():
        setattr(attempt, name, value)
    return attempt


def tally_of(*attempts: Attempt, held: int | None = 200, held_nanos: int = 1_000, **changes: Any) -> Tally:
    tally = Tally(
        request_id="0" * 12 + "7" + "0" * 19,
        principal=PRINCIPAL,
        model="asked",
        operation="chat",
        is_streamed=True,
        reservation=Reservation("id", 1_795_000_000_000, 500, held, held_nanos, ()),
        input_tokens_estimate=33,
        held_input_tokens=120,
        is_input_countable=True,
        trace_id="a" * 32,
        started_ns=9 * SECOND,
        asked_ns=9 * SECOND,
        admitted_ns=9 * SECOND,
        attempts=list(attempts),
    )
    for name, value in changes.items():
        setattr(tally, name, value)
    return tally


def charged(attempt: Attempt, **changes: Any) -> tuple[Usage, Exactness]:
    return charged_usage(tally_of(attempt, **changes), attempt)


# --- the table


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.WORKER_LOST])
@pytest.mark.parametrize("first_event_ns", [None, 5])
def test_what_the_provider_reported_is_charged_whatever_the_outcome(
    outcome: Outcome, first_event_ns: int | None
) -> None:
    attempt = attempt_of(outcome, reported=REPORTED, counted=COUNTED, first_event_ns=first_event_ns)
    assert charged(attempt) == (REPORTED, Exactness.REPORTED)


@pytest.mark.parametrize(
    ("outcome", "has_begun", "is_charged"),
    [
        (Outcome.COMPLETED, True, True),
        (Outcome.CLIENT_GONE, True, True),
        (Outcome.CUT, True, True),
        (Outcome.UPSTREAM_FAILED, True, True),
        (Outcome.UPSTREAM_FAILED, False, False),
        (Outcome.REFUSED, True, False),
        (Outcome.REFUSED, False, False),
        (Outcome.NOT_SENT, True, False),
        (Outcome.NOT_SENT, False, False),
    ],
)
def test_without_a_report_what_came_is_counted_where_the_provider_bills(
    outcome: Outcome, has_begun: bool, is_charged: bool
) -> None:
    attempt = attempt_of(outcome, first_event_ns=5 if has_begun else None)
    assert charged(attempt) == (ESTIMATED if is_charged else NOTHING, Exactness.COUNTED)
    attempt.counted = COUNTED
    assert charged(attempt) == (COUNTED if is_charged else NOTHING, Exactness.COUNTED)


@pytest.mark.parametrize("is_input_countable", [True, False])
@pytest.mark.parametrize("is_output_countable", [True, False])
def test_what_can_be_neither_reported_nor_counted_is_charged_as_it_was_held(
    is_input_countable: bool, is_output_countable: bool
) -> None:
    attempt = attempt_of(Outcome.COMPLETED, is_countable=is_output_countable, counted=COUNTED)
    usage, exactness = charged(attempt, is_input_countable=is_input_countable)
    if is_input_countable and is_output_countable:
        assert (usage, exactness) == (COUNTED, Exactness.COUNTED)
        return
    assert exactness is Exactness.ASSUMED
    assert usage.input_tokens == (33 if is_input_countable else 120)
    assert usage.output_tokens == (10 if is_output_countable else 200)


def test_without_a_hold_the_uncountable_is_estimated() -> None:
    attempt = attempt_of(Outcome.COMPLETED, is_countable=False)
    assert charged(attempt, held=None)[0] == ESTIMATED


@pytest.mark.parametrize(
    "known",
    [
        {"counted": Usage(input_tokens=13, output_tokens=900)},
        {"output_bytes": 3_600},
        {"reported": Usage(input_tokens=13, output_tokens=900, reasoning_tokens=700, output_audio_tokens=800)},
    ],
)
def test_a_cut_answer_is_charged_at_most_its_hold(known: dict[str, Any]) -> None:
    usage, exactness = charged(attempt_of(Outcome.CUT, **known))
    assert (usage.output_tokens, exactness) == (200, Exactness.COUNTED)
    assert max(usage.reasoning_tokens, usage.output_audio_tokens) <= 200
    (record,) = build_records(tally_of(attempt_of(Outcome.CUT, **known), held_nanos=33 + 200 * 4), 12 * SECOND)
    assert record.charge_nanos <= 33 + 200 * 4
    assert record.overrun_nanos == 0


def test_a_cut_answer_without_a_hold_is_charged_as_counted() -> None:
    assert charged(attempt_of(Outcome.CUT, counted=COUNTED), held=None)[0] == COUNTED
    assert charged(attempt_of(Outcome.CUT, reported=REPORTED), held=None) == (REPORTED, Exactness.REPORTED)


def test_other_outcomes_are_charged_in_full_beyond_the_hold() -> None:
    usage = Usage(input_tokens=13, output_tokens=900)
    assert charged(attempt_of(Outcome.COMPLETED, reported=usage))[0] == usage
    assert charged(attempt_of(Outcome.UPSTREAM_FAILED, counted=usage))[0] == usage


# --- records


def test_a_record_says_everything_of_its_attempt() -> None:
    error = UpstreamDown("gone")
    attempt = attempt_of(
        Outcome.UPSTREAM_FAILED, reported=REPORTED, error=error, served_model="model-2", service_tier="flex"
    )
    (record,) = build_records(tally_of(attempt), 99 * SECOND)
    assert (record.request_id, record.attempt, record.requests) == ("0" * 12 + "7" + "0" * 19, 1, 1)
    assert (record.organization_id, record.project_id, record.key_id, record.root_key_id) == (
        "org_1",
        "proj_1",
        "key_2",
        "key_1",
    )
    assert (record.model, record.upstream_model, record.served_model) == ("asked", "model", "model-2")
    assert (record.provider, record.deployment, record.service_tier) == ("fake", "fake/model", "flex")
    assert (record.operation, record.outcome, record.exactness) == ("chat", "upstream_failed", "reported")
    assert (record.usage, record.is_suspect, record.overrun_nanos) == (REPORTED, False, 0)
    assert (record.error_owner, record.error_code) == ("provider", "upstream_unavailable")
    assert (record.time_to_first_token_ms, record.duration_ms) == (250, 2_000)
    assert (record.admitted_at_ms, record.trace_id, record.is_streamed) == (1_795_000_000_000, "a" * 32, True)
    assert (record.price_id, record.charge_nanos) == ("price_1", 11 + 28)
    assert dict(record.charges) == {"input": 9, "cached_input": 2, "output": 28}


def test_a_refused_attempt_names_the_caller() -> None:
    refused = UpstreamRefused("too long", status=400, code=None, param="messages")
    (record,) = build_records(tally_of(attempt_of(Outcome.REFUSED, error=refused)), 12 * SECOND)
    assert (record.error_owner, record.error_code, record.charge_nanos) == ("caller", "", 0)


def test_without_a_price_nothing_is_charged_and_the_tokens_are_kept() -> None:
    (record,) = build_records(tally_of(attempt_of(Outcome.COMPLETED, price=None, reported=REPORTED)), 12 * SECOND)
    assert (record.price_id, record.charge_nanos, record.charges, record.usage) == (None, 0, (), REPORTED)


def test_an_attempt_that_charges_nothing_has_no_price_per_request_either() -> None:
    price = msgspec.structs.replace(PRICE, components=(Component(Meterable.REQUEST, 5_000_000),))
    (failed,) = build_records(
        tally_of(attempt_of(Outcome.UPSTREAM_FAILED, price=price, first_event_ns=None)), 12 * SECOND
    )
    (done,) = build_records(tally_of(attempt_of(Outcome.COMPLETED, price=price)), 12 * SECOND)
    assert (failed.charge_nanos, done.charge_nanos) == (0, 5)


def test_a_request_that_reached_no_provider_has_one_record_of_attempt_zero() -> None:
    (record,) = build_records(tally_of(), 12 * SECOND)
    assert (record.attempt, record.requests, record.outcome) == (0, 0, Outcome.NOT_SENT)
    assert (record.usage, record.charge_nanos, record.price_id) == (NOTHING, 0, None)
    assert (record.time_to_first_token_ms, record.duration_ms) == (None, 3_000)


def test_an_attempt_that_was_never_ended_is_cut_at_the_settlement() -> None:
    (record,) = build_records(tally_of(attempt_of(None, ended_ns=None)), 14 * SECOND)
    assert (record.outcome, record.duration_ms) == (Outcome.CUT, 4_000)


def test_of_several_attempts_the_last_counts_as_the_request() -> None:
    tally = tally_of(
        attempt_of(Outcome.UPSTREAM_FAILED, 1, first_event_ns=None),
        attempt_of(Outcome.UPSTREAM_FAILED, 2, first_event_ns=None),
        attempt_of(Outcome.COMPLETED, 3, reported=REPORTED),
    )
    records = build_records(tally, 12 * SECOND)
    assert [(record.attempt, record.requests, record.charge_nanos) for record in records] == [
        (1, 0, 0),
        (2, 0, 0),
        (3, 1, 39),
    ]


def test_an_overrun_is_what_the_charges_of_all_attempts_exceed_the_hold_by() -> None:
    first = attempt_of(Outcome.UPSTREAM_FAILED, 1, reported=Usage(input_tokens=60))
    second = attempt_of(Outcome.UPSTREAM_FAILED, 2, reported=Usage(input_tokens=60))
    third = attempt_of(Outcome.COMPLETED, 3, reported=Usage(input_tokens=5))
    records = build_records(tally_of(first, second, third, held_nanos=100), 12 * SECOND)
    assert [record.charge_nanos for record in records] == [60, 60, 5]
    assert [record.overrun_nanos for record in records] == [0, 20, 5]


def test_without_a_budget_there_is_no_overrun() -> None:
    attempt = attempt_of(Outcome.COMPLETED, reported=Usage(output_tokens=10**6))
    assert build_records(tally_of(attempt, held=None, held_nanos=0), 12 * SECOND)[0].overrun_nanos == 0


# --- the settlement


class Parts:
    """What a settler writes to."""

    def __init__(self, failure: JournalDown | None = None) -> None:
        self.payloads: list[bytes] = []
        self.ends: list[bytes] = []
        """Those of the payloads whose barrier somebody is about to await."""
        self.settled: list[tuple[Reservation, Settlement]] = []
        self._failure = failure

    def append(self, payload: bytes, *, is_admission: bool = False) -> int:
        assert not is_admission
        if self._failure is not None:
            raise self._failure
        self.payloads.append(payload)
        return 77

    def append_end(self, payload: bytes) -> int:
        self.ends.append(payload)
        return self.append(payload)

    def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        self.settled.append((reservation, settlement))


def test_a_settlement_is_what_the_records_add_up_to() -> None:
    tally = tally_of(
        attempt_of(Outcome.UPSTREAM_FAILED, 1),
        attempt_of(Outcome.COMPLETED, 2, reported=REPORTED),
    )
    parts = Parts()
    assert Settler(parts, parts).settle(tally) == 77  # type: ignore[arg-type]
    assert parts.payloads == [encode(Terminal(tally.records))]
    charge_nanos = 33 + 40 + 39
    assert parts.settled == [(tally.reservation, Settlement(1, 43 + 18, charge_nanos, Exactness.REPORTED))]
    assert sum(record.charge_nanos for record in tally.records) == charge_nanos
    assert tally.settled_ns is not None


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.WORKER_LOST])
def test_only_the_end_of_a_completed_request_waits_for_its_barrier_to_be_written(outcome: Outcome) -> None:
    parts = Parts()
    Settler(parts, parts).settle(tally_of(attempt_of(outcome)))  # type: ignore[arg-type]
    assert parts.ends == (parts.payloads if outcome is Outcome.COMPLETED else [])


def test_a_request_that_reached_no_provider_counts_against_no_quota() -> None:
    parts = Parts()
    Settler(parts, parts).settle(tally_of())  # type: ignore[arg-type]
    ((_, settlement),) = parts.settled
    assert (settlement.requests, settlement.total_tokens, settlement.charge_nanos) == (0, 0, 0)


def test_a_journal_that_fails_does_not_keep_the_reservation() -> None:
    parts = Parts(JournalDown("The disk is full."))
    tally = tally_of(attempt_of(Outcome.COMPLETED, reported=REPORTED))
    with pytest.raises(JournalDown):
        Settler(parts, parts).settle(tally)  # type: ignore[arg-type]
    assert [settlement.charge_nanos for _, settlement in parts.settled] == [39]
    assert len(tally.records) == 1

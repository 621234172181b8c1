"""The grammar in which operators write limits: what is read, what is refused and how it says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import Malformed
from meterhouse.limits.limit import MAX_AMOUNT, check_limit, format_limit, parse_limits
from meterhouse.metering import Kind, Limit, Nature, Scope, Window

WINDOWS = {
    Kind.REQUESTS: [Window.SECOND, Window.MINUTE, Window.HOUR, Window.DAY, Window.MONTH, Window.TOTAL],
    Kind.TOKENS: [Window.SECOND, Window.MINUTE, Window.HOUR, Window.DAY, Window.MONTH, Window.TOTAL],
    Kind.SPEND: [Window.DAY, Window.MONTH, Window.TOTAL],
    Kind.CONCURRENT: [Window.NONE],
}


def parse_one(text: str) -> Limit:
    (limit,) = parse_limits(text, Scope.PROJECT, "proj_1")
    return limit


def limit(kind: Kind, window: Window, amount: int, multiple: int = 1, model: str | None = None) -> Limit:
    return Limit(Scope.PROJECT, "proj_1", kind, window, amount, multiple, model)


@pytest.mark.parametrize(
    ("text", "expected", "nature"),
    [
        ("requests 600/minute", limit(Kind.REQUESTS, Window.MINUTE, 600), Nature.RATE),
        ("requests 5/second", limit(Kind.REQUESTS, Window.SECOND, 5), Nature.RATE),
        ("tokens 200000/hour", limit(Kind.TOKENS, Window.HOUR, 200_000), Nature.RATE),
        ("requests 10 per 2 minutes", limit(Kind.REQUESTS, Window.MINUTE, 10, 2), Nature.RATE),
        ("requests 10/2minutes", limit(Kind.REQUESTS, Window.MINUTE, 10, 2), Nature.RATE),
        ("10/minute", limit(Kind.REQUESTS, Window.MINUTE, 10), Nature.RATE),
        ("10 per hour", limit(Kind.REQUESTS, Window.HOUR, 10), Nature.RATE),
        ("requests 1000/day", limit(Kind.REQUESTS, Window.DAY, 1000), Nature.QUOTA),
        ("tokens 5/month", limit(Kind.TOKENS, Window.MONTH, 5), Nature.QUOTA),
        ("tokens 1000000 total", limit(Kind.TOKENS, Window.TOTAL, 1_000_000), Nature.QUOTA),
        ("concurrent 20", limit(Kind.CONCURRENT, Window.NONE, 20), Nature.GAUGE),
        ("spend 25 USD/month", limit(Kind.SPEND, Window.MONTH, 25_000_000_000), Nature.BUDGET),
        ("spend 0.50 USD total", limit(Kind.SPEND, Window.TOTAL, 500_000_000), Nature.BUDGET),
        ("spend 0.000000001 USD per day", limit(Kind.SPEND, Window.DAY, 1), Nature.BUDGET),
        ("spend 4000000 USD/month", limit(Kind.SPEND, Window.MONTH, MAX_AMOUNT), Nature.BUDGET),
        ("  SPEND  1USD / Month ", limit(Kind.SPEND, Window.MONTH, 1_000_000_000), Nature.BUDGET),
        (
            "tokens 10/minute for openai/gpt-4o:free.v2-x",
            limit(Kind.TOKENS, Window.MINUTE, 10, 1, "openai/gpt-4o:free.v2-x"),
            Nature.RATE,
        ),
        ("concurrent 2 for qwen2.5:7b", limit(Kind.CONCURRENT, Window.NONE, 2, 1, "qwen2.5:7b"), Nature.GAUGE),
        ("3/second for total", limit(Kind.REQUESTS, Window.SECOND, 3, 1, "total"), Nature.RATE),
    ],
)
def test_a_clause_is_read(text: str, expected: Limit, nature: Nature) -> None:
    assert parse_one(text) == expected
    assert expected.nature is nature


def test_clauses_are_separated_by_semicolons_and_newlines_and_keep_their_order() -> None:
    text = "requests 600/minute; tokens 200000/minute;\n concurrent 20\n\nspend 25 USD/month;tokens 1000000 total;"
    kinds = [(limit.kind, limit.window) for limit in parse_limits(text, Scope.KEY, "key_1")]
    assert kinds == [
        (Kind.REQUESTS, Window.MINUTE),
        (Kind.TOKENS, Window.MINUTE),
        (Kind.CONCURRENT, Window.NONE),
        (Kind.SPEND, Window.MONTH),
        (Kind.TOKENS, Window.TOTAL),
    ]


def test_no_clause_is_no_limit() -> None:
    assert parse_limits(" ;\n; ", Scope.KEY, "key_1") == ()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("spend 5 USD/minute", "per day, per month or in 'total'"),
        ("spend 5 USD/hour", "per day, per month or in 'total'"),
        ("spend 5 USD/year", "per day, per month or in 'total'"),
        ("spend 5 USD per 2 months", "UTC calendar"),
        ("spend 5/month", "25 USD/month"),
        ("spend five USD/month", "25 USD/month"),
        ("spend 5 USD", "for example"),
        ("spend -5 USD/month", "25 USD/month"),
        ("spend 0 USD/month", "more than 0"),
        ("spend 0.0000000001 USD/month", "9 decimals"),
        ("spend 1.0000000000 USD/month", "9 decimals"),
        ("spend 4000000.000000001 USD/month", "at most 4000000 USD"),
        ("requests 10/year", "second, minute, hour, day, month or 'total'"),
        ("requests 10 per 2 days", "UTC calendar"),
        ("tokens 10 per 3 months", "UTC calendar"),
        ("tokens 10 per 0 minutes", "at least one"),
        ("tokens 10/0minutes", "at least one"),
        ("requests 0/minute", "more than 0"),
        ("tokens 0 total", "more than 0"),
        ("tokens 4000000000000001 total", "at most 4000000000000000"),
        ("requests 10 per 25 hours", "24 hours"),
        ("requests 10", "for example"),
        ("requests 1.5/minute", "for example"),
        ("requests ten/minute", "for example"),
        ("requests 10/fortnight", "for example"),
        ("requests 10/minute, 5/hour", "separate limits with ';'"),
        ("requests 10/minute|5/hour", "separate limits with ';'"),
        ("10 total", "for example"),
        ("requests/minute", "for example"),
        ("concurrent 20/minute", "takes no window"),
        ("concurrent 20 total", "takes no window"),
        ("concurrent 0", "more than 0"),
        ("concurrent -1", "takes no window"),
        ("images 20/minute", "for example"),
        ("reque\u017fts 20/minute", "for example"),
        ("requests \u0661/minute", "for example"),
        ("requests 10/minute for", "for example"),
        ("requests 10/minute for gpt 4", "for example"),
        ("requests 10/minute for " + "x" * 257, "256 characters"),
        ("requests " + "9" * 5000 + "/minute", "refused"),
    ],
)
def test_another_clause_is_refused_with_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_limits(f"concurrent 3 for other; {text}", Scope.KEY, "key_1")
    assert hint in caught.value.message
    assert text[:30].strip() in caught.value.message
    assert caught.value.param == "limits"
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "text",
    ["requests 5/minute; 10/minute", "concurrent 1; concurrent 2", "spend 1 USD/day\nspend 2 USD/day", "1/hour;1/hour"],
)
def test_a_second_clause_for_the_same_thing_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="another clause"):
        parse_limits(text, Scope.KEY, "key_1")


def test_the_same_limit_for_another_model_or_window_is_another_limit() -> None:
    text = "5/minute; 5/minute for a; 5/minute for b; 5 per 2 minutes; tokens 5/minute"
    assert len(parse_limits(text, Scope.KEY, "key_1")) == 5


def test_more_limits_than_a_request_can_check_are_refused() -> None:
    text = ";".join(f"1/minute for m{number}" for number in range(65))
    with pytest.raises(Malformed, match="more than 64"):
        parse_limits(text, Scope.KEY, "key_1")


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    kind = draw(st.sampled_from(Kind))
    window = draw(st.sampled_from(WINDOWS[kind]))
    is_rate = kind in {Kind.REQUESTS, Kind.TOKENS} and window in {Window.SECOND, Window.MINUTE, Window.HOUR}
    multiple = draw(st.integers(1, 24)) if is_rate else 1
    name = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789/:.-_", min_size=1, max_size=40)
    return limit(kind, window, draw(st.integers(1, MAX_AMOUNT)), multiple, draw(st.none() | name))


@given(limits())
def test_what_is_written_is_read_back_the_same(limit: Limit) -> None:
    check_limit(limit)
    assert parse_one(format_limit(limit)) == limit


@given(
    st.text(max_size=40) | st.from_regex(r"(requests|spend|tokens)? ?[0-9.]{1,6} ?(USD)?(/| per )[0-9]? ?[a-z]{1,7}")
)
def test_any_text_is_either_limits_or_malformed(text: str) -> None:
    try:
        parsed = parse_limits(text, Scope.PROJECT, "proj_1")
    except Malformed:
        return
    assert parse_limits(";".join(map(format_limit, parsed)), Scope.PROJECT, "proj_1") == parsed


@pytest.mark.parametrize(
    "wrong",
    [
        limit(Kind.SPEND, Window.HOUR, 5),
        limit(Kind.CONCURRENT, Window.MINUTE, 5),
        limit(Kind.REQUESTS, Window.NONE, 5),
        limit(Kind.REQUESTS, Window.MINUTE, 5, 0),
        limit(Kind.TOKENS, Window.TOTAL, 5, 2),
        limit(Kind.TOKENS, Window.DAY, -5),
        limit(Kind.TOKENS, Window.DAY, 5, 1, "two words"),
        limit(Kind.TOKENS, Window.DAY, 5, 1, ""),
    ],
)
def test_a_limit_that_was_not_written_as_text_is_held_to_the_same_rule(wrong: Limit) -> None:
    with pytest.raises(Malformed):
        check_limit(wrong)

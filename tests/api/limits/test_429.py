"""Every kind of limit in every window and scope: what is admitted, what is refused, and what a refusal says."""

import re
import time

import pytest

from api.asking import Tenant
from api.limits.arrange import INPUT_NANOS, OUTPUT_NANOS, SCOPES, Answer, Bench, hold_nanos, hold_tokens, usd

SCRIPT = "normal?tokens=10"
HELD_TOKENS = hold_tokens("Hello", 10)
HELD_NANOS = hold_nanos("Hello", 10)
RATE_TOKENS = 2 + 10
USED_TOKENS = 8 + 10
USED_NANOS = 8 * INPUT_NANOS + 10 * OUTPUT_NANOS
DURATION = re.compile(r"\d+ms|(\d+h)?(\d+m)?\d+(\.\d+)?s")

# Text of the limit with room for exactly so many requests one after another; its twin is one smaller.
ROOM_FOR_TWO = [
    *[("requests {}/" + window, 2, "rate") for window in ("second", "minute", "hour")],
    *[("tokens {}/" + window, USED_TOKENS + RATE_TOKENS, "rate") for window in ("second", "minute", "hour")],
    *[("requests {}" + window, 2, "spent") for window in ("/day", "/month", " total")],
    *[("tokens {}" + window, USED_TOKENS + HELD_TOKENS, "spent") for window in ("/day", "/month", " total")],
    *[("spend {} USD" + window, USED_NANOS + HELD_NANOS, "spent") for window in ("/day", "/month", " total")],
]


def written(template: str, amount: int) -> str:
    return template.format(usd(amount) if template.startswith("spend") else amount)


def ask(bench: Bench, tenant: Tenant, **fields: object) -> Answer:
    return bench.chat(tenant, SCRIPT, **{"max_tokens": 10, **fields})


def ask_in_one_window(bench: Bench, limit: str, count: int) -> tuple[Tenant, list[Answer]]:
    """Ask so often under a limit; again with another key where a second went by, of which a rate gives back."""
    while True:
        tenant, began = bench.tenant(key=limit), int(time.time())
        answers = [ask(bench, tenant) for _ in range(count)]
        if not limit.endswith("/second") or int(time.time()) == began:
            return tenant, answers


def assert_spent(answer: Answer) -> None:
    error = answer.error
    assert (answer.status, error["type"], error["code"], error["param"]) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
        None,
    )
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert "retry-after-ms" not in answer.headers
    assert "ask the operator" in error["message"]


def assert_retryable(answer: Answer, dimension: str) -> None:
    error = answer.error
    assert (answer.status, error["type"], error["code"]) == (429, dimension, "rate_limit_exceeded")
    wait_ms = int(answer.headers["retry-after-ms"])
    assert int(answer.headers["retry-after"]) == -(-wait_ms // 1000)
    assert answer.headers.get("x-should-retry") == ("false" if wait_ms > 60_000 else None)
    assert re.search(r"Please try again in \S+s\.$", error["message"])


# --- admitted and refused


@pytest.mark.parametrize(("template", "amount", "kind"), ROOM_FOR_TWO)
def test_what_fits_exactly_is_admitted_and_the_next_is_refused(
    bench: Bench, template: str, amount: int, kind: str
) -> None:
    tenant, (*fit, refused) = ask_in_one_window(bench, written(template, amount), 3)
    assert [answer.status for answer in fit] == [200, 200]
    if kind == "spent":
        assert_spent(refused)
    else:
        assert_retryable(refused, template.partition(" ")[0])
    assert f"'{bench.gateway.limits(tenant.key)[0]['limit']}' of this key" in refused.error["message"]


@pytest.mark.parametrize(
    ("template", "amount", "kind"), [row for row in ROOM_FOR_TWO if row[0].startswith(("tokens", "spend"))]
)
def test_one_less_than_fits_is_refused(bench: Bench, template: str, amount: int, kind: str) -> None:
    _, answers = ask_in_one_window(bench, written(template, amount - 1), 2)
    assert [answer.status for answer in answers] == [200, 429]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("limit", ["requests 1/hour", "tokens 30 total", f"spend {usd(HELD_NANOS)} USD/month"])
def test_a_limit_of_each_scope_binds(bench: Bench, scope: str, limit: str) -> None:
    tenant = bench.tenant(**{scope: limit.replace("30", str(HELD_TOKENS))})
    assert ask(bench, tenant).status == 200
    refused = ask(bench, tenant)
    assert refused.status == 429
    assert f"of this {scope}" in refused.error["message"]


def test_all_keys_of_an_organization_share_its_limits(bench: Bench) -> None:
    tenant = bench.tenant(organization="requests 2/hour")
    assert ask(bench, tenant).status == 200
    tenant.key = tenant.issue()["value"]
    assert ask(bench, tenant).status == 200
    assert ask(bench, tenant).status == 429


def test_as_many_requests_are_open_as_may_be(bench: Bench) -> None:
    tenant = bench.tenant(key="concurrent 2")
    first, second = (bench.open(tenant, "gate?tokens=3") for _ in range(2))
    refused = ask(bench, tenant)
    assert_retryable(refused, "requests")
    assert refused.headers["retry-after-ms"] == "1000"
    assert bench.limit(tenant, "concurrent 2")["reserved"] == 2
    bench.up.release()
    assert {first.result().status, second.result().status} == {200}
    assert ask(bench, tenant).status == 200
    assert bench.limit(tenant, "concurrent 2")["reserved"] == 0


def test_a_limit_of_one_model_binds_that_model_only(bench: Bench) -> None:
    tenant = bench.tenant(key=f"requests 1/hour for fake/{SCRIPT}; tokens 1 total for fake/gate")
    assert ask(bench, tenant).status == 200
    assert ask(bench, tenant).status == 429
    assert [bench.chat(tenant, "normal?tokens=4").status for _ in range(3)] == [200] * 3


def test_every_limit_of_several_must_have_room(bench: Bench) -> None:
    tenant = bench.tenant(
        key="requests 9/hour; requests 2/day", project="tokens 100000 total", organization="requests 8/hour"
    )
    assert [ask(bench, tenant).status for _ in range(3)] == [200, 200, 429]


# --- the four refusals


def test_money_that_is_spent_is_not_retried(bench: Bench) -> None:
    tenant = bench.tenant(key=f"spend {usd(HELD_NANOS)} USD total")
    assert ask(bench, tenant).status == 200
    refused = ask(bench, tenant)
    assert_spent(refused)
    assert f"Limit {HELD_NANOS}, Used {USED_NANOS}, Requested {HELD_NANOS}" in refused.error["message"]


def test_what_others_hold_is_retried_after_a_second(bench: Bench) -> None:
    tenant = bench.tenant(key="tokens 150 total")
    held = bench.open(tenant, "gate?tokens=10", max_tokens=100)
    refused = ask(bench, tenant)
    assert_retryable(refused, "tokens")
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
    assert "still running" in refused.error["message"]
    bench.up.release()
    assert held.result().status == 200
    assert ask(bench, tenant).status == 200


@pytest.mark.parametrize(
    ("limit", "dimension"),
    [
        ("tokens 11/minute", "tokens"),
        (f"tokens {HELD_TOKENS - 1} total", "tokens"),
        (f"spend {usd(HELD_NANOS - 1)} USD/day", "requests"),
    ],
)
def test_a_demand_beyond_the_whole_limit_is_too_large(bench: Bench, limit: str, dimension: str) -> None:
    refused = ask(bench, bench.tenant(key=limit))
    error = refused.error
    assert (refused.status, error["type"], error["code"]) == (429, dimension, "rate_limit_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert error["message"].startswith(f"Request too large for fake/{SCRIPT}")
    assert "Shorten the input or lower max_tokens" in error["message"]


def test_a_wait_of_over_a_minute_is_left_to_the_caller(bench: Bench) -> None:
    tenant = bench.tenant(key="requests 1/hour")
    assert ask(bench, tenant).status == 200
    refused = ask(bench, tenant)
    assert_retryable(refused, "requests")
    assert refused.headers["x-should-retry"] == "false"
    assert 60 < int(refused.headers["retry-after"]) <= 7_200


def test_after_the_wait_that_was_told_a_rate_admits_again(bench: Bench) -> None:
    tenant, (first, refused) = ask_in_one_window(bench, "requests 1/second", 2)
    assert first.status == 200
    assert_retryable(refused, "requests")
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 2_000
    # A rate recovers by time alone, and this is the running server's clock.
    time.sleep(wait_ms / 1_000)
    assert ask(bench, tenant).status == 200


def test_a_final_refusal_comes_before_one_that_waiting_heals(bench: Bench) -> None:
    tenant = bench.tenant(key=f"requests 1/minute; tokens {HELD_TOKENS} total")
    assert ask(bench, tenant).status == 200
    assert_spent(ask(bench, tenant))


# --- a refusal holds nothing


@pytest.mark.parametrize("refuses", SCOPES)
@pytest.mark.parametrize(
    "limit", ["requests 1/hour", "concurrent 1", "tokens 200 total", f"spend {usd(500_000)} USD/day"]
)
def test_a_refusal_holds_and_spends_nothing_anywhere(bench: Bench, refuses: str, limit: str) -> None:
    roomy = "requests 90/hour; concurrent 9; tokens 90000 total; requests 90/day; spend 1 USD/month"
    tenant = bench.tenant(**{scope: roomy if scope != refuses else limit for scope in SCOPES})
    held = bench.open(tenant, "gate?tokens=3", max_tokens=100)
    before = bench.standing(tenant)
    assert [bench.chat(tenant, "normal?tokens=10", max_tokens=100).status for _ in range(3)] == [429] * 3
    after = bench.standing(tenant)
    assert after == before
    bench.up.release()
    assert held.result().status == 200
    assert [reserved for _, reserved in bench.standing(tenant).values()] == [0] * 11


def test_a_refused_request_reaches_no_provider_and_no_ledger(bench: Bench) -> None:
    tenant = bench.tenant(key="requests 1/hour")
    assert ask(bench, tenant).status == 200
    refused = ask(bench, tenant, messages=[{"role": "user", "content": "marker=refused-1"}])
    assert refused.status == 429
    assert bench.up.truth.by_marker("refused-1") == []
    assert len(bench.charges(tenant)) == 1


# --- x-ratelimit-*


def test_an_answer_says_where_its_rates_stand(bench: Bench) -> None:
    tenant = bench.tenant(key="requests 60/minute; tokens 150000/minute; spend 5 USD/month")
    for count in (1, 2):
        headers = ask(bench, tenant).headers
        shown = {name: value for name, value in headers.items() if name.startswith("x-ratelimit-")}
        used = (count - 1) * USED_TOKENS + RATE_TOKENS
        assert shown["x-ratelimit-limit-requests"] == "60"
        assert shown["x-ratelimit-limit-tokens"] == "150000"
        assert int(shown["x-ratelimit-remaining-requests"]) == 60 - count
        assert int(shown["x-ratelimit-remaining-tokens"]) == 150_000 - used
        for name in ("requests", "tokens"):
            assert DURATION.fullmatch(shown[f"x-ratelimit-reset-{name}"])
        assert len(shown) == 6


def test_a_stream_says_the_same_in_its_head(bench: Bench) -> None:
    tenant = bench.tenant(project="requests 60/minute")
    headers = ask(bench, tenant, stream=True).headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("60", "59")
    assert "x-ratelimit-limit-tokens" not in headers


def test_a_refusal_says_that_nothing_remains(bench: Bench) -> None:
    tenant = bench.tenant(organization="requests 1/minute")
    ask(bench, tenant)
    refused = ask(bench, tenant)
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    # Full again, which is later than the next request allowed.
    assert DURATION.fullmatch(refused.headers["x-ratelimit-reset-requests"])


def test_without_limits_there_is_nothing_to_say(bench: Bench) -> None:
    assert not [name for name in ask(bench, bench.tenant()).headers if name.startswith("x-ratelimit-")]


# --- GET /v1/limits


def test_what_is_held_is_shown_while_it_is_and_becomes_what_was_used(bench: Bench) -> None:
    texts = (
        "requests 9/hour",
        "tokens 9000/minute",
        "concurrent 5",
        "requests 7/day",
        "tokens 9000 total",
        "spend 1 USD/month",
    )
    tenant = bench.tenant(key="; ".join(texts))
    rows = {name: bench.limit(tenant, name) for name in texts}
    assert {(row["spent"], row["reserved"]) for row in rows.values()} == {(0, 0)}
    assert all(row["free"] == row["amount"] for row in rows.values())

    held = bench.open(tenant, "gate?tokens=10", max_tokens=40)
    during = {name: (row["spent"], row["reserved"]) for name in texts if (row := bench.limit(tenant, name))}
    rate_tokens = -(-len(held.text) // 3) + 40
    assert during == {
        "requests 9/hour": (1, 0),
        "tokens 9000/minute": (rate_tokens, 0),
        "concurrent 5": (0, 1),
        "requests 7/day": (0, 1),
        "tokens 9000 total": (0, hold_tokens(held.text, 40)),
        "spend 1 USD/month": (0, hold_nanos(held.text, 40)),
    }
    spend = bench.limit(tenant, "spend 1 USD/month")
    assert spend["free"] == 10**9 - hold_nanos(held.text, 40)

    bench.up.release()
    assert held.result().status == 200
    bench.gateway.settle()
    words = len(held.text.split())
    used = 7 + words + 10
    after = {name: (row["spent"], row["reserved"]) for name in texts if (row := bench.limit(tenant, name))}
    assert after == {
        "requests 9/hour": (1, 0),
        "tokens 9000/minute": (used, 0),
        "concurrent 5": (0, 0),
        "requests 7/day": (1, 0),
        "tokens 9000 total": (used, 0),
        "spend 1 USD/month": ((7 + words) * INPUT_NANOS + 10 * OUTPUT_NANOS, 0),
    }

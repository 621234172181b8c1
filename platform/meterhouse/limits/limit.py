"""Limits in text: the grammar in which operators write them, and the one rule of what may be a limit.

``requests 600/minute; tokens 200000/minute; concurrent 20; spend 25 USD/month; tokens 1000000 total`` - clauses are
separated by ``;`` or newlines; `` for MODEL`` binds a clause to one model; a bare rate (``10/minute``) counts
requests. The engine of slowapi (the ``limits`` package) reads the rates; kinds, ``total`` and money are read here.
What ``parse_limits`` returns, ``format_limit`` writes back. Not here: counting.
"""

import re
from dataclasses import replace

from limits import parse_many

from meterhouse.errors import Malformed
from meterhouse.metering import Kind, Limit, Nature, Scope, Window
from meterhouse.money import NANOS_PER_USD, format_usd

MAX_AMOUNT = 4 * 10**15
"""Requests, tokens or nanos of USD: sums and holds of it stay exact wherever integers are doubles (2^53)."""
MAX_CLAUSES = 64
MAX_RATE_WINDOW_SECONDS = 86_400
MAX_MODEL_LENGTH = 256

_EXAMPLES = "for example 'requests 600/minute', 'tokens 1000000 total', 'concurrent 20' or 'spend 25 USD/month'"
_SHOWN_CHARACTERS = 120
_USD_DECIMALS = 9

_MODEL_SUFFIX = re.compile(r"^(?P<body>.*?)\s+for\s+(?P<model>\S+)$", re.IGNORECASE | re.ASCII)
_KIND_PREFIX = re.compile(r"^(?P<kind>requests|tokens|concurrent|spend)\s+(?P<rest>.*)$", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"^[0-9]{1,20}$")
_TOTAL = re.compile(r"^(?P<amount>[0-9]{1,20})\s+total$", re.IGNORECASE | re.ASCII)
_SPEND = re.compile(r"^(?P<whole>[0-9]{1,20})(?:\.(?P<decimals>[0-9]+))?\s*USD(?P<rest>.*)$", re.IGNORECASE | re.ASCII)
_MULTIPLE_OF_ZERO = re.compile(r"(?:/|per)\s*0+(?![0-9])", re.IGNORECASE)

_WINDOW_BY_NAME = {window.value: window for window in Window if window not in {Window.TOTAL, Window.NONE}}
_ALLOWED_WINDOWS = {
    Kind.REQUESTS: frozenset(Window) - {Window.NONE},
    Kind.TOKENS: frozenset(Window) - {Window.NONE},
    Kind.SPEND: frozenset({Window.DAY, Window.MONTH, Window.TOTAL}),
    Kind.CONCURRENT: frozenset({Window.NONE}),
}
_RIGHT_WINDOWS = {
    Kind.REQUESTS: "requests are counted per second, minute, hour, day, month or 'total'",
    Kind.TOKENS: "tokens are counted per second, minute, hour, day, month or 'total'",
    Kind.SPEND: "spend is bounded per day, per month or in 'total', as in 'spend 25 USD/month'",
    Kind.CONCURRENT: "concurrent takes no window, as in 'concurrent 20'",
}


def parse_limits(text: str, scope: Scope, scope_id: str) -> tuple[Limit, ...]:
    """Read the clauses of a text as limits of one organization, project or key.

    Raises:
        Malformed: A clause is none; the message names it and says what would be right.
    """
    clauses = [" ".join(clause.split()) for clause in re.split(r"[;\n]", text)]
    clauses = [clause for clause in clauses if clause]
    if len(clauses) > MAX_CLAUSES:
        raise _malformed(clauses[MAX_CLAUSES], f"there are more than {MAX_CLAUSES} limits")
    limits: list[Limit] = []
    seen: set[tuple[Kind, Window, int, str | None]] = set()
    for clause in clauses:
        limit = replace(_parse_clause(clause), scope=scope, scope_id=scope_id)
        identity = (limit.kind, limit.window, limit.multiple, limit.model)
        if identity in seen:
            raise _malformed(clause, "another clause bounds the same thing over the same window; keep one of them")
        seen.add(identity)
        limits.append(limit)
    return tuple(limits)


def format_limit(limit: Limit) -> str:
    """Write a limit as its clause: ``requests 10 per 2 minutes for gpt-4o``."""
    amount = f"{format_usd(limit.amount)} USD" if limit.kind is Kind.SPEND else str(limit.amount)
    text = f"{limit.kind.value} {amount}"
    if limit.window is Window.TOTAL:
        text += " total"
    elif limit.multiple != 1:
        text += f" per {limit.multiple} {limit.window.value}s"
    elif limit.window is not Window.NONE:
        text += f"/{limit.window.value}"
    return text if limit.model is None else f"{text} for {limit.model}"


def check_limit(limit: Limit) -> None:
    """Refuse a limit that the one rule does not know, whichever way it was written.

    Raises:
        Malformed: The pair of kind and window, the multiple, the amount or the model is none.
    """
    reason = _fault(limit)
    if reason is not None:
        raise _malformed(format_limit(limit), reason)


def _fault(limit: Limit) -> str | None:
    if limit.window not in _ALLOWED_WINDOWS[limit.kind]:
        return _RIGHT_WINDOWS[limit.kind]
    if limit.multiple != 1 and limit.window in {Window.DAY, Window.MONTH, Window.TOTAL, Window.NONE}:
        return "only seconds, minutes and hours can be multiplied; days and months are those of the UTC calendar"
    if limit.multiple < 1:
        return "the window must be at least one second, minute or hour"
    if limit.nature is Nature.RATE and limit.window_ms > MAX_RATE_WINDOW_SECONDS * 1000:
        return "a rate's window is at most 24 hours; write a limit per day or month instead"
    if limit.amount <= 0:
        return "the amount must be more than 0"
    if limit.amount > MAX_AMOUNT:
        most = f"{format_usd(MAX_AMOUNT)} USD" if limit.kind is Kind.SPEND else str(MAX_AMOUNT)
        return f"the amount must be at most {most}"
    model = limit.model
    if model is not None and (not model or len(model) > MAX_MODEL_LENGTH or ";" in model or model.split() != [model]):
        return f"a model's name has 1 to {MAX_MODEL_LENGTH} characters, no space and no ';'"
    return None


def _parse_clause(clause: str) -> Limit:
    """Read one clause, its white space already single; the scope is still to be set."""
    body, model = clause, None
    suffix = _MODEL_SUFFIX.match(clause)
    if suffix is not None:
        body, model = suffix["body"], suffix["model"]
    prefix = _KIND_PREFIX.match(body)
    kind = Kind(prefix["kind"].lower()) if prefix is not None else Kind.REQUESTS
    rest = prefix["rest"] if prefix is not None else body
    if kind is Kind.CONCURRENT:
        limit = _parse_concurrent(clause, rest)
    elif kind is Kind.SPEND:
        limit = _parse_spend(clause, rest)
    else:
        limit = _parse_count(clause, kind, rest, is_bare=prefix is None)
    limit = replace(limit, model=model)
    reason = _fault(limit)
    if reason is not None:
        raise _malformed(clause, reason)
    return limit


def _parse_concurrent(clause: str, rest: str) -> Limit:
    if _COUNT.match(rest) is None:
        raise _malformed(clause, _RIGHT_WINDOWS[Kind.CONCURRENT])
    return _unscoped(Kind.CONCURRENT, Window.NONE, int(rest))


def _parse_spend(clause: str, rest: str) -> Limit:
    match = _SPEND.match(rest)
    if match is None:
        raise _malformed(clause, "spend is an amount of USD over a window, as in 'spend 25 USD/month'")
    decimals = match["decimals"] or ""
    if len(decimals) > _USD_DECIMALS:
        raise _malformed(clause, f"USD have at most {_USD_DECIMALS} decimals")
    nanos = int(match["whole"]) * NANOS_PER_USD + int(decimals.ljust(_USD_DECIMALS, "0"))
    window_text = match["rest"].strip()
    if window_text.lower() == Window.TOTAL:
        return _unscoped(Kind.SPEND, Window.TOTAL, nanos)
    _, multiple, window = _parse_rate(clause, Kind.SPEND, f"1 {window_text}")
    return replace(_unscoped(Kind.SPEND, window, nanos), multiple=multiple)


def _parse_count(clause: str, kind: Kind, rest: str, *, is_bare: bool) -> Limit:
    total = None if is_bare else _TOTAL.match(rest)
    if total is not None:
        return _unscoped(kind, Window.TOTAL, int(total["amount"]))
    amount, multiple, window = _parse_rate(clause, kind, rest)
    return replace(_unscoped(kind, window, amount), multiple=multiple)


def _parse_rate(clause: str, kind: Kind, text: str) -> tuple[int, int, Window]:
    """Let slowapi's engine read ``10/minute`` or ``10 per 2 minutes``: amount, multiple, window."""
    try:
        rates = parse_many(text)
    except ValueError:
        raise _malformed(clause, f"it is not understood; write {_EXAMPLES}") from None
    if len(rates) != 1:
        raise _malformed(clause, "separate limits with ';'")
    if _MULTIPLE_OF_ZERO.search(text) is not None:
        raise _malformed(clause, "the window must be at least one second, minute or hour")
    rate = rates[0]
    window = _WINDOW_BY_NAME.get(rate.GRANULARITY.name)
    if window is None:
        raise _malformed(clause, _RIGHT_WINDOWS[kind])
    return rate.amount, rate.multiples, window


def _unscoped(kind: Kind, window: Window, amount: int) -> Limit:
    return Limit(Scope.KEY, "", kind, window, amount)


def _malformed(clause: str, reason: str) -> Malformed:
    shown = clause if len(clause) <= _SHOWN_CHARACTERS else clause[:_SHOWN_CHARACTERS] + "..."
    return Malformed(f"The limit '{shown}' is refused: {reason}.", param="limits", code="invalid_limit")

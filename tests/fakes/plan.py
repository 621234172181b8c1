"""What an answer looks like: a plan, read from the model's name.

A model name is ``script`` or ``script?name=value&name=value``. A script is a row of values for the plan's fields
(``PRESETS``); the query overrides them one by one. So each fault can be placed anywhere in any answer, for example
``normal?tokens=50&pace_ms=20&fault=reset&at=7`` or ``usage-kimi?cut=-1&crlf=1``.
Not here: what happens then (scripts, faults).
"""

from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl

ERROR_STATUSES = (400, 401, 402, 403, 404, 413, 422, 429, 500, 502, 503, 529)
SHAPES = ("envelope", "flat", "html", "list", "text", "empty", "detail", "anthropic")


@dataclass(frozen=True)
class Plan:
    """How to answer.

    Points in time (``at``, ``gate``), each *after* what it names: start (the request), head, a number of tokens,
    finish, usage, done. ``gate=20`` with 20 tokens is just before the finish. A body that is not streamed is held at
    ``start`` or else before its head; its faults are at ``start`` or else in its middle.
    """

    name: str = "normal"
    tokens: int = 20
    """Per choice; max_tokens of the request cuts it (finish_reason length). -1: no end."""
    pace_ms: int = 0
    """Between two tokens."""
    duration_ms: int = 0
    """Spreads the tokens evenly over this time instead."""
    head_ms: int = 0
    """Before the status line."""
    first_ms: int = 0
    """Between the head and the first data event."""
    usage: str = "choices"
    """Where it is: see ``wires.USAGES``."""
    finish: str = "stop"
    """The finish_reason, or none."""
    done: int = 1
    """Whether [DONE] is sent."""
    first: str = "role"
    """The first event: role, azure (choices []), none."""
    reasoning: int = 0
    """Tokens of reasoning before the text."""
    field: str = "reasoning_content"
    refusal: int = 0
    """The text is a refusal."""
    calls: int = 0
    """Tool calls instead of text; the tokens go into each one's arguments."""
    ids: str = "once"
    """Of tool calls: once, empty (repeated as empty strings), every."""
    served: str = ""
    """The model name in the answer; the one asked for by default."""
    fault: str = ""
    at: str = "5"
    stall_ms: int = 0
    """How long a stall lasts; 0: for ever."""
    gate: str = ""
    count: int = 0
    """A gate that opens by itself when so many are held at once."""
    status: int = 0
    """An error answer instead."""
    shape: str = "envelope"
    code: str = ""
    retry_after: str = ""
    times: int = 0
    """Only the first so many requests with the same marker and model get the error or the fault."""
    comment: str = ""
    """A comment's text, before the first event and after each."""
    comments: int = 2
    """How many of them at each place."""
    cut: int = 0
    """Every write is cut into pieces of so many bytes; -1: into odd ones."""
    crlf: int = 0
    batch: int = 1
    """Events per write."""
    framing: str = "chunked"
    """chunked, or close: the body ends with the connection."""
    gzip: int = 0
    content_type: str = ""
    """Instead of the wire's own."""
    sse: str = "plain"
    """How an event is spelled: plain, fields (event, id and retry lines), bare (no blank), split (two data lines)."""
    special: str = ""
    """json-for-stream, stream-for-json, or one of ``faults.SPECIALS``."""


PRESETS: dict[str, dict[str, Any]] = {
    "normal": {},
    "slow-head": {"head_ms": 300},
    "slow-first-token": {"first_ms": 300},
    "paced": {"tokens": 50, "duration_ms": 2000},
    "long": {"tokens": 10_000, "batch": 20},
    "infinite": {"tokens": -1, "pace_ms": 1},
    "gate": {"gate": "start"},
    # Where usage is put.
    "usage-choices": {"usage": "choices"},
    "usage-always": {"usage": "always"},
    "usage-finish": {"usage": "finish"},
    "usage-kimi": {"usage": "kimi"},
    "usage-groq": {"usage": "groq"},
    "usage-running": {"usage": "running"},
    "usage-running-only": {"usage": "running-only"},
    "usage-duplicated": {"usage": "duplicated"},
    "usage-zero-copy": {"usage": "zero-copy"},
    "usage-early": {"usage": "early"},
    "usage-zero": {"usage": "zero"},
    "usage-negative": {"usage": "negative"},
    "usage-huge": {"usage": "huge"},
    "usage-text": {"usage": "text"},
    "usage-missing": {"usage": "none"},
    "usage-cached": {"usage": "cached"},
    "usage-deepseek": {"usage": "deepseek", "comment": "keep-alive", "reasoning": 5},
    # Shapes of a good answer.
    "comments": {"comment": "keep-alive"},
    "openrouter": {"comment": "OPENROUTER PROCESSING", "usage": "always", "field": "reasoning", "reasoning": 3},
    "azure": {"first": "azure"},
    "no-role": {"first": "none"},
    "reasoning": {"reasoning": 8},
    "reasoning-vllm": {"reasoning": 8, "field": "reasoning"},
    "tools": {"calls": 1, "finish": "tool_calls"},
    "tools-two": {"calls": 2, "finish": "tool_calls"},
    "tools-empty-ids": {"calls": 1, "finish": "tool_calls", "ids": "empty"},
    "refusal": {"refusal": 1},
    "content-filter": {"finish": "content_filter"},
    "half-chunks": {"cut": -1},
    "crlf": {"crlf": 1},
    "half-chunks-crlf": {"cut": -1, "crlf": 1},
    "batched": {"batch": 7},
    "one-write": {"batch": 1_000_000},
    "sse-fields": {"sse": "fields"},
    "sse-bare": {"sse": "bare"},
    "sse-split": {"sse": "split"},
    "unframed": {"framing": "close"},
    "gzip": {"gzip": 1},
    # Answers that break.
    "comments-forever": {"fault": "comments", "at": "head", "comment": "keep-alive"},
    "comments-forever-mid": {"fault": "comments", "comment": "keep-alive"},
    "never-answers": {"fault": "stall", "at": "start"},
    "never-begins": {"fault": "stall", "at": "head"},
    "stall": {"fault": "stall"},
    "trickle": {"fault": "trickle"},
    "reset-before-head": {"fault": "reset", "at": "start"},
    "reset-after-head": {"fault": "reset", "at": "head"},
    "reset": {"fault": "reset"},
    "reset-mid-chunk": {"fault": "half-reset"},
    "eof-before-head": {"fault": "close", "at": "start"},
    "eof-after-head": {"fault": "eof", "at": "head"},
    "eof-early": {"fault": "eof"},
    "eof-early-done": {"fault": "done"},
    "eof-mid-event": {"fault": "half-eof"},
    "closed-early": {"fault": "close"},
    "ollama-v1-failure": {"fault": "empty-delta"},
    "finish-missing": {"finish": "none"},
    "finish-missing-eof": {"finish": "none", "done": 0, "usage": "none"},
    "done-missing": {"done": 0},
    "eof-after-finish": {"fault": "eof", "at": "finish"},
    "finish-then-done": {"usage": "none"},
    "finish-then-hang": {"fault": "stall", "at": "finish"},
    "finish-then-reset": {"fault": "reset", "at": "finish"},
    "usage-then-hang": {"fault": "stall", "at": "usage"},
    "done-then-hang": {"fault": "stall", "at": "done"},
    "error-first": {"fault": "error", "at": "head"},
    "error-mid": {"fault": "error"},
    "error-mid-done": {"fault": "error-done"},
    "error-mid-event": {"fault": "error-event"},
    "error-mid-flat": {"fault": "error-flat"},
    "error-mid-openrouter": {"fault": "error-chunk"},
    "garbage-not-json": {"fault": "not-json"},
    "garbage-utf8": {"fault": "bad-utf8"},
    "garbage-nul": {"fault": "nul"},
    "garbage-long-line": {"fault": "long-line"},
    "garbage-first": {"fault": "not-json", "at": "head"},
    "garbage-http": {"special": "garbage-http"},
    "html-200": {"special": "html-200"},
    "json-for-stream": {"special": "json-for-stream"},
    "stream-for-json": {"special": "stream-for-json"},
    "octets": {"content_type": "application/octet-stream"},
    "bomb": {"special": "bomb"},
    "redirect": {"special": "redirect"},
    "insufficient-quota": {"status": 429, "code": "insufficient_quota"},
    "rate-limited": {"status": 429, "code": "rate_limit_exceeded", "retry_after": "1"},
}
PRESETS |= {f"error-{status}": {"status": status} for status in ERROR_STATUSES}
PRESETS |= {f"error-{shape}": {"status": 500, "shape": shape} for shape in SHAPES}
"""``error-429``, ``error-html?status=503``, ..."""


def read_plan(model: str) -> Plan:
    """Read a model name; raises LookupError for an unknown script and ValueError for an unknown parameter."""
    name, _, query = model.partition("?")
    if name not in PRESETS:
        raise LookupError(name)
    return apply_query(replace(Plan(name=name), **PRESETS[name]), query)


def apply_query(plan: Plan, query: str) -> Plan:
    """Override a plan's fields from ``name=value&...``."""
    kinds = {item.name: item.type for item in fields(Plan)}
    changes: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if key not in kinds or key == "name":
            raise ValueError(f"the fake upstream knows no parameter {key!r}")
        changes[key] = int(value) if kinds[key] is int else value
    return replace(plan, **changes)

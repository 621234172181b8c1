"""What ``meterhouse tail`` does: follows the requests of a running server, and shows them.

A stream that breaks, because a worker stops or the network does, is asked for again after a moment; what was missed is
said. Not here: the command's options (``cli_tail``), and what is told (``telemetry.live``).
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlencode, urlsplit

from rich.console import Console
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from meterhouse.keys.secret import parse
from meterhouse.money import format_usd
from meterhouse.settings import SettingsError
from meterhouse.telemetry.console import printable
from meterhouse.telemetry.live import LiveKind

QUIET_SECONDS = 20.0
"""The server says something every five seconds; after so long without, it is given up."""
LEAST_PAUSE_SECONDS = 0.2
MOST_PAUSE_SECONDS = 5.0
FORGET_SECONDS = 10.0
"""A running request of which nothing was heard for so long has ended unseen."""
MOST_ROWS = 30
RECONNECTED = "tail.reconnected"
_OK = 200
_BUSY = frozenset({429, 500, 502, 503, 504})
_MS_PER_SECOND = 1000

Event = Mapping[str, object]


def follow(url: str, key: str, organization_id: str = "") -> Iterator[Event]:
    """Give the live events of a server, for ever; after a break an event ``tail.reconnected``.

    Raises:
        SettingsError: The server refuses the key, or is none of ours.
    """
    pause_seconds = LEAST_PAUSE_SECONDS
    is_again = False
    while True:
        try:
            for event in _read_stream(url, key, organization_id):
                pause_seconds = LEAST_PAUSE_SECONDS
                if event is not None:
                    yield event
                elif is_again:
                    yield {"type": RECONNECTED}
        except (OSError, HTTPException):
            pause_seconds = min(pause_seconds * 2, MOST_PAUSE_SECONDS)
        is_again = True
        time.sleep(pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load


def address_of(url: str, key: str, organization_id: str) -> str:
    """Return what to ask a server for: a tenant's key sees its own requests, anybody else all of them."""
    base = url.rstrip("/").removesuffix("/v1")
    secret = parse(key)
    if secret is not None and not secret.is_admin:
        return f"{base}/v1/live"
    return f"{base}/admin/live" + (f"?{urlencode({'organization_id': organization_id})}" if organization_id else "")


def _read_stream(url: str, key: str, organization_id: str) -> Iterator[Event | None]:
    """Give the events of one stream; first None, once it is there."""
    parts = urlsplit(address_of(url, key, organization_id))
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"--url: '{url}' is no address of a server, such as https://api.example.com.")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=QUIET_SECONDS)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"authorization": f"Bearer {key}", "accept": "text/event-stream"})
        answer = connection.getresponse()
        _check(answer)
        yield None
        while line := answer.readline():
            if line.startswith(b"data: "):
                event = json.loads(line.removeprefix(b"data: "))
                if "type" in event:
                    yield event
                elif "error" in event:
                    raise SettingsError(f"The server ended it: {event['error']['message']}")
    finally:
        connection.close()


def _check(answer: HTTPResponse) -> None:
    if answer.status == _OK and (answer.headers.get("content-type") or "").startswith("text/event-stream"):
        return
    if answer.status in _BUSY:
        raise HTTPException(f"status {answer.status}")
    try:
        message = str(json.loads(answer.read(65_536))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = "what answers there is no Meterhouse, or hides it."
    raise SettingsError(f"The server answered {answer.status}: {printable(message)}")


class Follower:
    """Shows events: a line for each request that ended and, on a terminal, a table of those that run."""

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._running: dict[str, tuple[float, Event]] = {}

    def show(self, events: Iterator[Event]) -> None:
        """Show events as they come, until there are no more."""
        if not self._console.is_terminal:
            for event in events:
                self.take(event)
            return
        with Screen(get_renderable=self.table, console=self._console, refresh_per_second=4, transient=True):
            for event in events:
                self.take(event)

    def take(self, event: Event) -> None:
        """Take in one event."""
        kind, request_id = event.get("type"), str(event.get("request_id", ""))
        if kind in {LiveKind.REQUEST_STARTED, LiveKind.REQUEST_PROGRESS}:
            _, known = self._running.get(request_id, (0.0, {}))
            self._running[request_id] = (self._now(), {**known, **event})
        elif kind == LiveKind.REQUEST_FINISHED:
            self._running.pop(request_id, None)
            self._console.print(finished_line(event), soft_wrap=True)
        elif kind == LiveKind.LIVE_INTERRUPTED:
            dropped = event.get("dropped_events")
            count = "an unknown number of" if dropped is None else dropped
            self._console.print(Text(f"-- {count} events are missing", "yellow"), soft_wrap=True)
        elif kind == RECONNECTED:
            self._running.clear()
            self._console.print(Text("-- connected again; what happened meanwhile is missing", "yellow"))

    def table(self) -> Table:
        """Return the running requests as a table, the newest last."""
        now = self._now()
        self._running = {name: row for name, row in self._running.items() if now - row[0] < FORGET_SECONDS}
        table = Table(box=None, header_style="dim", expand=False)
        for title in ("running", "model", "tenant", "first token", "tokens", "tokens/s", "for"):
            table.add_column(title, no_wrap=True)
        rows = list(self._running.values())
        for _, event in rows[-MOST_ROWS:]:
            table.add_row(
                _text(event, "request_id"),
                _model(event),
                _tenant(event),
                _milliseconds(event, "time_to_first_token_ms"),
                _text(event, "output_tokens"),
                _text(event, "tokens_per_second"),
                _milliseconds(event, "elapsed_ms"),
            )
        if len(rows) > MOST_ROWS:
            table.add_row(f"and {len(rows) - MOST_ROWS} more")
        return table


def finished_line(event: Event) -> Text:
    """Write a request that ended on one line."""
    status = event.get("status")
    line = Text()
    line.append(f"{_clock(event.get('at'))} ", "dim")
    line.append(f"{status} ", _style(status))
    line.append(f"{_model(event)}  {_tenant(event)}")
    outcome = event.get("outcome")
    if outcome:
        line.append(f"  {printable(str(outcome))}", "" if outcome == "completed" else "yellow")
    if "output_tokens" in event:
        line.append(f"  {_text(event, 'input_tokens')}+{_text(event, 'output_tokens')} tokens")
    speed = tokens_per_second(event)
    if speed is not None:
        line.append(f"  {speed:.0f} tokens/s")
    if event.get("time_to_first_token_ms") is not None:
        line.append(f"  first {_milliseconds(event, 'time_to_first_token_ms')}")
    line.append(f"  {_milliseconds(event, 'duration_ms')}")
    charge_nanos = event.get("charge_nanos")
    if isinstance(charge_nanos, int):
        line.append(f"  ${format_usd(charge_nanos)}")
    if event.get("error_code"):
        line.append(f"  {_text(event, 'error_code')}", "red")
    line.append(f"  {_text(event, 'request_id')}", "dim")
    return line


def tokens_per_second(event: Event) -> float | None:
    """Return how fast an answer came after its first token; None where that cannot be known."""
    tokens, duration_ms = event.get("output_tokens"), event.get("duration_ms")
    first_ms = event.get("time_to_first_token_ms")
    if not (isinstance(tokens, int) and isinstance(duration_ms, int) and isinstance(first_ms, int)):
        return None
    streaming_ms = duration_ms - first_ms
    return tokens * _MS_PER_SECOND / streaming_ms if tokens and streaming_ms > 0 else None


def _model(event: Event) -> str:
    provider = event.get("provider")
    return _text(event, "model") + (f" > {printable(str(provider))}" if provider else "")


def _tenant(event: Event) -> str:
    return "/".join(_text(event, name) for name in ("organization_id", "project_id"))


def _text(event: Event, name: str) -> str:
    value = event.get(name)
    return "" if value is None else printable(str(value))


def _milliseconds(event: Event, name: str) -> str:
    value = event.get(name)
    if not isinstance(value, int):
        return ""
    return f"{value} ms" if value < 10 * _MS_PER_SECOND else f"{value / _MS_PER_SECOND:.0f} s"


def _clock(at_ms: object) -> str:
    moment = datetime.fromtimestamp(at_ms / _MS_PER_SECOND) if isinstance(at_ms, int) else datetime.now()  # noqa: DTZ005, DTZ006 - a person's own time
    return moment.strftime("%H:%M:%S")


def _style(status: object) -> str:
    if not isinstance(status, int) or status >= 500:  # noqa: PLR2004 - HTTP's classes
        return "red"
    return "yellow" if status >= 400 else "green"  # noqa: PLR2004 - see above

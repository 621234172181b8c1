"""What tests of limits share: priced models, tenants with limits in any scope, requests that stay open.

Every model here costs 1,000 nanos per input token and 4,000 per output token. The fake provider reports 7 tokens and
one for each word of the message as the input.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

INPUT_NANOS = 1_000
OUTPUT_NANOS = 4_000
SCOPES = ("organization", "project", "key")


def hold_tokens(text: str, output_tokens: int, *, messages: int = 1) -> int:
    """Return what a request holds against a token quota (design.md 6): bytes, 16 per message, the output."""
    return len(text.encode()) + 16 * messages + output_tokens


def hold_nanos(text: str, output_tokens: int, *, messages: int = 1) -> int:
    """Return what a request holds against a budget."""
    return hold_tokens(text, 0, messages=messages) * INPUT_NANOS + output_tokens * OUTPUT_NANOS


def usd(nanos: int) -> str:
    """Write nanos as the limit grammar takes them."""
    return f"{nanos / 10**9:.9f}"


@dataclass(frozen=True)
class Answer:
    """One answer as plain HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error; anything but the envelope fails."""
        return error_of(self.body)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.headers["x-request-id"]


class Bench:
    """A gateway with its provider, and threads for requests that stay open."""

    def __init__(self, gateway: Gateway, up: FakeUpstream) -> None:
        self.gateway = gateway
        self.up = up
        self._threads = ThreadPoolExecutor(16)
        self._priced: set[str] = set()

    def close(self) -> None:
        """Let everybody go and wait until nothing is open."""
        deadline = time.monotonic() + 60
        while self.gateway.call(lambda: len(self.gateway.parts.inference.checkpointer.live)):
            assert time.monotonic() < deadline, "requests are still open"
            self.up.release()
            time.sleep(0.01)
        self._threads.shutdown()

    def tenant(self, **limits: str) -> Tenant:
        """Make an organization with a project and a key, each with the limits named for its scope."""
        made = Tenant(self.gateway, limits=limits.get("key", ""))
        for scope, scope_id in (("organization", made.organization_id), ("project", made.project_id)):
            if scope in limits:
                self.set_limits(scope, scope_id, limits[scope])
        return made

    def set_limits(self, scope: str, scope_id: str, limits: str) -> None:
        """Set the limits of an organization, project or key."""
        body = {"scope": scope, "scope_id": scope_id, "limits": limits}
        status, _, answer = self.gateway.request("PUT", "/admin/limits", body, key=self.gateway.admin_key)
        assert status == 200, answer

    def price(self, model: str) -> None:
        """Price ``fake/model`` as this module says."""
        if model not in self._priced:
            self._priced.add(model)
            self.gateway.set_price("fake", model, "1", "4")

    def chat(self, tenant: Tenant, script: str, text: str = "Hello", **fields: Any) -> Answer:
        """Ask ``fake/script`` and price it first."""
        self.price(script)
        fields.setdefault("messages", [{"role": "user", "content": text}])
        return Answer(*self.gateway.chat(f"fake/{script}", key=tenant.key, **fields))

    def open(self, tenant: Tenant, script: str, **fields: Any) -> "Open":
        """Send a request that is held at its provider, and return when it is there or was refused."""
        marker, messages = marked()
        future = self._threads.submit(self.chat, tenant, script, messages=messages, **fields)
        self.wait(lambda: future.done() or any(attempt.is_held for attempt in self.up.truth.by_marker(marker)))
        return Open(marker, future, messages[0]["content"])

    def limit(self, tenant: Tenant, text: str) -> dict[str, Any]:
        """Return one limit of a key as ``GET /v1/limits`` shows it, by its text."""
        (found,) = [limit for limit in self.gateway.limits(tenant.key) if limit["limit"] == text]
        return found

    def standing(self, tenant: Tenant) -> dict[tuple[str, str], tuple[int, int]]:
        """Return (spent, reserved) of every limit of a key, by scope and text."""
        return {
            (limit["scope"], limit["limit"]): (limit["spent"], limit["reserved"])
            for limit in self.gateway.limits(tenant.key)
        }

    def charges(self, tenant: Tenant) -> list[dict[str, Any]]:
        """Return the ledger rows of a key."""
        return [row for row in self.gateway.all_records() if row["key_id"] == tenant.key_id]

    @staticmethod
    def wait(predicate: Callable[[], Any], seconds: float = 30) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not predicate():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)


@dataclass(frozen=True)
class Open:
    """A request under way."""

    marker: str
    future: "Future[Answer]"
    text: str

    def result(self) -> Answer:
        """Wait for its end."""
        return self.future.result(60)


def usage_of(answer: Answer) -> dict[str, Any]:
    """Return the usage of a whole answer."""
    usage: dict[str, Any] = json.loads(answer.body)["usage"]
    return usage

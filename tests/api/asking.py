"""What the tests of the API share: reading answers strictly, tenants made through the API, what a provider was sent."""

import itertools
import json
from typing import Any

from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.identity import Role

CREDENTIAL_CANARY = "sk-upstream-credential-canary"
NUMBERS = itertools.count(1)


def marked(text: str = "Hello") -> tuple[str, list[dict[str, Any]]]:
    """Return a marker nobody else uses, and messages that carry it."""
    marker = f"m{next(NUMBERS)}"
    return marker, [{"role": "user", "content": f"{text} marker={marker}"}]


def error_of(body: bytes) -> dict[str, Any]:
    """Return the error of an answer, which is OpenAI's envelope and nothing else (wire.md 1.5)."""
    answer = json.loads(body)
    assert set(answer) == {"error"}, answer
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def events_of(body: bytes) -> list[bytes]:
    """Return the data of each event of a stream; anything but whole data events fails."""
    assert body.endswith(b"\n\n"), body[-80:]
    events = body[:-2].split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events), body
    return [event.removeprefix(b"data: ") for event in events]


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """Return the chunks of a stream that ended well."""
    *chunks, done = events_of(body)
    assert done == b"[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def text_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    """Return what a choice said."""
    deltas = [row["delta"] for chunk in chunks for row in chunk["choices"] if row["index"] == choice]
    return "".join(delta.get("content") or "" for delta in deltas)


def issue_admin(gateway: Gateway, role: Role, organization_id: str) -> str:
    """Issue an admin key of a role in an organization; returns its text."""
    service = gateway.parts.stores.service
    return gateway.run(lambda: service.issue_admin("someone", role, organization_id=organization_id)).value


class Capture:
    """The model ``fake/capture`` answers like ``normal``; what it was sent is kept by marker."""

    def __init__(self, up: FakeUpstream) -> None:
        self._bodies: dict[str, dict[str, Any]] = {}
        up.script("capture", self._run)

    def body(self, marker: str) -> dict[str, Any]:
        """Return the body that the provider got for a marker."""
        return self._bodies[marker]

    async def _run(self, exchange: Exchange) -> None:
        self._bodies[exchange.request.describe()["marker"]] = exchange.request.body
        await scripts.answer(exchange)


class Tenant:
    """An organization with a project and a key, made through the administration API as an operator makes them."""

    def __init__(self, gateway: Gateway, **key: Any) -> None:
        self._gateway = gateway
        self.organization_id: str = self._post("/admin/organizations", {"name": "Acme"})["id"]
        project = {"organization_id": self.organization_id, "name": "Search"}
        self.project_id: str = self._post("/admin/projects", project)["id"]
        issued = self.issue(**key)
        self.key_id: str = issued["id"]
        self.key: str = issued["value"]

    def issue(self, **fields: Any) -> dict[str, Any]:
        """Issue another key of this project."""
        return self._post("/admin/keys", {"name": "a key", "project_id": self.project_id, **fields})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, _, answer = self._gateway.request("POST", path, body, key=self._gateway.admin_key)
        assert status == 201, answer
        made: dict[str, Any] = json.loads(answer)
        return made

    @staticmethod
    def decode(body: bytes) -> Any:
        """Decode an answer."""
        return json.loads(body)

"""What an INTENT says of an attempt, by which it is charged if the worker dies, is what its record says in the end."""

import pytest

from fakes.gateway import Gateway
from meterhouse.ledger.admission import Admission
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.record import Intent, decode
from meterhouse.usage import UsageRecord

SHARED = sorted(set(Intent.__struct_fields__) & set(UsageRecord.__struct_fields__))


class Listening:
    """Passes records on to a journal, and keeps them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.heard: list[bytes] = []

    def admit(self, payload: bytes) -> Admission:
        self.heard.append(payload)
        return self._journal.admit(payload)


@pytest.mark.parametrize("stream", [False, True])
def test_they_say_the_same(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    attempts = gateway.parts.inference.attempts
    listening = Listening(attempts._journal)
    monkeypatch.setattr(attempts, "_journal", listening)
    status, headers, body = gateway.chat("fake/normal", stream=stream)
    assert status == 200, body
    [intent] = [decode(payload, origin="the test") for payload in listening.heard]
    [record] = gateway.records(headers["x-request-id"])
    assert {name: getattr(intent, name) for name in SHARED} == {name: getattr(record, name) for name in SHARED}
    assert {"request_id", "project_id", "root_key_id", "deployment", "operation", "trace_id"} <= set(SHARED)

"""What takes long is done beside the event loop: writing a long body anew, and turning long vectors into base64."""

import base64
import json
import struct
import threading
from typing import Any

import pytest

from fakes.gateway import Gateway
from meterhouse.http import intake
from meterhouse.http.wires import embeddings
from meterhouse.http.wires.embeddings import PassedEmbeddings

INLINE_BYTES = 4_000


@pytest.mark.parametrize(("texts", "is_beside"), [(1, False), (100, True)])
def test_nobody_waits_for_a_long_request_or_answer(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, texts: int, is_beside: bool
) -> None:
    seen: dict[str, bool] = {}

    def watch(owner: Any, name: str) -> None:
        work = getattr(owner, name)

        def watched(*given: Any) -> Any:
            seen[name] = threading.current_thread() is not gateway._thread
            return work(*given)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(intake, "INLINE_BYTES", INLINE_BYTES)
    watch(embeddings, "convert_vectors")
    watch(PassedEmbeddings, "encode")
    watch(PassedEmbeddings, "decode_whole")
    body = {"model": "fake/normal?field=float", "input": ["word " * 20] * texts, "encoding_format": "base64"}
    status, headers, answer = gateway.request("POST", "/v1/embeddings", body)
    assert status == 200, answer
    rows = json.loads(answer)["data"]
    assert len(rows) == texts
    assert struct.unpack("<f", base64.b64decode(rows[0]["embedding"])[:4])
    assert seen == {"encode": is_beside, "decode_whole": is_beside, "convert_vectors": is_beside}
    (record,) = gateway.records(headers["x-request-id"])
    assert record.usage.input_tokens == 20 * texts

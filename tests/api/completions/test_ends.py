"""The end of a completion that is passed through: it waits for the record, and what fails after it takes nothing back."""

import pytest

from failure.raw_client import Client as RawClient
from fakes.gateway import Gateway
from fakes.words import answer_text
from meterhouse.usage import Outcome


def stream_one(gateway: Gateway, model: str, marker: str, **fields: object) -> RawClient:
    body = {"model": model, "prompt": f"Say marker={marker}", "stream": True, **fields}
    return RawClient(gateway.url, gateway.key, body, path="/v1/completions")


def text_of(client: RawClient) -> str:
    return "".join(row["text"] for chunk in client.chunks for row in chunk["choices"])


@pytest.mark.parametrize("fault", ["error", "not-json"])
def test_what_fails_in_the_same_read_as_the_end_takes_nothing_back(gateway: Gateway, fault: str) -> None:
    model = f"fake/one-write?tokens=3&fault={fault}&at=finish&usage=finish"
    client = stream_one(gateway, model, f"ends-{fault}").read_all()
    assert client.has_done
    assert (text_of(client), client.finish_reasons) == (answer_text(f"ends-{fault}", 3), ["stop"])
    (record,) = gateway.records(client.request_id)
    assert (record.outcome, record.usage.output_tokens) == (Outcome.COMPLETED, 3)

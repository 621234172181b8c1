"""Clients that leave, servers that are killed, and a server that stops one answer for another."""

from pathlib import Path
from typing import Any

import openai
import pytest

from fakes.daemon import wait_until
from fakes.gateway import MESSAGES, Gateway
from meterhouse.usage import Exactness, Outcome
from real_model.conftest import wait_until_listed
from real_model.servers import KINDS, LLAMACPP, Kind, ModelServer

pytestmark = pytest.mark.real_model

LONG = {"messages": MESSAGES, "temperature": 0, "max_tokens": 1_500, "stream": True}
FEW = 5


def read_few(chunks: Any) -> str:
    """Read until some text is there; returns it."""
    text = ""
    for _ in range(FEW):
        chunk = next(chunks)
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text
    return text


def test_a_client_that_leaves_in_mid_stream_is_one_record_and_frees_the_server(
    server: ModelServer, gateway: Gateway
) -> None:
    before = len(gateway.all_records())
    with gateway.client() as client:
        answer = client.chat.completions.create(model=server.model, **LONG)
        read_few(answer)
        answer.close()
    wait_until(lambda: len(gateway.all_records()) > before, "the record", 30)
    (record,) = gateway.all_records()[before:]
    assert (record["provider"], record["outcome"], record["exactness"]) == (
        server.kind.row,
        Outcome.CLIENT_GONE,
        Exactness.COUNTED,
    )
    assert 0 < record["output_tokens"] < LONG["max_tokens"]
    # Were the answer still being made, this one would wait for all of it: each server makes one at a time.
    assert server.say(max_tokens=1).usage.completion_tokens == 1
    assert len(gateway.all_records()) == before + 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.row)
def test_a_server_that_is_killed_in_mid_stream_cuts_it_and_is_charged_by_what_was_seen(
    kind: Kind, models: Path, tmp_path: Path
) -> None:
    with ModelServer(kind, models, tmp_path) as server, Gateway(tmp_path / "data", server.environment) as gateway:
        wait_until_listed(gateway, server)
        with gateway.client() as client:
            answer = client.chat.completions.create(model=server.model, **LONG)
            read_few(answer)
            server.daemon.kill()
            with pytest.raises(openai.APIError) as caught:
                list(answer)
            assert str(caught.value.code).startswith("upstream_")
            with pytest.raises(openai.InternalServerError) as refused:
                client.chat.completions.create(model=server.model, messages=MESSAGES)
            assert refused.value.status_code == 502
        cut, *later = gateway.all_records()
    assert (cut["outcome"], cut["exactness"]) == (Outcome.UPSTREAM_FAILED, Exactness.COUNTED)
    assert cut["output_tokens"] > 0
    assert [record["output_tokens"] for record in later] == [0] * len(later), "who got nothing pays nothing"


def test_a_look_at_the_server_does_not_cut_the_answer_that_it_is_giving(llamacpp: ModelServer, tmp_path: Path) -> None:
    """With its own settings it ends a stream for whatever is asked next, its list of models included."""
    environment = {**llamacpp.environment, "METERHOUSE_PROBE_SECONDS": "0.1"}
    with Gateway(tmp_path / "data", environment) as gateway, gateway.client() as client:
        wait_until_listed(gateway, llamacpp)

        def looked_at_ms() -> int:
            return gateway.parts.supply.statuses[LLAMACPP.row].checked_at_ms

        answer = client.chat.completions.create(model=llamacpp.model, **{**LONG, "max_tokens": 400})
        read_few(answer)
        before = looked_at_ms()
        wait_until(lambda: looked_at_ms() > before, "the next look")
        reasons = [choice.finish_reason for chunk in answer for choice in chunk.choices]
        assert reasons[-1] == "length"
        assert gateway.parts.supply.statuses[LLAMACPP.row].is_reachable


def test_an_answer_that_the_server_breaks_off_for_another_is_an_error_and_not_an_end(
    llamacpp: ModelServer, gateway: Gateway
) -> None:
    before = len(gateway.all_records())
    with gateway.client() as client:
        answer = client.chat.completions.create(model=llamacpp.model, **LONG)
        read_few(answer)
        assert llamacpp.say(max_tokens=1).usage.completion_tokens == 1
        with pytest.raises(openai.APIError) as caught:
            list(answer)
    assert caught.value.code == "upstream_stream_ended"
    (record,) = gateway.all_records()[before:]
    assert record["outcome"] == Outcome.UPSTREAM_FAILED
    assert record["output_tokens"] > 0


def test_a_server_that_does_not_interrupt_gives_both_answers(models: Path, tmp_path: Path) -> None:
    with (
        ModelServer(LLAMACPP, models, tmp_path, "--interrupt_requests", "false") as server,
        Gateway(tmp_path / "data", server.environment) as gateway,
    ):
        wait_until_listed(gateway, server)
        with gateway.client() as client:
            answer = client.chat.completions.create(model=server.model, **{**LONG, "max_tokens": 200})
            text = read_few(answer)
            with gateway.client() as other:
                second = other.chat.completions.create(
                    model=server.model, messages=MESSAGES, temperature=0, max_tokens=5
                )
            chunks = list(answer)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert second.choices[0].message.content
        assert text.startswith(second.choices[0].message.content[:3])
        assert [record["outcome"] for record in gateway.all_records()] == [Outcome.COMPLETED, Outcome.COMPLETED]

"""What comes through the gateway is what the server says: text, counts, list of models, errors."""

from typing import Any

import openai
import pytest

from fakes.gateway import MESSAGES, Gateway
from meterhouse.usage import Exactness, Outcome, UsageRecord
from real_model.servers import MODEL, ModelServer

pytestmark = pytest.mark.real_model


def text_of(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def finish_of(chunks: list[Any]) -> str | None:
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == 1
    return reasons[0]


def record_of(gateway: Gateway, request_id: str | None) -> UsageRecord:
    assert request_id is not None
    (record,) = gateway.records(request_id)
    return record


def ask(gateway: Gateway, model: str, **fields: Any) -> Any:
    with gateway.client() as client:
        return client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, **fields)


def stream(gateway: Gateway, model: str, **fields: Any) -> tuple[list[Any], str]:
    """Read a whole stream; returns its chunks and the request's id."""
    with (
        gateway.client() as client,
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, stream=True, **fields) as answer,
    ):
        return list(answer), answer.response.headers["x-request-id"]


def test_the_model_is_listed_as_the_servers_name_it(server: ModelServer, gateway: Gateway) -> None:
    assert server.listed() == [MODEL]
    with gateway.client() as client:
        assert MODEL in [model.id for model in client.models.list()]
        # Both serve it, so by its bare name either may answer, and under each provider's name that one does.
        assert client.models.retrieve(MODEL).id == MODEL
        assert client.models.retrieve(server.model).id
    record = record_of(gateway, ask(gateway, MODEL, max_tokens=1)._request_id)
    assert record.provider in {"transformers", "llamacpp"}


def test_a_whole_answer_is_the_servers_with_the_servers_counts(server: ModelServer, gateway: Gateway) -> None:
    direct = server.say(max_tokens=24)
    answer = ask(gateway, server.model, max_tokens=24)
    assert answer.choices[0].message.content == direct.choices[0].message.content != ""
    assert answer.choices[0].finish_reason == direct.choices[0].finish_reason == "length"
    assert answer.model == server.model
    record = record_of(gateway, answer._request_id)
    assert (record.provider, record.outcome, record.exactness) == (
        server.kind.row,
        Outcome.COMPLETED,
        Exactness.REPORTED,
    )
    for usage in (answer.usage, direct.usage):
        assert (usage.prompt_tokens, usage.completion_tokens) == (record.usage.input_tokens, record.usage.output_tokens)
    assert record.usage.output_tokens == 24


@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_stream_is_the_servers_and_its_counts_are_where_it_has_some(
    wants_usage: bool, server: ModelServer, gateway: Gateway
) -> None:
    direct = list(server.say(max_tokens=24, stream=True))
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    chunks, request_id = stream(gateway, server.model, max_tokens=24, **options)
    assert text_of(chunks) == text_of(direct) != ""
    assert finish_of(chunks) == finish_of(direct) == "length"
    record = record_of(gateway, request_id)
    found = (record.usage.input_tokens, record.usage.output_tokens)
    whole = server.say(max_tokens=24).usage
    said = [(c.usage.prompt_tokens, c.usage.completion_tokens) for c in direct if c.usage]
    if server.kind.reports_streams:
        assert record.exactness is Exactness.REPORTED
        assert found == said[0] == (whole.prompt_tokens, whole.completion_tokens)
    else:
        assert record.exactness is Exactness.COUNTED
        assert not said, "it reports now: the row's quirk is out of date"
        assert found[0] > 0
        assert 0 < found[1] <= len(text_of(chunks)), "no token is less than a byte of what was seen"
    usages = [c.usage for c in chunks if c.usage]
    assert [(u.prompt_tokens, u.completion_tokens) for u in usages] == ([found] if wants_usage else [])


def test_a_stop_sequence_ends_the_answer(server: ModelServer, gateway: Gateway) -> None:
    whole = server.say(max_tokens=24).choices[0].message.content
    stop = whole[8:10]
    direct = server.say(max_tokens=24, stop=[stop])
    answer = ask(gateway, server.model, max_tokens=24, stop=[stop])
    before = whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == direct.choices[0].message.content
    keeps_stop = server.kind.row == "transformers"
    assert answer.choices[0].message.content.startswith(before)
    assert (stop in answer.choices[0].message.content) is keeps_stop
    record = record_of(gateway, answer._request_id)
    assert record.usage.output_tokens == direct.usage.completion_tokens < 24


def test_a_seed_is_the_servers_own(server: ModelServer, gateway: Gateway) -> None:
    """With a temperature, where llama.cpp draws lots; transformers does so only for a model whose settings say so."""
    fields: Any = {"messages": MESSAGES, "max_tokens": 16, "temperature": 1.5, "seed": 5}
    direct = server.client.chat.completions.create(model=MODEL, **fields)
    with gateway.client() as client:
        answer = client.chat.completions.create(model=server.model, **fields)
    assert answer.choices[0].message.content == direct.choices[0].message.content


def test_parameters_that_a_server_would_refuse_do_not_reach_it(server: ModelServer, gateway: Gateway) -> None:
    plain = ask(gateway, server.model, max_tokens=24)
    fields: Any = {"frequency_penalty": 0, "presence_penalty": 0, "user": "ann", "store": False, "metadata": {"a": "b"}}
    fields |= {"parallel_tool_calls": True, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s"}
    answer = ask(gateway, server.model, max_completion_tokens=24, **fields)
    assert answer.choices[0].message.content == plain.choices[0].message.content
    strict = ask(gateway, server.model, max_tokens=24, frequency_penalty=-2)
    assert strict.choices[0].finish_reason == "length"


def test_a_penalty_of_repetition_reaches_the_server_that_has_one(server: ModelServer, gateway: Gateway) -> None:
    """transformers has it only under a name that means another number, so there it is left out."""
    plain = ask(gateway, server.model, max_tokens=40).choices[0].message.content
    fined = ask(gateway, server.model, max_tokens=40, extra_body={"repetition_penalty": 1.9})
    assert (fined.choices[0].message.content != plain) is (server.kind.row == "llamacpp")


def test_the_longest_answer_that_was_held_is_the_longest_that_is_made(server: ModelServer, gateway: Gateway) -> None:
    with gateway.client(gateway.new_key("tokens 10000 total")) as client:
        answer = client.chat.completions.create(model=server.model, messages=MESSAGES, temperature=0, max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("name", ["no-such-model", "llamacpp/no-such-model"])
def test_an_unknown_model_is_the_sdks_not_found(name: str, gateway: Gateway) -> None:
    """llama-cpp-python would answer with the model that it has; so would llama.cpp's own server."""
    before = len(gateway.all_records())
    with pytest.raises(openai.NotFoundError) as caught:
        ask(gateway, name)
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")
    assert len(gateway.all_records()) == before


def test_a_model_that_only_the_server_can_know_of_is_refused_in_its_words(
    transformers: ModelServer, gateway: Gateway
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(gateway, "transformers/no-such-model")
    assert MODEL in caught.value.message
    assert caught.value.type == "invalid_request_error"
    assert transformers.daemon.is_running


def test_what_the_server_cannot_validate_is_the_callers_mistake(llamacpp: ModelServer, gateway: Gateway) -> None:
    """It answers 500, and a deployment that fails is one that others are not sent to."""
    with gateway.client() as client:
        for _ in range(12):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(
                    model=llamacpp.model, messages=[{"role": "developer", "content": "Be brief"}], max_tokens=3
                )
            assert "validation error" in caught.value.message
            assert "app.py" not in caught.value.message
    assert ask(gateway, llamacpp.model, max_tokens=3).usage.completion_tokens == 3

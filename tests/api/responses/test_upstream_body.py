"""What of a request a provider gets to see, on either way."""

import json
from typing import Any

import pytest

from api.asking import Capture, Tenant
from api.responses.post import Post, marked

THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm"}]}


def test_where_the_provider_has_responses_the_body_goes_as_it_came(post: Post, capture: Capture) -> None:
    marker, said = marked()
    fields = {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": said, "x_new": 1.50}]}],
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"x": [1.50]}}},
        "tools": [{"type": "function", "name": "f", "parameters": {"x": [1.50]}}],
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "max_output_tokens": 50,
        "x-unknown": [None, {"deep": 1e3}],
    }
    post.whole("native/capture", **fields)
    sent = capture.body(marker)
    assert {name: sent[name] for name in fields} == fields
    assert (sent["model"], sent["store"]) == ("capture", False)


def test_elsewhere_it_is_a_chat_completion(post: Post, capture: Capture) -> None:
    marker, said = marked()
    post.stream("fake/capture", input=said, instructions="Be brief.", max_output_tokens=50, metadata={"a": "b"})
    assert capture.body(marker) == {
        "model": "capture",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}],
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("asked", [{}, {"store": True}, {"store": None}])
def test_nothing_is_stored_at_the_provider(post: Post, capture: Capture, asked: dict[str, Any]) -> None:
    marker, said = marked()
    _, response = post.whole("native/capture", input=said, **asked)
    assert capture.body(marker)["store"] is False
    assert response.to_dict()["store"] is False


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key"])
def test_what_a_provider_groups_by_is_kept_apart_by_organization(
    post: Post, provider: str, capture: Capture, name: str
) -> None:
    first, second = Tenant(post.gateway), Tenant(post.gateway)
    sent = []
    for tenant in (first, second):
        marker, said = marked()
        _, response = post.whole(f"{provider}/capture", input=said, key=tenant.key, **{name: "me"})
        assert getattr(response, name) == "me", "the client gets back what it sent"
        sent.append(capture.body(marker)[name])
    assert sent[0] != sent[1]
    assert all(value.startswith("mh-") and value.endswith("-me") for value in sent)


def test_thoughts_that_only_a_store_could_resolve_are_not_sent(post: Post, capture: Capture) -> None:
    marker, said = marked()
    sealed = {**THOUGHT, "encrypted_content": "gAAA"}
    history = [{"role": "user", "content": "Hi"}, THOUGHT, sealed, {"role": "user", "content": said}]
    post.whole("native/capture", input=history)
    assert capture.body(marker)["input"] == [history[0], sealed, history[3]]


def test_an_answer_that_was_thought_about_can_be_sent_back(post: Post, provider: str, capture: Capture) -> None:
    _, first = marked()
    _, response = post.whole(f"{provider}/reasoning?tokens=2", input=first)
    marker, second = marked()
    history = [*(item.to_dict() for item in response.output), {"role": "user", "content": second}]
    post.whole(f"{provider}/capture", input=history)
    sent = capture.body(marker)
    assert ("reasoning" in json.dumps(sent)) is (provider == "fake")

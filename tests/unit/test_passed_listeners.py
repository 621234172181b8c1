"""Listening to answers that are passed through: text, usage, the end, and an end of our own."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Raw

from meterhouse.asked import Asked
from meterhouse.errors import BudgetExhausted, UpstreamBusy, UpstreamDown
from meterhouse.http.passing import PassThrough, check_object
from meterhouse.http.respond import OPENAI_ENVELOPE
from meterhouse.http.wires.passed_completions import PassedCompletions
from meterhouse.http.wires.passed_messages import MessagesListener, PassedMessages
from meterhouse.http.wires.passed_responses import PassedResponses, ResponsesListener
from meterhouse.http.wires.responses import ResponsesWire
from meterhouse.providers.catalog import PROVIDERS, model_of
from meterhouse.providers.provider import Deployment
from meterhouse.request import Attempt, InputSize
from meterhouse.usage import Outcome, Usage

ROW = replace(PROVIDERS["openai_compatible"], name="fake")
DEPLOYMENT = Deployment(
    id="fake/up",
    provider=ROW,
    base_url="http://fake",
    credential=None,
    upstream_model="up",
    model=model_of(ROW, "asked", "up"),
    price=None,
)
USED = Usage(input_tokens=10, cached_input_tokens=4, output_tokens=7)


def attempt() -> Attempt:
    return Attempt(1, "fake", "fake/up", "up", None, time.monotonic_ns())


def payload(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def events_of(frames: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for event in frames.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# --- messages


def messages() -> MessagesListener:
    return MessagesListener("asked", DEPLOYMENT, OPENAI_ENVELOPE)


START = payload(
    type="message_start",
    message={"id": "msg_1", "model": "up", "usage": {"input_tokens": 6, "cache_read_input_tokens": 4}},
)


def test_a_message_starts_under_the_asked_name_with_its_whole_input() -> None:
    tried = attempt()
    heard = messages().hear(START, tried)
    assert events_of(heard.frame)[0][1]["message"]["model"] == "asked"
    assert tried.served_model == "up"
    assert heard.usage is not None
    assert (heard.usage.input_tokens, heard.usage.output_tokens) == (10, None)


def test_the_usage_of_a_message_is_what_its_events_say_together() -> None:
    listener, tried = messages(), attempt()
    listener.hear(START, tried)
    end = listener.hear(
        payload(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}), tried
    )
    assert end.is_end
    assert not end.is_last
    assert end.usage is not None
    assert end.usage.usage == USED
    assert tried.finish_reasons == ["end_turn"]
    assert listener.hear(payload(type="message_stop"), tried).is_last


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"type": "text_delta", "text": "Hi"}, "Hi"),
        ({"type": "thinking_delta", "thinking": "hm"}, "hm"),
        ({"type": "input_json_delta", "partial_json": '{"a'}, '{"a'),
        ({"type": "signature_delta", "signature": "abc"}, ""),
    ],
)
def test_what_a_block_says_is_counted(delta: dict[str, str], text: str) -> None:
    heard = messages().hear(payload(type="content_block_delta", index=0, delta=delta), attempt())
    assert (heard.text, heard.is_end) == (text, False)


def test_a_message_whose_allowance_is_used_up_ends_as_one_that_reached_its_bound() -> None:
    listener, tried = messages(), attempt()
    listener.hear(payload(type="content_block_start", index=2, content_block={"type": "text", "text": ""}), tried)
    listener.told()
    listener.hear(payload(type="content_block_stop", index=2), tried)
    listener.hear(payload(type="content_block_start", index=3, content_block={"type": "text", "text": ""}), tried)
    names = [name for name, _ in events_of(listener.cut(USED))]
    assert names == ["content_block_stop", "message_delta", "message_stop"]
    assert events_of(listener.cut(USED))[0][1]["index"] == 2, "the client never heard of the other block"
    _, delta = events_of(listener.cut(USED))[1]
    assert delta["delta"]["stop_reason"] == "max_tokens"
    assert delta["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 7,
    }


def test_a_message_of_which_nothing_was_told_begins_before_it_is_cut() -> None:
    listener, tried = messages(), attempt()
    listener.hear(payload(type="ping"), tried)
    begun = listener.hear(START, tried).frame
    listener.hear(payload(type="content_block_start", index=0, content_block={"type": "text", "text": ""}), tried)
    cut = listener.cut(USED)
    assert cut.startswith(begun)
    assert [name for name, _ in events_of(cut)] == ["message_start", "message_delta", "message_stop"]
    listener.told()
    names = [name for name, _ in events_of(listener.cut(USED))]
    assert names == ["content_block_stop", "message_delta", "message_stop"]


def test_an_error_in_a_message_is_the_providers() -> None:
    with pytest.raises(UpstreamBusy):
        messages().hear(payload(type="error", error={"type": "overloaded_error", "message": "no"}), attempt())
    with pytest.raises(UpstreamDown):
        messages().hear(b"[1]", attempt())


def test_a_message_that_is_no_text_is_the_providers_error() -> None:
    with pytest.raises(UpstreamDown):
        messages().hear(START.replace(b'"up"', b'"\xff"'), attempt())


@pytest.mark.parametrize("usage", [b"", b',"usage":{"input_\xff":1}', b',"usage":{"input_tokens":1e999}'])
@pytest.mark.parametrize(
    ("passed", "body"),
    [
        (PassedMessages(OPENAI_ENVELOPE), b'{"content":[{"type":"text","text":"\xff"}]%b}'),
        (PassedCompletions(), b'{"choices":[{"\xff":1}]%b}'),
        (PassedResponses(), b'{"output":[{"\xff":1}]%b}'),
    ],
)
def test_what_of_a_whole_answer_is_no_text_says_nothing(passed: PassThrough, body: bytes, usage: bytes) -> None:
    noted = attempt()
    asked = Asked(model="asked", size=InputSize(0, 0, 0, 0))
    call: Any = SimpleNamespace(tally=SimpleNamespace(attempt=noted), asked=asked, is_draining=False)
    passed.note_whole(call, check_object(body % usage))
    assert noted.reported is None
    assert noted.outcome is Outcome.COMPLETED


def test_an_events_name_cannot_break_its_line() -> None:
    heard = messages().hear(payload(type="x\ndata: y"), attempt())
    assert heard.frame.startswith(b"data: ")
    assert heard.frame.count(b"\n") == 2


# --- responses


def responses(**given: str) -> ResponsesListener:
    fields = {name: Raw(json.dumps(value).encode()) for name, value in given.items()}
    return ResponsesListener(Asked(model="asked", size=InputSize(0, 0, 0, 0), fields=fields), DEPLOYMENT)


def response_event(kind: str, **fields: Any) -> bytes:
    return payload(type=kind, sequence_number=5, response={"id": "resp_1", "model": "up", **fields})


def test_a_response_that_is_no_text_is_the_providers_error() -> None:
    opening = response_event("response.created", response={"id": "resp_1", "model": "up"})
    with pytest.raises(UpstreamDown):
        responses().hear(opening.replace(b'"id"', b'"\xff"'), attempt())


def test_a_response_ends_with_its_usage_under_the_asked_name() -> None:
    tried = attempt()
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    }
    heard = responses().hear(response_event("response.completed", usage=usage, service_tier="flex"), tried)
    assert (heard.is_end, heard.is_last) == (True, True)
    assert heard.usage is not None
    assert heard.usage.usage == Usage(input_tokens=10, cached_input_tokens=4, output_tokens=7, reasoning_tokens=3)
    assert (tried.served_model, tried.service_tier, tried.finish_reasons) == ("up", "flex", ["stop"])
    ((name, event),) = events_of(heard.frame)
    assert (name, event["response"]["model"]) == ("response.completed", "asked")


@pytest.mark.parametrize(("reason", "noted"), [("max_output_tokens", "length"), ("content_filter", "content_filter")])
def test_an_incomplete_response_says_why_in_the_words_of_chat_completions(reason: str, noted: str) -> None:
    tried = attempt()
    heard = responses().hear(response_event("response.incomplete", incomplete_details={"reason": reason}), tried)
    assert (heard.is_last, tried.finish_reasons) == (True, [noted])


@pytest.mark.parametrize("kind", ["output_text", "function_call_arguments", "reasoning_text", "refusal"])
def test_every_delta_of_a_response_is_counted(kind: str) -> None:
    heard = responses().hear(payload(type=f"response.{kind}.delta", sequence_number=3, delta="é"), attempt())
    assert (heard.text, heard.is_end) == ("é", False)


def test_a_response_whose_allowance_is_used_up_is_incomplete() -> None:
    listener, tried = responses(), attempt()
    listener.hear(response_event("response.created", output=[]), tried)
    item = {"id": "msg_1", "type": "message"}
    listener.hear(payload(type="response.output_item.added", sequence_number=6, output_index=0, item=item), tried)
    listener.told()
    not_told = {"id": "msg_2", "type": "message"}
    listener.hear(payload(type="response.output_item.added", sequence_number=7, output_index=1, item=not_told), tried)
    ((done, ended), (name, event)) = events_of(listener.cut(USED))
    assert (done, ended["output_index"], ended["item"]) == ("response.output_item.done", 0, item)
    assert (name, event["sequence_number"]) == ("response.incomplete", 8)
    response = event["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (response["id"], response["output"], response["usage"]["output_tokens"]) == ("resp_1", [item], 7)
    assert response["model"] == "asked"


def test_a_response_whose_first_read_was_too_much_still_begins_and_ends() -> None:
    listener, tried = responses(), attempt()
    listener.hear(response_event("response.created", status="in_progress", output=[]), tried)
    item = {"id": "msg_1", "type": "message", "content": []}
    listener.hear(payload(type="response.output_item.added", sequence_number=6, output_index=0, item=item), tried)
    events = events_of(listener.cut(USED))
    assert [name for name, _ in events] == ["response.created", "response.in_progress", "response.incomplete"]
    assert [event["sequence_number"] for _, event in events] == [0, 1, 2]
    assert {event["response"]["id"] for _, event in events} == {"resp_1"}
    assert events[-1][1]["response"]["output"] == []


def test_an_end_of_ours_has_all_that_was_told_before() -> None:
    listener, tried = responses(), attempt()
    listener.hear(response_event("response.created", output=[]), tried)

    def tell(kind: str, index: int, **fields: Any) -> str:
        event = payload(type=f"response.{kind}", sequence_number=9, output_index=index, **fields)
        return listener.hear(event, tried).text

    thought = {"id": "rs_1", "type": "reasoning", "status": "in_progress", "summary": []}
    assert tell("output_item.added", 0, item=thought) == ""
    assert tell("reasoning_summary_part.added", 0, summary_index=0, part={"type": "summary_text", "text": ""}) == ""
    assert tell("reasoning_summary_text.delta", 0, summary_index=0, delta="Hm") == "Hm"
    said = {"id": "msg_1", "type": "message", "status": "in_progress", "content": []}
    tell("output_item.added", 1, item=said)
    tell("content_part.added", 1, content_index=0, part={"type": "output_text", "text": ""})
    tell("content_part.added", 1, content_index=1, part={"type": "refusal", "refusal": ""})
    for delta in ("Ye", "s"):
        assert tell("output_text.delta", 1, content_index=0, delta=delta) == delta
    tell("refusal.delta", 1, content_index=1, delta="No")
    call = {"id": "fc_1", "type": "function_call", "status": "in_progress", "name": "look", "arguments": ""}
    assert tell("output_item.added", 2, item=call) == "look"
    assert tell("function_call_arguments.delta", 2, delta="{}") == "{}"
    done = {"id": "fc_2", "type": "function_call", "status": "completed", "name": "f", "arguments": "[]"}
    assert tell("output_item.done", 3, item=done) == "f[]", "told in one piece, so counted now"

    listener.told()
    ((_, failed), (_, error)) = events_of(listener.fail(BudgetExhausted("No."), "req_1"))
    assert [failed["sequence_number"], error["sequence_number"]] == [10, 11]
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {"code": "server_error", "message": "No."}
    assert failed["response"]["output"] == [
        {**thought, "status": "incomplete", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {
            **said,
            "status": "incomplete",
            "content": [{"type": "output_text", "text": "Yes"}, {"type": "refusal", "refusal": "No"}],
        },
        {**call, "status": "incomplete", "arguments": "{}"},
        done,
    ]


def test_a_response_tells_back_what_was_sent_and_not_what_went_upstream() -> None:
    listener = responses(user="me", prompt_cache_key="k")
    heard = listener.hear(response_event("response.created", user="mh-1-me", prompt_cache_key="mh-1-k"), attempt())
    ((_, event),) = events_of(heard.frame)
    assert event["response"] == {"id": "resp_1", "model": "asked", "user": "me", "prompt_cache_key": "k"}


def test_an_event_in_which_all_is_right_passes_byte_for_byte() -> None:
    event = b'{ "type":"response.created","x":[1.50],"sequence_number":0,"response":{"model" : "asked","z":"\\u00e9"} }'
    assert responses().hear(event, attempt()).frame == b"event: response.created\ndata: " + event + b"\n\n"


def test_a_usage_in_a_failed_response_is_what_is_charged() -> None:
    tried = attempt()
    usage = {"input_tokens": 10, "output_tokens": 7}
    with pytest.raises(UpstreamDown):
        responses().hear(response_event("response.failed", usage=usage, error={"message": "no"}), tried)
    assert tried.reported == Usage(input_tokens=10, output_tokens=7)


def test_a_response_that_failed_is_the_providers_error() -> None:
    error = {"code": "rate_limit_exceeded", "message": "no"}
    with pytest.raises(UpstreamBusy):
        responses().hear(response_event("response.failed", error=error), attempt())
    with pytest.raises(UpstreamDown):
        responses().hear(payload(type="error", code="server_error", message="no"), attempt())


def test_our_error_in_a_response_is_what_its_sdk_raises() -> None:
    ((name, event),) = events_of(responses().fail(BudgetExhausted("No."), "req_1"))
    assert event["sequence_number"] == 0
    assert (name, event["type"], event["message"]) == ("error", "error", "No.")
    assert event["error"]["code"] == "insufficient_quota"


def test_an_error_before_anything_was_said_is_an_event_of_its_own() -> None:
    ((name, event),) = events_of(ResponsesWire.envelope.event(BudgetExhausted("No."), "req_1"))
    assert (name, event["sequence_number"], event["message"]) == ("error", 0, "No.")

"""Reads what ``/v1/responses`` answers as strictly as it can be read: by the models of the official SDK.

Every event and every response must validate in strict mode, may carry nothing that the SDK does not know, and the
events of a stream must be what the SDK's own stream helper accepts, in its order.
"""

import json
from typing import Any, get_args

from openai import BaseModel, omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

MODELS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
UNNAMED = {"Response": {"store"}, "ResponseErrorEvent": {"error"}}
"""Fields of OpenAI's own answers that the SDK's models leave out."""
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


def read_response(body: bytes) -> Response:
    """Read a whole answer."""
    response = Response.model_validate_json(body, strict=True)
    assert_known(response)
    return response


def read_stream(body: bytes) -> list[Any]:
    """Read a stream from its first byte to its end; comments are left out."""
    assert body.endswith(b"\n\n"), body[-80:]
    events = []
    for row in body[:-2].split(b"\n\n"):
        if row.startswith(b":"):
            continue
        name, data = row.split(b"\n")
        event = read_event(data.removeprefix(b"data: "))
        assert name == b"event: " + event.type.encode()
        events.append(event)
    check_order(events)
    return events


def read_event(data: bytes) -> Any:
    """Read the data of one event."""
    model = MODELS[json.loads(data)["type"]]
    event = model.model_validate_json(data, strict=True)
    assert_known(event)
    return event


def assert_known(value: object, path: str = "$") -> None:
    """Fail on a field that the SDK's model does not name."""
    if isinstance(value, BaseModel):
        unknown = (value.__pydantic_extra__ or {}).keys() - UNNAMED.get(type(value).__name__, set())
        assert not unknown, f"{path}: {unknown}"
        for name in type(value).model_fields:
            assert_known(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            assert_known(item, f"{path}[{index}]")


def check_order(events: list[Any]) -> None:
    """Check what the SDK's helper demands, and what it trusts: numbers without gaps, deltas that add up, an end."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last = -1
    if events[-1].type == "error":
        last = -2
        assert events[last].type == "response.failed"
    assert events[last].type in TERMINAL
    assert not [event for event in events[:last] if event.type in {*TERMINAL, "error"}]
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(event.model_copy(deep=True))
    _check_sums(events)


def _check_sums(events: list[Any]) -> None:
    """Check that each ``done`` says what the deltas before it said, and that the last event has all of it."""
    said: dict[tuple[Any, ...], str] = {}
    done: dict[int, Any] = {}
    for event in events:
        kind, _, what = event.type.rpartition(".")
        place = getattr(event, "content_index", getattr(event, "summary_index", None))
        if what == "delta":
            key = (kind, event.output_index, place)
            said[key] = said.get(key, "") + event.delta
        elif what == "done" and kind not in {"response.output_item", "response.content_part"}:
            if kind == "response.reasoning_summary_part":
                continue
            names = ("text", "refusal", "arguments", "input")
            text = next(getattr(event, name) for name in names if hasattr(event, name))
            assert said.pop((kind, event.output_index, place), "") == text
        elif event.type == "response.output_item.done":
            done[event.output_index] = event.item
            for key in [key for key in said if key[1] == event.output_index]:
                assert said.pop(key) in event.item.to_json(), "an end of ours ends items without their parts"
    if events[-1].type != "error":
        assert said == {}
        assert [item.to_dict() for _, item in sorted(done.items())] == [
            item.to_dict() for item in events[-1].response.output
        ]


def text_of(response: Any) -> str:
    """Return what a response says."""
    return str(response.output_text)

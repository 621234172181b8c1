"""What a GLM-4 deployment refuses, and only such a one."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway

USER = {"role": "user", "content": "say:Hi"}


@pytest.mark.parametrize("last", [{"role": "assistant", "content": "The"}, {"role": "assistant", "content": None}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_last_message_of_the_assistant_that_is_no_declared_prefix_is_refused(
    gateway: Gateway, last: dict[str, object], stream: bool
) -> None:
    for row in (last, {**last, "prefix": False}):
        status, _, body = gateway.chat("glm4/say?tokens=1", messages=[USER, row], stream=stream)
        error = error_of(body)
        assert (status, error["param"]) == (400, "messages")
        assert error["message"].startswith("Invalid request")
        assert '"prefix": true' in error["message"]


def test_no_messages_are_refused(gateway: Gateway) -> None:
    status, _, body = gateway.chat("glm4/say?tokens=1", messages=[])
    assert status == 400
    assert error_of(body)["message"].startswith("Invalid request")


def test_a_declared_prefix_passes_and_other_deployments_take_any_last_message(gateway: Gateway) -> None:
    last = {"role": "assistant", "content": "The"}
    for model, row in (("glm4", {**last, "prefix": True}), ("glm45", last), ("plain", last)):
        assert gateway.chat(f"{model}/say?tokens=1", messages=[USER, row])[0] == 200
    assert gateway.chat("glm4/say?tokens=1", messages=[USER, last], continue_final_message=True)[0] == 200


def test_a_refusal_costs_nothing(gateway: Gateway) -> None:
    key = gateway.new_key("requests 5/day")
    status, headers, _ = gateway.chat(
        "glm4/say?tokens=1", key=key, messages=[USER, {"role": "assistant", "content": "The"}]
    )
    assert status == 400
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.attempt, record.charge_nanos) == (0, 0)

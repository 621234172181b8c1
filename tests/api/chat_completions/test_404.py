"""Models that are not served."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


def refusal(gateway: Gateway, model: str) -> dict[str, object]:
    status, _, body = gateway.chat(model)
    assert status == 404, body
    error = error_of(body)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
    return error


@pytest.mark.parametrize("model", ["nothing", "nowhere/normal", "fake/", "/", "openai/gpt-4o", "gpt-4o", "simulator2"])
def test_an_unknown_model_is_not_found(gateway: Gateway, model: str) -> None:
    assert "GET /v1/models" in str(refusal(gateway, model)["message"])


@pytest.mark.parametrize(("model", "replacement"), [("gpt-4-turbo", "gpt-5.6-sol"), ("gpt-3.5-turbo", "gpt-5.6-terra")])
def test_a_retired_model_names_its_replacement(gateway: Gateway, model: str, replacement: str) -> None:
    for name in (model, f"openai/{model}"):
        message = str(refusal(gateway, name)["message"])
        assert model in message
        assert replacement in message
        assert "2026-10-23" in message


def test_a_name_that_is_unfit_for_a_log_is_not_repeated(gateway: Gateway) -> None:
    message = str(refusal(gateway, "line\nbreak\x1b[31m")["message"])
    assert "break" not in message


def test_a_model_that_the_provider_does_not_know_keeps_the_providers_words(gateway: Gateway) -> None:
    status, headers, body = gateway.chat("fake/no-such-script")
    error = error_of(body)
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "no-such-script" in error["message"]
    assert headers["x-should-retry"] == "false"

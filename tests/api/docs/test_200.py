"""The page of the API and its description."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.gateway import Gateway

METHODS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}


@pytest.fixture
def schema(gateway: Gateway) -> dict[str, Any]:
    status, headers, body = gateway.request("GET", "/openapi.json", key="")
    assert (status, headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(body)
    return found


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_the_page_shows_the_description(gateway: Gateway) -> None:
    status, headers, body = gateway.request("GET", "/docs", key="")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"/openapi.json" in body


def test_the_description_has_the_structure_of_openapi(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.")
    assert schema["info"]["title"] == "Meterhouse"
    assert schema["info"]["version"]
    for path, method, operation in operations(schema):
        assert path.startswith("/")
        assert method in METHODS
        assert operation["responses"], (path, method)
        for status, response in operation["responses"].items():
            assert status == "default" or len(status) == 3
            assert response["description"], (path, method, status)
        named = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"}
        assert named == {part[1:-1].split(":")[0] for part in path.split("/") if part.startswith("{")}, path


def test_every_operation_has_an_id_of_its_own(schema: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(schema)]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    references = {item["$ref"] for item in walk(schema) if isinstance(item.get("$ref"), str)}
    assert references
    for reference in references:
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]


def test_the_request_of_a_chat_completion_is_described_as_it_is_checked(schema: dict[str, Any]) -> None:
    operation = schema["paths"]["/v1/chat/completions"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    request = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert set(request["required"]) == {"model", "messages"}
    properties = request["properties"]
    assert {"temperature", "tools", "response_format", "stream_options", "max_completion_tokens"} <= set(properties)
    temperature = next(kind for kind in properties["temperature"]["anyOf"] if kind.get("type") == "number")
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    assert {"200", "4XX", "5XX"} <= set(operation["responses"])
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


def test_the_answer_of_a_chat_completion_is_described(schema: dict[str, Any]) -> None:
    content = schema["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    for content_type in ("application/json", "text/event-stream"):
        reference = content[content_type]["schema"]["$ref"]
        described = schema["components"]["schemas"][reference.rpartition("/")[2]]
        assert {"id", "object", "created", "model", "choices", "usage"} <= set(described["properties"])
    failure = schema["paths"]["/v1/chat/completions"]["post"]["responses"]["4XX"]["content"]["application/json"]
    envelope = schema["components"]["schemas"][failure["schema"]["$ref"].rpartition("/")[2]]
    error = schema["components"]["schemas"][envelope["properties"]["error"]["$ref"].rpartition("/")[2]]
    assert set(error["required"]) == {"message", "type", "param", "code"}


def test_every_address_of_the_issue_is_described(schema: dict[str, Any]) -> None:
    wanted = {"/", "/health", "/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/limits", "/admin/keys"}
    wanted |= {"/v1/chat/completions", "/v1/receipts/{request_id}", "/admin/limits", "/admin/prices"}
    assert wanted <= set(schema["paths"])


def test_refusals_are_described_in_our_envelope_and_not_in_the_frameworks(schema: dict[str, Any]) -> None:
    text = json.dumps(schema["paths"])
    assert "HTTPValidationError" not in text
    assert '"422"' not in text

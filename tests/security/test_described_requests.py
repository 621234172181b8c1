"""Every operation that the OpenAPI page describes, asked in ways that it allows and in ways that it does not.

schemathesis makes the requests from the description. Whatever they are, none may be a failure of ours, and every
refusal has our envelope. ``METERHOUSE_TEST_EXAMPLES`` says how many of each operation; with the whole fault matrix.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from security.conftest import SETTINGS

EXAMPLES = int(os.environ.get("METERHOUSE_TEST_EXAMPLES", "10"))
MODEL = "fake/normal?tokens=1"
pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(600)]
SERVER_ERROR, BAD_REQUEST = 500, 400
ENVELOPE, ANTHROPIC_ENVELOPE = {"message", "type", "param", "code"}, {"message", "type"}
"""The second may have ``details`` too."""


@pytest.fixture(scope="module")
def own(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One of its own: what is asked of it changes it."""
    environment = provider_environment("fake", up.base_url, **SETTINGS)
    with Gateway(tmp_path_factory.mktemp("described") / "data", environment) as running:
        yield running


class Asker:
    """Sends what was made up of one operation after another, and looks at the answers."""

    def __init__(self, gateway: Gateway, session: requests.Session) -> None:
        self._gateway = gateway
        self._session = session
        self.asked = 0

    def try_operation(self, operation: Any) -> None:
        is_admin = operation.path.startswith("/admin")
        key = self._gateway.admin_key if is_admin else self._gateway.key

        def ask(case: Any) -> None:
            if isinstance(case.body, dict) and "model" in case.body and not is_admin:
                case.body = {**case.body, "model": MODEL}
            self.asked += 1
            check(case, case.call(headers={"authorization": f"Bearer {key}"}, session=self._session))

        made = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
        wanted = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        wanted(given(case=st.one_of(made))(ask))()


def check(case: Any, answer: Any) -> None:
    assert answer.status_code < SERVER_ERROR, (case.as_curl_command(), answer.text)
    if answer.status_code >= BAD_REQUEST:
        error = json.loads(answer.text)["error"]
        wanted = ANTHROPIC_ENVELOPE if case.operation.path.startswith("/v1/messages") else ENVELOPE
        assert set(error) - {"details"} == wanted, (case.as_curl_command(), answer.text)
        assert "Traceback" not in answer.text
    assert "sk-upstream-credential-canary" not in answer.text


def test_no_described_request_is_a_failure_of_ours(own: Gateway) -> None:
    description = json.loads(own.request("GET", "/openapi.json", key="")[2])
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=own.url)
    with requests.Session() as session:
        asker = Asker(own, session)
        for result in schema.get_all_operations():
            asker.try_operation(result.ok())
    assert asker.asked >= len(description["paths"])
    assert own.request("GET", "/health/live")[0] == 200
    assert not [line for line in own.log_lines() if line["event"] in {"request.failed", "task.failed"}]

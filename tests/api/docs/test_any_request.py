"""Whatever is sent to the administration, made from its own description: no 5xx, and errors in the one envelope."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.generation import GenerationMode

from api.asking import error_of
from fakes.fleet import PEPPER
from fakes.gateway import Gateway
from plugins.matrix import is_full

EXAMPLES = 10 if is_full() else 1
"""Of each route: as many that fit its description as that do not, or by chance one of them."""
QUICK_ROUTES = 20
"""Of all, by chance, where not all are asked for."""


@pytest.fixture
def site(tmp_path: Path, migrated_database_url: str) -> Iterator[Gateway]:
    """On PostgreSQL, which takes less than SQLite does."""
    settings = {
        "METERHOUSE_ADMIN_RATE": "1000000/minute",
        "METERHOUSE_DATABASE_URL": migrated_database_url,
        "METERHOUSE_KEY_PEPPER": PEPPER,
    }
    with Gateway(tmp_path / "data", settings) as gateway:
        yield gateway


def operations(site: Gateway) -> list[Any]:
    description = json.loads(site.request("GET", "/openapi.json", key="")[2])
    schema = schemathesis.openapi.from_dict(description)
    chosen = schema.include(path_regex="^/(admin|v1/organization)")
    return [result.ok() for result in chosen.get_all_operations()]


def test_no_request_to_the_administration_is_an_error_of_ours(site: Gateway) -> None:
    found = operations(site)
    assert len(found) >= 50
    with requests.Session() as session:
        for operation in found if is_full() else random.sample(found, QUICK_ROUTES):
            for mode in GenerationMode if is_full() else [random.choice(list(GenerationMode))]:
                hammer(operation, mode, lambda case: send(site, session, case))
    assert not [line for line in site.log_lines() if line["event"] == "request.failed"]


def send(site: Gateway, session: requests.Session, case: Any) -> None:
    answer = case.call(base_url=site.url, headers={"Authorization": f"Bearer {site.admin_key}"}, session=session)
    assert answer.status_code < 500, (case.as_curl_command(), answer.content)
    if answer.status_code >= 400:
        error_of(answer.content)


def hammer(operation: Any, mode: GenerationMode, try_case: Callable[[Any], None]) -> None:
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: Any) -> None:
        try_case(case)

    attempt()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/keys/%00", None),
        ("GET", "/v1/organization/projects?after=%00", None),
        ("GET", "/v1/organization/audit_logs?actor_ids[]=a%00", None),
        ("POST", "/v1/organization/projects", {"name": "a\0b"}),
        ("POST", "/admin/organizations", b'{"name": "a\\u0000b"}'),
    ],
)
def test_the_character_that_cannot_be_stored_is_refused(gateway: Gateway, method: str, path: str, body: Any) -> None:
    status, _, answer = gateway.request(method, path, body, key=gateway.admin_key)
    assert (status, error_of(answer)["code"]) == (400, "invalid_value")
    assert "U+0000" in error_of(answer)["message"]

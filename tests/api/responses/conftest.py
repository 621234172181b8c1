"""Two providers for one set of scripts: ``fake`` has chat completions only, ``native`` has responses too."""

from collections.abc import Iterator

import pytest

from api.conftest import SETTINGS
from api.responses.post import Post
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

PATIENT = {
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "20",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "20",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "30",
}
"""No test here is about a provider that is slow; those are of chat completions, whose path this is."""
NATIVE = {
    "METERHOUSE_PROVIDER_NATIVE_KIND": "openai",
    "METERHOUSE_PROVIDER_NATIVE_API_KEY": "sk-upstream-credential-canary",
    "METERHOUSE_PROVIDER_NATIVE_SHOWS_ALL_OUTPUT": "true",
}


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url, **{**SETTINGS, **PATIENT, **NATIVE})
    environment["METERHOUSE_PROVIDER_NATIVE_BASE_URL"] = up.base_url
    with Gateway(tmp_path_factory.mktemp("responses") / "data", environment) as running:
        yield running


@pytest.fixture(params=["fake", "native"])
def provider(request: pytest.FixtureRequest) -> str:
    """Each test of what both ways have in common runs over both."""
    name: str = request.param
    return name


@pytest.fixture
def post(gateway: Gateway) -> Post:
    """Ask for a response."""
    return Post(gateway)

"""One provider and one gateway for all tests of the official SDK."""

from collections.abc import Iterator

import openai
import pytest

from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url)
    with Gateway(tmp_path_factory.mktemp("sdk") / "data", environment) as running:
        yield running


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    """One for all: making one reads the system's certificates, which takes longer than most of these tests."""
    with gateway.client() as made:
        yield made

"""A gateway of its own: answers are held back here for longer than the timeouts of the other tests allow."""

from collections.abc import Iterator

import pytest

from api.limits.arrange import Bench
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

SETTINGS = {"METERHOUSE_ADMIN_RATE": "100000/minute"}


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url, **SETTINGS)
    # A server whose output is all shown, so that an answer holds slice by slice, and whose usage comes last.
    environment |= {
        "METERHOUSE_PROVIDER_LLAMACPP_BASE_URL": up.base_url,
        "METERHOUSE_PROVIDER_LLAMACPP_MODELS": "blanks,breaks",
    }
    with Gateway(tmp_path_factory.mktemp("limits") / "data", environment) as running:
        yield running


@pytest.fixture
def bench(gateway: Gateway, up: FakeUpstream) -> Iterator[Bench]:
    made = Bench(gateway, up)
    yield made
    made.close()

"""One of each server for all tests here, and a gateway in front of both."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.daemon import wait_until
from fakes.gateway import Gateway
from real_model.servers import KINDS, LLAMACPP, TRANSFORMERS, Kind, ModelServer, make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture(scope="session")
def transformers(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    with ModelServer(TRANSFORMERS, models, tmp_path_factory.mktemp("transformers")) as server:
        yield server


@pytest.fixture(scope="session")
def llamacpp(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    with ModelServer(LLAMACPP, models, tmp_path_factory.mktemp("llamacpp")) as server:
        yield server


@pytest.fixture(params=KINDS, ids=lambda kind: kind.row)
def server(request: pytest.FixtureRequest) -> ModelServer:
    """Each of them in turn."""
    kind: Kind = request.param
    found: ModelServer = request.getfixturevalue(kind.row)
    return found


@pytest.fixture(scope="session")
def gateway(
    transformers: ModelServer, llamacpp: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    environment = {**transformers.environment, **llamacpp.environment}
    with Gateway(tmp_path_factory.mktemp("gateway") / "data", environment) as running:
        wait_until_listed(running, transformers, llamacpp)
        yield running


def wait_until_listed(gateway: Gateway, *servers: ModelServer) -> None:
    """Wait for the first probe, which says what the servers serve."""
    wanted = {server.kind.row for server in servers}
    wait_until(
        lambda: wanted <= {row for row, status in gateway.parts.supply.statuses.items() if status.models},
        "what the servers list",
    )

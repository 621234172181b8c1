"""Who has an answer may ask another worker at once: what the request held is given back by then, in every worker."""

from collections import Counter
from collections.abc import Iterator

import pytest

from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream

TIMES = 40
"""Each on a connection of its own, so that both workers get some, one after the other."""


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, up: FakeUpstream
) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("next")
    with (
        RedisServer(folder / "redis") as redis,
        ServeProcess(
            folder / "data",
            redis_url=redis.url,
            database_url=postgres_server.create_database(),
            environment=provider_environment("fake", up.base_url),
        ) as running,
    ):
        yield running


@pytest.mark.parametrize(
    ("model", "status", "is_streamed"),
    [("fake/normal", 200, False), ("fake/normal", 200, True), ("fake/error-400", 400, False)],
)
def test_one_request_at_a_time_is_never_one_too_many(
    fleet: ServeProcess, model: str, status: int, is_streamed: bool
) -> None:
    _, key = fleet.new_key("concurrent 1")
    answers = Counter(fleet.chat(model, key=key, stream=is_streamed)[0] for _ in range(TIMES))
    assert answers == {status: TIMES}

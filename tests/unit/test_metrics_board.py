"""The figures of several processes added up: nothing is lost when one ends, and nothing counts twice."""

from pathlib import Path

import pytest

from meterhouse.telemetry.board import Board, Family, Point
from meterhouse.telemetry.metrics import Metrics, Watched


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def process(requests: int, open_requests: int = 0, lag_seconds: float = 0) -> Metrics:
    metrics = Metrics()
    for _ in range(requests):
        metrics.observe_request(route="/v1/models", status=200, owner="", code="", duration_ms=20, records=())
    metrics.watch(Watched.OPEN_REQUESTS, lambda: open_requests)
    metrics.watch(Watched.SHIPPING_LAG_SECONDS, lambda: lag_seconds)
    return metrics


def scrape(metrics: Metrics, board: Board, number: int) -> dict[str, float]:
    metrics.join(lambda: board.read_others(number))
    lines = [line.rpartition(" ") for line in metrics.render()[0].decode().splitlines() if not line.startswith("#")]
    assert len({name for name, _, _ in lines}) == len(lines), "a sample appears twice"
    return {name: float(value) for name, _, value in lines}


REQUESTS = 'meterhouse_requests_total{code="",owner="",route="/v1/models",status_class="2xx"}'
BUCKET = 'meterhouse_request_duration_seconds_bucket{le="0.025",route="/v1/models"}'


def test_every_process_answers_with_the_sum(board: Board) -> None:
    one, other = process(3, open_requests=1, lag_seconds=7), process(4, open_requests=2, lag_seconds=5)
    board.write(1, one.snapshot())
    board.write(2, other.snapshot())
    for metrics, number in ((one, 1), (other, 2)):
        found = scrape(metrics, board, number)
        assert found[REQUESTS] == found[BUCKET] == 7
        assert found["meterhouse_open_requests"] == 3
        assert found["meterhouse_shipping_lag_seconds"] == 7


def test_what_a_process_counted_stays_and_what_it_was_goes(board: Board) -> None:
    one = process(3)
    for number in (2, 3):
        board.write(number, process(4, open_requests=2).snapshot())
        board.bury(number)
        board.bury(number)
    found = scrape(one, board, 1)
    assert found[REQUESTS] == found[BUCKET] == 11
    assert found["meterhouse_open_requests"] == 0


def test_a_process_that_never_counted_leaves_nothing(board: Board) -> None:
    board.bury(2)
    assert scrape(process(3), board, 1)[REQUESTS] == 3


def test_a_file_that_is_read_while_it_is_buried_counts_once(board: Board, tmp_path: Path) -> None:
    family = Family("requests", "counter", "", [Point("requests_total", {}, 4.0)])
    board.write(2, [family])
    left = (tmp_path / "2.metrics").read_bytes()
    board.bury(2)
    (tmp_path / "2.metrics").write_bytes(left)
    assert [point.value for page in board.read_others(1) for found in page for point in found.points] == [4.0]


def test_the_text_is_the_same_as_of_one_process(board: Board) -> None:
    metrics = process(3)
    alone = [line for line in metrics.render()[0].splitlines() if b"process_" not in line and b"python_gc" not in line]
    metrics.join(lambda: board.read_others(1))
    merged = [line for line in metrics.render()[0].splitlines() if b"process_" not in line and b"python_gc" not in line]
    assert merged == alone

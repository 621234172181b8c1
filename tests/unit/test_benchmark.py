"""What the benchmark makes of its windows: ratios, when a run is void, the picture; and when an answer is whole."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree as ET

import pytest

from benchmark import __main__ as command
from benchmark import calls, clients, hold, judge, stages
from benchmark.load import Connection, Load
from benchmark.plot import draw
from benchmark.proc import read_cpu_seconds, read_memory_bytes
from benchmark.report import (
    Books,
    Cell,
    Measurement,
    Outcome,
    find_disturbances,
    find_notes,
    find_slope,
    format_stores,
    format_table,
    make_cells,
)
from benchmark.servers import BenchError
from benchmark.wire import TOKENS, request_body, stream_answer

FRAMES = "run (/x/asyncio/runners.py:1);_serve (/x/meterhouse/worker.py:9);"


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (FRAMES, stages.LOOP),
        (FRAMES + "__call__ (/x/meterhouse/http/middleware.py:2)", "edge: id, head, errors"),
        (FRAMES + "__call__ (/x/meterhouse/http/middleware.py:2);verify (/x/meterhouse/keys/keyring.py:7)", "key"),
        (FRAMES + "reserve (/x/meterhouse/limits/redis.py:7);dumps (/x/msgspec/json.py:7)", "meter"),
        ("bootstrap (/x/threading.py:1);_run (/x/meterhouse/ledger/syncer.py:4)", "journal: sync"),
        (FRAMES + "_sync (/x/meterhouse/ledger/journal.py:2);submit (/x/meterhouse/ledger/aio.py:4)", "journal: sync"),
        (FRAMES + "run (/x/meterhouse/ledger/shipper.py:4);execute (/x/sqlalchemy/engine.py:4)", "shipping, seals"),
    ],
)
def test_a_sample_belongs_to_the_innermost_stage(stack: str, stage: str) -> None:
    assert stages.find_stage(stack) == stage


def test_a_thread_has_what_the_kernel_says_and_nothing_for_waiting() -> None:
    sync = "thread (7): journal-sync;_run (/x/meterhouse/ledger/syncer.py:4)"
    idle = "thread (8): spans;worker (/x/opentelemetry/sdk.py:1);Condition.wait (/x/threading.py:9)"
    busy = "thread (8): spans;worker (/x/opentelemetry/sdk.py:1);encode (/x/opentelemetry/sdk.py:5)"
    stacks = stages.weigh(Counter({sync: 90, idle: 90, busy: 10}), {7: 0.5, 8: 0.25, 9: 1.0})
    assert stacks == {sync: 500_000, busy: 250_000}


def test_calls_are_those_of_a_request_and_what_is_built_in_counts_where_it_was_called() -> None:
    settler, other = "/x/platform/meterhouse/ledger/settler.py", "/x/platform/meterhouse/ids.py"
    by_settler, by_other = (30, 30, 0.3, 0.3), (20, 20, 0.1, 0.1)
    stats: dict[calls.Place, calls.Row] = {
        (settler, 49, "settle"): (10, 10, 0.5, 0.8, {}),
        (other, 1, "settle"): (20, 20, 0.2, 0.3, {}),
        ("~", 0, "<len>"): (50, 50, 0.4, 0.4, {(settler, 49, "settle"): by_settler, (other, 1, "settle"): by_other}),
    }
    found = calls.sum_modules(stats)
    assert {name: round(one.calls, 6) for name, one in found.items()} == {"ledger/settler.py": 4, "ids.py": 4}
    assert list(calls.format_calls({"json": found}))[-1].split()[:2] == ["all", "8.0"]
    with pytest.raises(BenchError, match="no request was settled"):
        calls.sum_modules({(other, 1, "settle"): (20, 20, 0.2, 0.3, {})})


def test_the_stages_of_a_request_add_up_to_it() -> None:
    stacks = Counter({FRAMES + "verify (/x/meterhouse/keys/keyring.py:7)": 3, FRAMES: 1})
    found = {"json": stages._scale(stages.sum_stages(stacks), 400.0)}
    assert found["json"] == {"key": 300.0, stages.LOOP: 100.0}
    table = stages.format_stages(found)
    assert [line.split()[-1] for line in table if line.startswith(("key", "all"))] == ["300.0", "400.0"]
    assert stages.sum_functions(stacks)["keys/keyring.py verify"] == 3


def window(answers: int, **cpu: float) -> dict[str, Any]:
    used = {"server": 0.5, "load": 0.1, "upstream": 0.1} | cpu
    return {"answers": answers, "seconds": 1.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_seconds": used}


def cells_of(kind: str = "json", connections: int = 32, **windows: dict[str, Any]) -> list[Cell]:
    names = {"direct": "direct", "bare": "pass-through", "meterhouse": "meterhouse"}
    return make_cells(Measurement(names[name], kind, connections, values) for name, values in windows.items())


def cell_of(target: str, cells: list[Cell]) -> Cell:
    return next(cell for cell in cells if cell.target == target)


def test_all_rounds_of_a_cell_count() -> None:
    rounds = [("pass-through", 100), ("meterhouse", 40), ("pass-through", 300), ("meterhouse", 160)]
    cells = make_cells(Measurement(target, "json", 1, window(answers)) for target, answers in rounds)
    assert cell_of("meterhouse", cells).rate == 100
    assert cell_of("meterhouse", cells).ratio == pytest.approx(0.5)
    assert cell_of("pass-through", cells).ratio == 1


def test_the_ratio_of_cpu_is_the_median_of_the_pairs() -> None:
    rounds = []
    for own in (0.2, 0.3, 9.0):
        rounds.append(Measurement("pass-through", "json", 32, window(1000, server=0.1)))
        rounds.append(Measurement("meterhouse", "json", 32, window(1000, server=own)))
    assert cell_of("meterhouse", make_cells(rounds)).cpu_ratio == pytest.approx(3)


@pytest.mark.parametrize(("kind", "floor"), [("json", 0.10), ("stream", 0.45)])
def test_a_run_is_void_when_the_pass_through_is_slow_beside_the_upstream(kind: str, floor: float) -> None:
    direct = window(10_000)
    assert find_disturbances(cells_of(kind, direct=direct, bare=window(round(10_000 * floor)))) == []
    (reason,) = find_disturbances(cells_of(kind, direct=direct, bare=window(round(10_000 * floor) - 1)))
    assert f"below {floor}" in reason
    assert kind in reason


def test_one_connection_says_nothing_about_the_machine() -> None:
    assert find_disturbances(cells_of(connections=1, direct=window(10_000), bare=window(1))) == []


def test_a_pass_through_that_the_load_held_up_voids_and_a_held_up_meterhouse_is_a_lower_bound() -> None:
    held_up = window(1000, server=0.5, load=0.6, upstream=0.4)
    (reason,) = find_disturbances(cells_of(bare=held_up))
    assert "bottleneck" in reason
    stores = window(500, server=0.5, load=0.2, upstream=0.1, postgres=0.6, redis=0.1)
    cells = cells_of(bare=window(1000), meterhouse=stores)
    assert find_disturbances(cells) == []
    (note,) = find_notes(cells)
    assert "lower bound" in note
    assert "postgres 1,200" in note


def test_what_works_for_meterhouse_shares_the_other_core() -> None:
    cells = cells_of(meterhouse=window(500, load=0.2, upstream=0.1, clerk=0.05, postgres=0.3, redis=0.1))
    assert cells[0].load_busy == pytest.approx(0.75)
    assert format_stores(cells) == [
        "beside it (JSON, 32 connections): CPU us per answer: clerk 100, postgres 600, redis 200"
    ]


def test_the_upstream_itself_is_one_of_the_others() -> None:
    values = window(500, server=0.6, load=0.4)
    del values["cpu_seconds"]["upstream"]
    assert cells_of(direct=values)[0].load_busy == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("books", "word"),
    [
        (Books(served=10, answers=10, rows=9), "does not match"),
        (Books(served=10, answers=10, rows=11), "does not match"),
        (Books(served=10, answers=9, rows=10), "whole answers"),
        (Books(served=10, answers=9, rows=10, failures=1, first_failure="HTTP/1.1 503"), "HTTP/1.1 503"),
    ],
)
def test_books_that_do_not_balance_void_the_run(books: Books, word: str) -> None:
    (reason,) = books.find_void_reasons()
    assert word in reason


def test_books_that_balance_say_how_late_the_ledger_was() -> None:
    books = Books()
    books.add({"all_answers": 7, "failures": 0, "first_failure": ""}, served=7)
    books.rows, books.backlog, books.drain_seconds = 7, 3, 0.2
    assert books.find_void_reasons() == []
    assert "the last 3 came within 0.2 s of the end of the load (15 rows/s)" in books.describe()
    books.backlog = 0
    assert "none was left to ship" in books.describe()


@pytest.mark.parametrize(
    ("void", "disturbed", "is_quick", "status"),
    [([], [], False, 0), (["books"], [], True, 1), ([], ["slow"], False, 1), ([], ["slow"], True, 0)],
)
def test_a_void_run_fails_and_a_quick_one_bears_a_disturbed_machine(
    void: list[str], disturbed: list[str], is_quick: bool, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome(lines=["a table"], void=void, disturbed=disturbed)
    words = ["infra/bench", *(["--quick"] if is_quick else [])]
    with mock.patch.object(sys, "argv", words), mock.patch.object(command, "measure", return_value=outcome):
        assert command.main() == status
    out = capsys.readouterr().out
    assert "a table" in out
    assert out.count("VOID: ") == len(void) + len(disturbed)


def test_figures_are_written_for_machines_and_as_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = cells_of(direct=window(9000), bare=window(1000), meterhouse=window(400))
    outcome = Outcome(lines=["a table"], figures={"cells": [vars(cell) for cell in cells]}, disturbed=["slow"])
    picture = tmp_path / "plot.svg"
    words = ["infra/bench", "--json", "-", "--svg", str(picture)]
    with mock.patch.object(sys, "argv", words), mock.patch.object(command, "measure", return_value=outcome):
        assert command.main() == 1
    found = capsys.readouterr()
    figures = json.loads(found.out)
    assert figures["void"] == ["slow"]
    assert figures["cells"][2]["ratio"] == pytest.approx(0.4)
    assert "a table" in found.err
    ET.fromstring(picture.read_text())


def test_the_picture_shows_rates_and_ratios_in_proportion() -> None:
    cells = cells_of(direct=window(9000), bare=window(1000), meterhouse=window(400))
    tree = ET.fromstring(draw(cells))
    texts = [element.text for element in tree if element.tag.endswith("text")]
    assert {"1,000", "400", "0.40", "32 connections", "JSON answers"} <= set(texts)
    assert "9,000" not in texts
    bars = [element for element in tree if element.get("width") == "40"]
    low, high = sorted(float(bar.get("height", 0)) for bar in bars)
    assert low / high == pytest.approx(0.4, abs=0.01)


def test_a_table_has_a_row_for_each_cell() -> None:
    table = format_table(cells_of("stream", bare=window(1000), meterhouse=window(400)))
    head, _, bare, meterhouse = table.splitlines()
    assert head.split()[-3:] == ["ratio", "CPU", "ratio"]
    assert bare.startswith("streams")
    assert meterhouse.split()[-2:] == ["0.40", "2.50"]


def test_the_slope_of_memory_is_the_line_that_fits_best() -> None:
    assert find_slope([(0, 5.0), (1, 7.0), (2, 9.0)]) == pytest.approx(2)
    assert find_slope([(0, 5.0)]) == 0


class Transport:
    """What a connection writes to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def load() -> Load:
    return Load(iter([b"first", b"second", b"third"]), is_streamed=True)


def connect(load: Load) -> tuple[Connection, Transport]:
    connection, transport = Connection(load), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]  # all that is used of one
    return connection, transport


def measured(cpu: float, connections: int = 32) -> Outcome:
    cells = cells_of(connections=connections, bare=window(1000, server=0.1), meterhouse=window(1000, server=cpu))
    return Outcome(figures={"cells": [vars(cell) for cell in cells]})


@pytest.mark.parametrize(
    ("costs", "status"),
    [([0.3], 0), ([0.39], 0), ([0.4, 0.3], 0), ([0.4, 0.4], 1)],
    ids=["as recorded", "within 1.3", "once over", "twice over"],
)
def test_cpu_time_that_has_grown_fails_when_it_has_twice(
    costs: list[float], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "cpu.json"
    judge.record(recorded, [Cell(**cell) for cell in measured(0.3).figures["cells"]])
    assert json.loads(recorded.read_text()) == {"json": 3.0}
    outcomes = [measured(cost) for cost in costs]
    with (
        mock.patch.object(sys, "argv", ["infra/bench", "--judge", str(recorded)]),
        mock.patch.object(command, "measure", side_effect=outcomes) as measure,
    ):
        assert command.main() == status
    assert measure.call_count == len(costs)
    assert ("infra/bench --quick --record" in capsys.readouterr().err) is bool(status)


def test_what_ci_judges_was_recorded_of_both_kinds() -> None:
    assert sorted(json.loads(judge.RECORDED.read_text(encoding="utf-8"))) == ["json", "stream"]
    with mock.patch.object(sys, "argv", ["infra/bench", "--quick", "--judge"]):
        asked = command.parse_arguments()
    assert (Path(asked.judge), asked.targets, asked.connections) == (judge.RECORDED, list(judge.TARGETS), [32])
    assert (asked.rounds, asked.seconds) == (5, 2.0)


def test_a_void_run_is_not_recorded(tmp_path: Path) -> None:
    void = Outcome(figures=measured(0.3).figures, void=["rows are missing"])
    recorded = tmp_path / "cpu.json"
    with (
        mock.patch.object(sys, "argv", ["infra/bench", "--record", str(recorded)]),
        mock.patch.object(command, "measure", return_value=void),
    ):
        assert command.main() == 1
    assert not recorded.exists()


@pytest.mark.parametrize(("text", "connections"), [("{}", 1), ("[]", 32), ("{", 32), ('{"json": null}', 32)])
def test_what_cannot_be_judged_is_an_error(text: str, connections: int, tmp_path: Path) -> None:
    recorded = tmp_path / "cpu.json"
    recorded.write_text(text)
    cells = [Cell(**cell) for cell in measured(0.3, connections).figures["cells"]]
    with pytest.raises(BenchError):
        judge.find_growth(recorded, cells)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_answer_counts_when_it_is_whole_however_it_arrives(load: Load, size: int) -> None:
    connection, transport = connect(load)
    whole = b"".join(stream_answer())
    for start in range(0, len(whole), size):
        assert load.answers == 0
        connection.data_received(whole[start : start + size])
    assert (load.answers, load.failures) == (1, 0)
    assert transport.written == [b"first", b"second"]


def test_a_stream_without_done_is_a_failure(load: Load) -> None:
    connection, _ = connect(load)
    whole = b"".join(stream_answer())
    cut = re.sub(rb"[0-9a-f]+\r\ndata: \[DONE\]\n\n\r\n", b"", whole)
    assert cut != whole
    connection.data_received(cut)
    assert (load.answers, load.failures) == (0, 1)
    assert "without [DONE]" in load.first_failure


def test_a_refusal_and_a_lost_connection_are_failures(load: Load) -> None:
    connection, _ = connect(load)
    connection.data_received(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno")
    assert load.first_failure == "HTTP/1.1 503 Service Unavailable no"
    connection.connection_lost(None)
    assert (load.answers, load.failures, load.open) == (0, 2, 0)


def test_when_the_load_stops_what_is_open_is_read_to_its_end(load: Load) -> None:
    connection, transport = connect(load)
    *start, end = stream_answer()
    connection.data_received(b"".join(start))
    load.is_stopping = True
    assert not transport.is_closed
    connection.data_received(end)
    assert load.answers == 1
    assert transport.is_closed
    connection.connection_lost(None)
    assert (load.failures, load.is_drained.is_set()) == (0, True)


def test_streams_have_twenty_tokens_and_prompts_the_length_that_was_asked_for() -> None:
    assert b"".join(stream_answer()).count(b'"content":" river"') == TOKENS
    short, long = (request_body("m", is_streamed=False, kilobytes=size) for size in (0, 1024))
    assert len(long) - len(short) == 1024 * 1024


def test_cpu_time_is_that_of_a_process_and_its_children() -> None:
    before = read_cpu_seconds({"self": os.getpid()})["self"]
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    assert read_cpu_seconds({"self": os.getpid()})["self"] - before > 0.02


def test_a_process_that_has_ended_is_named() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(ProcessLookupError, match=rf"clerk \(process {ended.pid}\) has ended"):
        read_cpu_seconds({"self": os.getpid(), "clerk": ended.pid})
    with pytest.raises(ProcessLookupError, match=f"process {ended.pid} has ended"):
        read_memory_bytes(ended.pid)


@pytest.mark.parametrize(
    "words",
    [
        ["--hold", "5", "--embedded"],
        ["--keys", "5", "--svg", "x"],
        ["--spool", "--embedded"],
        ["--hold", "5", "--soak", "1"],
        ["--body", "0"],
    ],
)
def test_what_cannot_be_measured_together_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(sys, "argv", ["infra/bench", *words]), pytest.raises(SystemExit) as ended:
        command.parse_arguments()
    assert ended.value.code == 2
    assert "infra/bench: error:" in capsys.readouterr().err


def test_more_streams_than_files_allow_are_refused_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    most = hold.find_most_streams()
    with (
        mock.patch.object(sys, "argv", ["infra/bench", "--hold", str(most + 1)]),
        mock.patch.object(hold, "open_session", side_effect=AssertionError("nothing is started")),
    ):
        assert command.main() == 1
    assert f"{most:,} streams" in capsys.readouterr().err


def test_the_clients_are_measured_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(command.__file__).parents[1]))  # as infra/bench has it
    outcome = clients.compare_clients(Namespace(rounds=1, connections=[2], seconds=0.05), tmp_path)
    taken = [outcome.figures[f"{kind}_2_{name}_cpu_us"] for kind in ("json", "stream") for name in clients.CLIENTS]
    assert all(microseconds > 0 for (microseconds,) in taken)

"""The figures of the process are those that prometheus_client would give, without a list of the open files."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from meterhouse.telemetry import process_figures
from meterhouse.telemetry.process_figures import ProcessFigures

OPENED = 50
FILES = Path("/proc/self/fd")


@pytest.fixture
def opened() -> Iterator[None]:
    """So many more files are open."""
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(OPENED)]
    yield
    for file in files:
        os.close(file)


def read(collector: ProcessFigures | ProcessCollector) -> dict[str, tuple[str, str, float]]:
    return {
        sample.name: (family.type, family.documentation, sample.value)
        for family in collector.collect()
        for sample in family.samples
    }


def open_files(figures: ProcessFigures) -> float:
    return read(figures)["meterhouse_process_open_fds"][2]


def test_they_are_those_of_the_library() -> None:
    own, theirs = read(ProcessFigures()), read(ProcessCollector("meterhouse", registry=CollectorRegistry()))
    assert own.keys() == theirs.keys()
    for name, (kind, text, value) in theirs.items():
        assert own[name][:2] == (kind, text)
        # The files that are open while they are counted are one more for who lists them.
        assert own[name][2] == pytest.approx(value, rel=0.02, abs=2), name


@pytest.mark.usefixtures("opened")
def test_open_files_are_counted_where_the_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[Path] = []
    iterdir = Path.iterdir

    def count(folder: Path) -> Iterator[Path]:
        listings.append(folder)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", count)
    figures = ProcessFigures()
    assert open_files(figures) > OPENED
    assert len(listings) == (0 if FILES.stat().st_size else 1)


def test_open_files_are_listed_now_and_then_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def stat_as_before(path: Path, *, follow_symlinks: bool = True) -> object:
        return SimpleNamespace(st_size=0) if path.name == "fd" else stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat_as_before)
    figures = ProcessFigures()
    before = open_files(figures)
    assert before == pytest.approx(len(list(FILES.iterdir())), abs=2)
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(OPENED)]
    try:
        assert open_files(figures) == before
        monkeypatch.setattr(process_figures, "LIST_SECONDS", 0.0)
        assert open_files(figures) >= before + OPENED - 2
    finally:
        for file in files:
            os.close(file)


def test_elsewhere_than_on_linux_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_figures, "_PROC", tmp_path)
    assert list(ProcessFigures().collect()) == []


def test_a_kernel_that_does_not_say_when_it_started_keeps_nobody_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "self").symlink_to("/proc/self")
    monkeypatch.setattr(process_figures, "_PROC", tmp_path)
    started = "meterhouse_process_start_time_seconds"
    assert read(ProcessFigures())[started][2] == 0

"""Taking over the journals of a host that is gone, and replaying them, as an operator does it."""

import asyncio
from pathlib import Path

import pytest

from cli import books
from cli.command import complaint, good
from fakes.gateway import Gateway
from fakes.journals import abandon, intent, make_record, new_journal, terminal
from meterhouse.ids import new_request_id
from meterhouse.ledger.record import VERSION


def die_after(folder: Path, *payloads: object) -> None:
    """Leave the journal of a process that died."""

    async def run() -> None:
        journal = new_journal(folder)
        await journal.open()
        for payload in payloads:
            journal.append(payload)
        await abandon(journal)

    folder.mkdir(exist_ok=True)
    asyncio.run(run())


def lost_host(folder: Path, count: int = 3) -> None:
    records = [make_record() for _ in range(count)]
    die_after(
        folder, *(part for r in records for part in (intent(r.request_id), terminal(r))), intent(new_request_id())
    )
    return [record.request_id for record in records]


def outcomes(folder: Path) -> list[str]:
    exported = good(folder, "ledger", "export", "--data", "d")
    return sorted(part.split('"')[0] for part in exported.split('"outcome":"')[1:])


def test_a_lost_host_is_adopted_once_beside_a_running_server(tmp_path: Path) -> None:
    books.make(tmp_path)
    host = tmp_path / "host"
    lost_host(host)
    with Gateway(tmp_path / "d"):
        first = good(tmp_path, "ledger", "adopt", "host", "--data", "d")
        assert good(tmp_path, "ledger", "adopt", "d/journals", "--data", "d").startswith(
            "0 journals adopted: 0 records"
        )
    assert first.startswith("1 journals adopted: 4 records were new to the database, 1 attempts were lost")
    assert good(tmp_path, "ledger", "adopt", "host", "--data", "d").startswith("0 journals adopted: 0 records")
    assert {path.suffix for path in host.iterdir()} == {".shipped"}
    assert outcomes(tmp_path) == ["completed"] * 3 + ["worker_lost"]


def test_a_restored_database_gets_back_what_journals_still_hold(tmp_path: Path) -> None:
    host = tmp_path / "host"
    lost_host(host)
    books.make(tmp_path)
    good(tmp_path, "ledger", "adopt", "host", "--data", "d")
    (tmp_path / "d").rename(tmp_path / "gone")
    books.make(tmp_path)
    assert good(tmp_path, "ledger", "replay", "host", "--data", "d").startswith(
        "1 journals replayed: 4 records were new"
    )
    assert good(tmp_path, "ledger", "replay", "host", "--data", "d").startswith(
        "1 journals replayed: 0 records were new"
    )
    assert outcomes(tmp_path) == ["completed"] * 3 + ["worker_lost"]
    assert "agrees" in good(tmp_path, "ledger", "rebuild", "--check", "--data", "d")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    books.make(tmp_path)
    host = tmp_path / "host"
    lost_host(host, 5)
    segment = max(host.iterdir(), key=lambda path: path.read_bytes().rstrip(b"\0"))
    data = bytearray(segment.read_bytes())
    end = len(bytes(data).rstrip(b"\0"))
    data[end // 2] ^= 0xFF
    segment.write_bytes(data)
    out = good(tmp_path, "ledger", "adopt", "host", "--data", "d")
    assert f"host/{segment.stem}" in out
    assert "unreadable from byte" in out
    assert "1 places could not be read" in out


@pytest.mark.parametrize("how", ["adopt", "replay"])
def test_what_is_no_folder_of_journals_is_one_line(tmp_path: Path, how: str) -> None:
    books.make(tmp_path)
    assert "There is no folder none" in complaint(tmp_path, "ledger", how, "none", "--data", "d")
    assert "no folder of journals" in complaint(tmp_path, "ledger", how, "d/pepper", "--data", "d")
    (tmp_path / "d" / "journals").mkdir()
    assert "Did you mean d/journals?" in complaint(tmp_path, "ledger", how, "d", "--data", "d")
    assert good(tmp_path, "ledger", how, "d/journals", "--data", "d").startswith("0 journals")


@pytest.mark.parametrize("how", ["adopt", "replay"])
def test_a_journal_of_a_newer_version_is_one_line(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    books.make(tmp_path)
    monkeypatch.setattr("meterhouse.ledger.record._PREFIX", bytes([VERSION + 1]))
    lost_host(tmp_path / "host")
    line = complaint(tmp_path, "ledger", how, "host", "--data", "d")
    assert "newer Meterhouse" in line
    assert "host/" in line

"""What was refused just before a process stops is counted all the same."""

import sqlite3
from pathlib import Path

from fakes.gateway import Gateway


def test_a_refusal_of_the_last_second_is_written_down(tmp_path: Path) -> None:
    with Gateway(tmp_path / "data") as gateway:
        assert gateway.chat("nobody-serves-this", key=gateway.new_key())[0] == 404
    with sqlite3.connect(tmp_path / "data" / "ledger.db") as database:
        found = database.execute("SELECT error_code, requests FROM refusal_hour").fetchall()
    database.close()
    assert found == [("model_not_found", 1)]

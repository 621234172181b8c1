"""A process that only writes a journal and says on stdout what was acknowledged, to be killed.

``python -m fakes.journal_process FOLDER os|power``: eight writers each begin a request (INTENT), checkpoint it, end it
(TERMINAL), wait for the barrier, and print its id. Not here: the killing.
"""

import asyncio
import os
import sys
from pathlib import Path

from fakes.files import FaultyFiles
from fakes.journals import checkpoint, intent, make_record, new_journal, terminal
from meterhouse.errors import JournalDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy


async def main(folder: Path, kind: str) -> None:
    files = FaultyFiles(loses_power=True) if kind == "power" else OsFiles()
    journal = new_journal(folder, files=files, policy=JournalPolicy(segment_bytes=65_536))
    await journal.open()

    async def write() -> None:
        while True:
            request_id = new_request_id()
            try:
                journal.append(intent(request_id), is_admission=True)
            except JournalDown:
                await asyncio.sleep(0.001)  # the disk makes segments more slowly than they are filled
                continue
            await asyncio.sleep(0)
            journal.append(checkpoint(request_id, 5))
            await asyncio.sleep(0)
            await journal.barrier(journal.append_end(terminal(make_record(request_id))))
            os.write(1, request_id.encode() + b"\n")

    await asyncio.gather(*(write() for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

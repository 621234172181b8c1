"""A process that draws from an allowance file until it is killed, and says what it was granted.

Usage: python allowance_process.py FILE REPORT TOTAL SEED. Each grant is appended to REPORT after it was given.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from meterhouse.limits.allowance import AllowanceFile


class _Clock:
    def now_ms(self) -> int:
        return 1_767_225_600_000


class _Log:
    def error(self, event: str, **fields: object) -> None:
        os.write(2, f"{event} {fields}\n".encode())


async def main() -> None:
    path, report, total, seed = sys.argv[1:]
    chance = random.Random(int(seed))
    allowance = AllowanceFile(Path(path), clock=_Clock(), log=_Log(), lock_wait_seconds=30)
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        slot = chance.choice(["a", "b"])
        granted = await allowance.draw(slot, 0, 10**15, int(total), chance.randrange(1, 60))
        if granted:
            os.write(descriptor, f"{slot} {granted}\n".encode())


if __name__ == "__main__":
    asyncio.run(main())

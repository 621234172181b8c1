"""Links to real servers, and scripts to send over them: what the tests of the link share."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fakes.journals import EventLog
from meterhouse.limits.link import LinkPolicy, RedisLink

PATIENT = LinkPolicy(timeout_seconds=10, connect_timeout_seconds=10, probe_seconds=0.02)
"""For what is not about time: the machine may be busy."""
QUICK = LinkPolicy(timeout_seconds=0.1, connect_timeout_seconds=0.5, probe_seconds=0.02)


@dataclass(frozen=True)
class Script:
    name: str
    text: str

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode()).hexdigest()


ECHO = Script("echo", "return {KEYS[1], ARGV[1]}")
PUSH = Script("push", "return redis.call('RPUSH', KEYS[1], ARGV[1])")
PUSH_TOO = Script("push too", "return redis.call('RPUSH', KEYS[1], 'too ' .. ARGV[1])")
BROKEN = Script("broken", "return redis.call('INCR', KEYS[1], 'nonsense')")


@asynccontextmanager
async def linked(url: str, policy: LinkPolicy = PATIENT) -> AsyncIterator[tuple[RedisLink, EventLog]]:
    log = EventLog()
    link = RedisLink(url, policy, log)
    await link.open()
    try:
        yield link, log
    finally:
        await link.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.005)

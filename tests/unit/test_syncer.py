import asyncio
import errno
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fakes.files import AskedFiles
from fakes.journals import EventLog, new_journal, opened_journal, read_all, until
from meterhouse.ledger import journal as journal_module
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.syncer import start_syncer

WAYS = {"kernel": OsFiles(), "thread": AskedFiles()}
"""Who syncs, by the file layer that it is chosen for."""
NOT_OPEN = 1 << 30
"""A descriptor that no process has."""
TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def descriptors(tmp_path):
    """Three files with something to sync, one after the other."""
    opened = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(3)]
    for descriptor in opened:
        os.pwrite(descriptor, b"x" * 10_000, 0)
    yield opened
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture
def no_file():
    """A descriptor of something that cannot be synced."""
    ends = os.pipe()
    yield ends[0]
    for end in ends:
        os.close(end)


@asynccontextmanager
async def running_syncer(way):
    """Give a function that syncs and returns what went wrong."""
    answers = asyncio.Queue()
    syncer = await start_syncer(WAYS[way], answers.put_nowait)
    assert syncer.name.split()[0] == way

    async def sync(*descriptors):
        syncer.sync(descriptors)
        assert answers.empty(), "the answer came from within the call"
        return await asyncio.wait_for(answers.get(), 30)

    yield sync
    assert await syncer.stop()
    assert answers.empty(), "there was more than one answer to a job"


async def test_each_job_has_one_answer(way, descriptors):
    async with running_syncer(way) as sync:
        for _ in range(20):
            assert await sync(descriptors[0]) is None
        assert await sync(*descriptors) is None
        assert await sync() is None


async def test_a_job_fails_as_the_first_of_its_files_does_and_the_next_one_is_not_spoilt(way, descriptors, no_file):
    async with running_syncer(way) as sync:
        for order, code in (((no_file, NOT_OPEN), errno.EINVAL), ((NOT_OPEN, no_file), errno.EBADF)):
            assert (await sync(descriptors[0], *order)).errno == code
            assert (await sync(*order, descriptors[0])).errno == code
            assert await sync(*descriptors) is None


async def test_it_ends_after_the_job_that_runs(way, descriptors):
    answers = []
    syncer = await start_syncer(WAYS[way], answers.append)
    syncer.sync(descriptors)
    assert await syncer.stop()
    await asyncio.sleep(0)  # a thread's answer is on its way
    assert answers == [None]


def list_held():
    """Return what this process holds of the system: descriptors, and the memory of queues."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sorted(Path("/proc/self/fd").iterdir()), [line for line in maps if "[aio]" in line]


async def test_it_leaves_nothing_open(way, descriptors):
    async with running_syncer(way) as sync:
        await sync(*descriptors)
    before = list_held()
    for _ in range(3):
        async with running_syncer(way) as sync:
            await sync(*descriptors)
    assert list_held() == before


# --- a journal over each of them


async def test_a_journal_says_who_syncs_it_and_counts_what_was_synced(way, tmp_path):
    log = EventLog()
    async with opened_journal(tmp_path, files=WAYS[way], log=log) as journal:
        assert log.fields_of("journal.opened")[0]["synced_by"].split()[0] == way
        for number in range(20):
            await journal.barrier(journal.append(b"%d" % number))
        assert journal.figures.syncs == 20
    assert [payload for _, payload in read_all(tmp_path)[0]] == [b"%d" % number for number in range(20)]


async def test_a_journal_that_is_not_synced_says_so(tmp_path):
    log = EventLog()
    async with opened_journal(tmp_path, policy=JournalPolicy(durability="write", segment_bytes=8_192), log=log):
        assert log.fields_of("journal.opened")[0]["synced_by"] == "nobody"


async def test_many_barriers_over_many_segments_are_all_passed(way, tmp_path):
    async def write(number):
        await asyncio.sleep(number % 7 * 0.001)
        await until(lambda: journal.is_writable)
        await journal.barrier(journal.append(b"%500d" % number))

    async with opened_journal(tmp_path, files=WAYS[way]) as journal:
        await asyncio.gather(*(write(number) for number in range(100)))
        assert journal.figures.sync_failures == 0
    assert len(read_all(tmp_path)[0]) == 100


async def test_a_sync_that_the_kernel_refuses_is_one_that_failed(tmp_path, no_file):
    """The journal rewrites what it covered, as after any other failure, and takes nobody's word for it."""
    log = EventLog()
    journal = new_journal(tmp_path, log=log)
    await journal.open()
    await until(lambda: journal.figures.spool_bytes == 2 * 8_192)
    submit = journal._syncer._queue.submit
    journal._syncer._queue.submit = lambda descriptor: [
        setattr(journal._syncer._queue, "submit", submit),
        submit(no_file),
    ]
    await journal.barrier(journal.append(b"x"))
    assert [fields["error"] for fields in log.fields_of("journal.sync_failed")] == [
        "[Errno 22] io_submit: Invalid argument"
    ]
    assert journal.figures.syncs == 2
    await journal.close()
    assert read_all(tmp_path)[0] == [(1, b"x")]


class FirstFiles(OsFiles):
    """Has room for one file, until told that there is more."""

    has_room = True

    def preallocate(self, descriptor, size_bytes):
        if not self.has_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().preallocate(descriptor, size_bytes)
        self.has_room = False


async def test_a_reserve_that_fails_while_the_syncer_starts_is_tried_again(tmp_path, monkeypatch):
    files = FirstFiles()

    async def start_late(*arguments):
        await until(lambda: journal._supply.failure is not None)
        return await start_syncer(*arguments)

    monkeypatch.setattr(journal_module, "start_syncer", start_late)
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    assert not journal.is_writable
    files.has_room = True
    await until(lambda: journal.is_writable)
    await journal.close()


# --- where the kernel's queue is forbidden

SANDBOX = """
import asyncio, ctypes, struct, sys
from pathlib import Path
from fakes.journals import EventLog, opened_journal
from meterhouse.ledger import aio
import os

def forbid(number):
    \"\"\"Let a system call fail with EPERM from now on, as a sandbox does: seccomp(2), one filter more.\"\"\"
    libc = ctypes.CDLL(None, use_errno=True)
    program = b"".join(struct.pack("<HBBI", *line) for line in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)
    ))
    text = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", 4, ctypes.addressof(text))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP

async def open_one(name):
    log = EventLog()
    async with opened_journal(Path(sys.argv[1]) / name, log=log) as journal:
        await journal.barrier(journal.append(b"x"))
    print(log.fields_of("journal.opened")[0]["synced_by"])

numbers = aio._NUMBERS[os.uname().machine]
for name in ("submit", "setup"):
    forbid(getattr(numbers, name))
    asyncio.run(open_one(name))
"""


def test_a_sandbox_that_forbids_the_kernels_queue_leaves_it_to_a_thread(tmp_path):
    command = [sys.executable, "-c", SANDBOX, str(tmp_path)]
    ended = subprocess.run(command, check=False, cwd=TESTS, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines() == [
        "thread (io_submit: Operation not permitted)",
        "thread (io_setup: Operation not permitted)",
    ], ended.stderr
    for name in ("submit", "setup"):
        assert read_all(tmp_path / name)[0] == [(1, b"x")]

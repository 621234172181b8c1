"""A file system of its own, by the kernel's FUSE protocol, whose syncs fail or do not end when told so.

What ``fakes.files`` cannot break: a sync that a worker of the kernel makes. A process of its own
(``python -m fakes.small_disk FOLDER``) serves one folder of files that it has in memory, and takes orders from its
standard input, a word a line; when that ends, so do the process and every operation on its files. A file whose sync is
held cannot be written: whoever tries hangs with it. Structures and numbers are those of ``linux/fuse.h``. It needs
/dev/fuse and the right to mount.
"""

import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN = struct.Struct("<IIQQ")
_IN_BYTES = 40
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_REQUEST_BYTES = 1 << 20
_WRITE_BYTES = 1 << 17
_ROOT = 1
_FSYNC = 20
_NO_ANSWER = (2, 36, 42)
"""FORGET, INTERRUPT, BATCH_FORGET."""
_SIZE_IS_SET = 8
_DETACH = 2
TESTS = Path(__file__).resolve().parent.parent


class SmallDisk:
    """The files of one folder."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._names: dict[bytes, int] = {}
        self._data: dict[int, bytearray] = {}
        self._next = _ROOT
        self._is_holding = False
        self._held: list[int] = []
        self._failing = 0
        self._work = {
            1: self._look_up,
            3: lambda node, _: struct.pack("<QII", 0, 0, 0) + self._describe(node),
            4: self._set_attributes,
            10: self._unlink,
            12: self._rename,
            15: self._read,
            16: self._write,
            26: lambda *_: struct.pack("<IIIIHHIIHH28x", 7, 31, 0, 0, 12, 9, _WRITE_BYTES, 1, 0, 0),
            28: self._list,
            35: self._create,
        }

    def obey(self, order: str) -> None:
        """Take an order: ``hold`` syncs from now on, ``release`` them, or ``fail`` so many."""
        word, _, number = order.partition(" ")
        self._is_holding = word == "hold"
        if word == "fail":
            self._failing = int(number)
        held, self._held = self._held, []
        for unique in held:
            self._answer(unique, 0)

    def serve(self) -> None:
        """Serve one operation of the kernel's.

        Raises:
            OSError: The file system is gone (ENODEV).
        """
        request = os.read(self._device, _REQUEST_BYTES)
        _, operation, unique, node = _IN.unpack_from(request)
        if operation == _FSYNC:
            self._sync(unique)
        elif operation not in _NO_ANSWER:
            work = self._work.get(operation)
            try:
                answer = work(node, request[_IN_BYTES:]) if work else None
            except OSError as error:
                self._answer(unique, -(error.errno or errno.EIO))
            else:
                self._answer(unique, -errno.ENOSYS if answer is None else 0, answer or b"")

    def _answer(self, unique: int, code: int, answer: bytes = b"") -> None:
        os.write(self._device, _OUT.pack(_OUT.size + len(answer), code, unique) + answer)

    def _sync(self, unique: int) -> None:
        if self._is_holding:
            self._held.append(unique)
            print("held", flush=True)
            return
        fails = self._failing > 0
        self._failing -= fails
        self._answer(unique, -errno.EIO if fails else 0)

    def _describe(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o700 if node == _ROOT else stat.S_IFREG | 0o600
        return _ATTRIBUTES.pack(node, len(self._data.get(node, b"")), 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _enter(self, node: int) -> bytes:
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._describe(node)

    def _look_up(self, _: int, body: bytes) -> bytes:
        return self._enter(self._find(body.rstrip(b"\0")))

    def _find(self, name: bytes) -> int:
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, name)
        return self._names[name]

    def _create(self, _: int, body: bytes) -> bytes:
        self._next += 1
        self._names[body[16:].rstrip(b"\0")] = self._next
        self._data[self._next] = bytearray()
        return self._enter(self._next) + bytes(16)

    def _set_attributes(self, node: int, body: bytes) -> bytes:
        valid, size = struct.unpack_from("<I12xQ", body)
        if valid & _SIZE_IS_SET:
            data = self._data[node]
            del data[size:]
            data.extend(bytes(size - len(data)))
        return struct.pack("<QII", 0, 0, 0) + self._describe(node)

    def _read(self, node: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<8xQI", body)
        return bytes(self._data[node][offset : offset + size])

    def _write(self, node: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<8xQI", body)
        data = self._data[node]
        data.extend(bytes(max(0, offset + size - len(data))))
        data[offset : offset + size] = body[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def _rename(self, _: int, body: bytes) -> bytes:
        old, new, _ = body[8:].split(b"\0")
        self._names[new] = self._names.pop(old)
        return b""

    def _unlink(self, _: int, body: bytes) -> bytes:
        del self._names[body.rstrip(b"\0")]
        return b""

    def _list(self, _: int, body: bytes) -> bytes:
        (offset,) = struct.unpack_from("<8xQ", body)
        found = b""
        for at, (name, node) in enumerate(sorted(self._names.items())[offset:], offset + 1):
            entry = struct.pack("<QQII", node, at, len(name), stat.S_IFREG >> 12) + name
            found += entry + bytes(-len(entry) % 8)
        return found


def main(folder: bytes) -> None:
    """Mount it, and serve until standard input ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"small", folder, b"fuse", 0, options.encode()) != 0:
        sys.exit(f"this process may not mount: {os.strerror(ctypes.get_errno())}")
    disk = SmallDisk(device)
    print("mounted", flush=True)
    waiting = select.poll()
    waiting.register(device, select.POLLIN)
    waiting.register(0, select.POLLIN)
    try:
        while True:
            ready = {descriptor for descriptor, _ in waiting.poll()}
            if 0 in ready:
                order = sys.stdin.readline()
                if not order:
                    return
                disk.obey(order.strip())
                print("done", flush=True)
            if device in ready:
                disk.serve()
    finally:
        libc.umount2(folder, _DETACH)


class Orders:
    """Tells the process of a small disk what to break; every method returns when that is so."""

    def __init__(self, serving: "subprocess.Popen[str]") -> None:
        self._serving = serving

    def hold_syncs(self) -> None:
        """From now on, a sync does not end."""
        self._tell("hold")

    def wait_until_held(self) -> None:
        """Return when a sync is being held."""
        self.await_line("held")

    def release_syncs(self) -> None:
        """Let every sync end that is held, and hold no more."""
        self._tell("release")

    def fail_syncs(self, times: int) -> None:
        """The next syncs fail with EIO."""
        self._tell(f"fail {times}")

    def _tell(self, order: str) -> None:
        assert self._serving.stdin is not None
        self._serving.stdin.write(order + "\n")
        self._serving.stdin.flush()
        self.await_line("done")

    def await_line(self, wanted: str) -> None:
        """Read what it says up to a line."""
        assert self._serving.stdout is not None
        while (line := self._serving.stdout.readline().strip()) != wanted:
            assert line, "the small disk is gone"


@contextmanager
def mounted_disk(folder: Path) -> Iterator[Orders]:
    """Mount an empty one on a folder, and give what breaks it."""
    command = [sys.executable, "-m", "fakes.small_disk", str(folder)]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
        orders = Orders(serving)
        orders.await_line("mounted")
        yield orders  # afterwards its input is closed, and its end awaited


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]))

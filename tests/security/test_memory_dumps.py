"""Memory and process lists: no core dump of a process that holds keys, and no secret among its arguments."""

import os
import subprocess
import sys
from pathlib import Path

from fakes.daemon import free_port, wait_until
from fakes.gateway import provider_environment

CANARY = "sk-upstream-process-list-canary-1"
LOOK = """
import ctypes, os, resource
from meterhouse.process import forbid_dumps
if os.geteuid() == 0:
    os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
before = os.stat("/proc/self/mem").st_uid
done = forbid_dumps()
print(before == os.geteuid(), done, ctypes.CDLL(None).prctl(3), *resource.getrlimit(resource.RLIMIT_CORE))
print(os.stat("/proc/self/mem").st_uid)
"""


def test_the_kernel_is_told_before_a_secret_is_read(tmp_path: Path) -> None:
    environment = provider_environment("fake", "http://127.0.0.1:9/v1", METERHOUSE_PROVIDER_FAKE_API_KEY=CANARY)
    command = [str(Path(sys.executable).parent / "meterhouse"), "dev", "--port", str(free_port())]
    command += ["--data", str(tmp_path / "data"), "--env-file", "/dev/null"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as process:
        try:
            place = Path("/proc") / str(process.pid)
            pepper = tmp_path / "data" / "pepper"
            wait_until(pepper.exists, "the pepper, which is made when secrets are read first")
            lines = (place / "limits").read_text().splitlines()
            (line,) = (line for line in lines if line.startswith("Max core file size"))
            assert line.split()[4:6] == ["0", "0"], line
            arguments = (place / "cmdline").read_bytes().decode()
            assert CANARY not in arguments
            assert pepper.read_text().strip() not in arguments
        finally:
            process.kill()


def test_another_process_of_the_same_user_cannot_read_the_memory() -> None:
    """What is not dumpable belongs to the superuser in /proc, so that an unprivileged twin cannot open it."""
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "True", "0", "0", "0", "0"]

"""Memory and process lists: no core dump of a process that holds keys, and no secret among its arguments."""

import subprocess
import sys
from pathlib import Path

from fakes.gateway import GatewayProcess, provider_environment

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
    more = provider_environment("fake", "http://127.0.0.1:9/v1", METERHOUSE_PROVIDER_FAKE_API_KEY=CANARY)
    with GatewayProcess(tmp_path / "data", more) as gateway:
        assert gateway.process is not None
        place = Path("/proc") / str(gateway.process.pid)
        (line,) = (
            line for line in (place / "limits").read_text().splitlines() if line.startswith("Max core file size")
        )
        assert line.split()[4:6] == ["0", "0"], line
        arguments = (place / "cmdline").read_bytes().decode()
        for secret in (CANARY, gateway.key, gateway.admin_key, (tmp_path / "data" / "pepper").read_text().strip()):
            assert secret not in arguments
        assert gateway.request("GET", "/health/live")[0] == 200


def test_another_process_of_the_same_user_cannot_read_the_memory() -> None:
    """What is not dumpable belongs to the superuser in /proc, so that an unprivileged twin cannot open it."""
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "True", "0", "0", "0", "0"]

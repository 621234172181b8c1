"""A real PgBouncer in front of a real PostgreSQL, on a free port of 127.0.0.1.

Not here: whether anything works behind it (``meterhouse check`` says that it does not).
"""

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from fakes.daemon import Daemon, find_program, free_port
from fakes.postgres_server import OWN_USER

SETTINGS = """\
[databases]
{name} = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
{more}
"""


class Pooler:
    """``with Pooler(tmp_path, database_url) as pooler:``; whoever connects is let in.

    Its settings lie in a folder of their own, as PostgreSQL's do, because it refuses to run as root too.

    Args:
        folder: where its log lies.
        database_url: what it stands in front of.
        more: further lines of its settings.
    """

    def __init__(self, folder: Path, database_url: str, more: str = "") -> None:
        parts = urlsplit(database_url)
        name = parts.path.removeprefix("/")
        self._port = free_port()
        self.url = f"postgresql://{parts.username}@127.0.0.1:{self._port}/{name}"
        self._home = Path(tempfile.mkdtemp(prefix="mh-pooler-"))
        self._home.chmod(0o755)
        settings = self._home / "pgbouncer.ini"
        front = {"name": name, "own_port": self._port, "more": more}
        back = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
        settings.write_text(SETTINGS.format(**front, **back))
        self._daemon = Daemon(
            [find_program("pgbouncer", "pgbouncer"), str(settings)],
            folder / "pgbouncer.log",
            user=OWN_USER if os.geteuid() == 0 else None,
            doomed=(self._home,),
        )

    def __enter__(self) -> Self:
        self._daemon.start(self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.kill()
        shutil.rmtree(self._home)

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port)).close()
        except OSError:
            return False
        return True

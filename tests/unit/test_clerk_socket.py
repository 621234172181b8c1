import socket
import stat

import pytest

from meterhouse.clerk import MOST_PATH_BYTES, SOCKET, open_clerk_socket
from meterhouse.settings import SettingsError


def test_it_takes_connections_of_this_user_alone_before_anybody_serves(tmp_path):
    with open_clerk_socket(tmp_path) as clerk_socket:
        assert clerk_socket.path.parent == tmp_path
        assert stat.S_IMODE(clerk_socket.path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as worker:
            worker.connect(str(clerk_socket.path))
    assert clerk_socket.listener.fileno() == -1


def test_a_folder_whose_path_is_too_long_is_refused_in_words(tmp_path):
    room_bytes = MOST_PATH_BYTES - len(f"{tmp_path}//{SOCKET}")
    just = tmp_path / ("s" * room_bytes)
    long = tmp_path / ("s" * (room_bytes + 1))
    for folder in (just, long):
        folder.mkdir()
    with open_clerk_socket(just):
        pass
    with pytest.raises(SettingsError, match="107 bytes, this one has 108"), open_clerk_socket(long):
        pass

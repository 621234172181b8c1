"""What the URL says about TLS holds."""

import shutil

import pytest
import sqlalchemy as sa

from fakes.certificates import write_certificates
from fakes.servers import PostgresServer, wait_until
from meterhouse.db.engine import close, open_engine, reading
from meterhouse.errors import StoreDown


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server with a certificate, and the path of the authority that signed it."""
    folder = tmp_path_factory.mktemp("tls")
    with PostgresServer(folder) as server:
        data = server.socket_folder / "data"
        for path in write_certificates(folder):
            shutil.copy(path, data)
            shutil.chown(data / path.name, data.owner(), data.group())
            (data / path.name).chmod(0o600)
        for setting in ("ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'", "ssl = on"):
            server.execute(f"ALTER SYSTEM SET {setting}")
        server.execute("SELECT pg_reload_conf()")
        wait_until(lambda: server.query("SHOW ssl") == [("on",)], "TLS")
        yield server, folder / "ca.pem"


async def is_encrypted(url):
    engine = open_engine(url)
    try:
        async with reading(engine) as connection:
            return await connection.scalar(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    finally:
        await close(engine)


@pytest.mark.parametrize(("mode", "expected"), [("disable", False), ("require", True)])
async def test_the_mode_decides_whether_it_is_encrypted(tls, mode, expected):
    assert await is_encrypted(f"{tls[0].url_of()}?sslmode={mode}") is expected


async def test_a_certificate_is_checked_against_its_authority(tls):
    server, authority = tls
    url = f"{server.url_of()}?sslmode=verify-full&sslrootcert="
    assert await is_encrypted(f"{url}{authority}") is True


async def test_a_certificate_of_another_authority_is_store_down(tls, tmp_path):
    write_certificates(tmp_path)
    with pytest.raises(StoreDown) as caught:
        await is_encrypted(f"{tls[0].url_of()}?sslmode=verify-full&sslrootcert={tmp_path / 'ca.pem'}")
    assert "certificate" in caught.value.detail.lower()

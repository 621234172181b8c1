"""The handshake, the host, and the port without TLS."""

import socket
import ssl
from pathlib import Path

import pytest

from edge.wire import ask, connect, error_of, read_answer
from fakes.fleet import ServeProcess
from fakes.nginx_server import NginxServer

V2, V3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
MODELS = "GET /health/live HTTP/1.1\nhost: localhost\n"


@pytest.mark.parametrize("version", [V2, V3])
def test_both_versions_with_ciphers_of_today(edge: NginxServer, version: ssl.TLSVersion) -> None:
    connection = connect(edge, minimum_version=version, maximum_version=version)
    name, _, bits = connection.cipher() or ("", "", 0)
    assert bits >= 128
    assert name.startswith(("ECDHE-", "TLS_"))
    assert ask(connection, MODELS)[0] == 200


def test_an_old_version_is_refused(edge: NginxServer) -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises(ssl.SSLError):
        connect(edge, minimum_version=ssl.TLSVersion.TLSv1_1, maximum_version=ssl.TLSVersion.TLSv1_1)


def test_a_cipher_without_forward_secrecy_is_refused(edge: NginxServer) -> None:
    context = edge.trust()
    context.maximum_version = V2
    context.set_ciphers("AES128-SHA:AES256-SHA:AES128-GCM-SHA256")
    with socket.create_connection(("127.0.0.1", edge.port), 10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("name", [None, "127.0.0.1", "other.example", "localhost.example"])
def test_a_handshake_for_another_name_is_refused(edge: NginxServer, name: str | None) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        connect(edge, name=name)


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1", "localhost.example", "localhost@other.example"])
def test_a_host_that_is_not_the_one_of_the_handshake(edge: NginxServer, host: str) -> None:
    status, headers, body = ask(connect(edge), f"GET /v1/models HTTP/1.1\nhost: {host}\n")
    assert status in {400, 421}
    assert error_of(body)["code"] == "invalid_request"
    assert headers["x-request-id"].startswith("req_")


def test_the_name_in_capitals_and_with_the_port_is_the_same(edge: NginxServer) -> None:
    assert ask(connect(edge), f"GET /health/live HTTP/1.1\nhost: LOCALHOST:{edge.port}\n")[0] == 200


def test_it_says_that_only_tls_is_to_be_used(edge: NginxServer, fleet: ServeProcess) -> None:
    for key in (fleet.key, "sk-mh-nobody"):
        status, headers, _ = edge.request("GET", "/v1/models", key=key)
        assert status in {200, 401}
        assert headers["strict-transport-security"] == "max-age=63072000"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["server"] == "nginx"
        assert headers["x-request-id"].startswith("req_")


def test_http_on_the_port_of_https(edge: NginxServer) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), 10) as plain:
        status, _, body = ask(plain, MODELS)
    assert status == 400
    assert "TLS" in error_of(body)["message"]


# --- the port without TLS


def plain(edge: NginxServer, text: str) -> tuple[int, dict[str, str], bytes]:
    return ask(socket.create_connection(("127.0.0.1", edge.plain_port), 10), text)


def test_a_known_host_is_sent_on_to_tls(edge: NginxServer) -> None:
    status, headers, _ = plain(edge, "POST /v1/chat/completions?a=b HTTP/1.1\nhost: localhost\n")
    assert (status, headers["location"]) == (308, f"{edge.url}/v1/chat/completions?a=b")


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1"])
def test_an_unknown_host_gets_no_answer(edge: NginxServer, host: str) -> None:
    assert plain(edge, f"GET / HTTP/1.1\nhost: {host}\n")[0] == 0


def test_the_challenge_of_a_certificate_authority_is_answered(edge: NginxServer) -> None:
    folder = Path(edge.values["ACME"]) / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text("token.thumbprint")
    status, _, body = plain(edge, "GET /.well-known/acme-challenge/token HTTP/1.1\nhost: localhost\n")
    assert (status, body) == (200, b"token.thumbprint")
    assert plain(edge, "GET /.well-known/acme-challenge/other HTTP/1.1\nhost: localhost\n")[0] == 404


def test_a_certificate_is_taken_up_by_a_reload(own_edge: NginxServer) -> None:
    def serial() -> str:
        with connect(own_edge) as connection:
            return str((connection.getpeercert() or {})["serialNumber"])

    before = serial()
    (own_edge.folder / "tls" / "server.pem").unlink()
    own_edge.make_certificate()
    own_edge.reload()
    assert serial() != before


def test_half_a_handshake_is_not_waited_for(tmp_path: Path, socket_path: Path) -> None:
    with (
        NginxServer(tmp_path / "nginx", socket=socket_path, values={"HEADER_TIMEOUT": "300ms"}) as edge,
        socket.create_connection(("127.0.0.1", edge.port), 10) as plain_connection,
    ):
        plain_connection.sendall(b"\x16\x03\x01")
        assert read_answer(plain_connection)[0] == 0

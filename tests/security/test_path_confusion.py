"""Path confusion (CVE-2026-48710, CVE-2026-49468, CVE-2026-48746): one address for who checks, another for who serves.

The administration is asked for in every spelling, directly and through nginx. It must be the page that is guarded, with
its guard, or none at all; and what the guard was, nothing in the request may choose: neither Host nor a header.
"""

import json

import pytest

from edge.wire import connect as connect_tls
from edge.wire import read_answer
from fakes.gateway import Gateway
from fakes.nginx_server import NginxServer
from security.raw import say

HOSTS = [
    *("localhost/health/live#@x", "localhost/#", "localhost?", "localhost:1/health/live", "a b", "x/../health", "[::1"),
    *("localhost\t", "localhost,evil.example", "evil.example", "@localhost", "localhost:99999999", "%2e", "-"),
]
TARGETS = [
    *(
        "//admin/keys",
        "/%2fadmin%2fkeys",
        "/admin%2fkeys",
        "/%61dmin/keys",
        "/admin/keys/",
        "/admin//keys",
        "/./admin/keys",
    ),
    *(
        "/health/live/../../admin/keys",
        "/health/%2e%2e/admin/keys",
        "/health/..%2fadmin/keys",
        "/health/..;/admin/keys",
    ),
    *("/admin;x=1/keys", "/admin/keys;x=1", "/admin/keys.", "/admin/keys%00", "/admin/keys%20", "/ADMIN/keys"),
    *("/admin/keys%0d%0ax:%20y", "/v1/../admin/keys", "/admin/keys?x=/health/live", "/admin/keys#/health/live"),
    *("http://localhost/admin/keys", "http://evil.example/admin/keys", "https://localhost/health/live/../admin/keys"),
    *("/%c0%af/admin/keys", "/%ff"),
]
METRICS = ["/metrics", "/metrics/", "/metrics/../metrics", "/%6detrics", "//metrics", "/metrics?x", "/v1/../metrics"]
"""Only nginx fences these: in the gateway they hold nothing of any tenant's."""
OVERRIDES = {
    "x-http-method-override": "GET",
    "x-http-method": "DELETE",
    "x-method-override": "PUT",
    "x-original-url": "/admin/keys",
    "x-rewrite-url": "/admin/keys",
    "x-forwarded-path": "/admin/keys",
    "x-forwarded-prefix": "/admin",
    "x-forwarded-for": "127.0.0.1",
    "x-real-ip": "127.0.0.1",
    "forwarded": "for=127.0.0.1",
    "true-client-ip": "127.0.0.1",
    "x-script-name": "/admin",
}


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_opens_the_administration(gateway: Gateway, host: str) -> None:
    for target in ("/admin/keys", "/admin/providers", "/v1/models"):
        heard = say(gateway, f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        assert set(heard.statuses) <= {400, 401}, heard.data


@pytest.mark.parametrize("target", TARGETS)
def test_no_spelling_of_an_address_opens_the_administration(gateway: Gateway, target: str) -> None:
    for head in ("", f"authorization: Bearer {gateway.key}\r\n"):
        heard = say(gateway, f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{head}\r\n".encode())
        assert set(heard.statuses) <= {400, 401, 403, 404, 307}, heard.data
        assert b"sk-mh-" not in heard.data.replace(b"sk-mh-admin-...", b"")
        assert b'"object":"list"' not in heard.data


@pytest.mark.parametrize("target", [*TARGETS, *METRICS])
def test_nginx_and_the_gateway_agree_on_what_is_fenced(guarded: NginxServer, gateway: Gateway, target: str) -> None:
    """From an address that is no operator's: nothing of the administration or the metrics, with the right key even."""
    connection = connect_tls(guarded, source="127.0.0.2")
    head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {gateway.admin_key}\r\n"
    connection.sendall(head.encode() + b"connection: close\r\n\r\n")
    status, _, body = read_answer(connection)
    assert status in {400, 403, 404, 307, 421}, body
    assert b"meterhouse_open_requests" not in body


@pytest.mark.parametrize("name", OVERRIDES)
def test_no_header_chooses_the_method_the_address_or_who_asks(gateway: Gateway, name: str) -> None:
    headers = {name: OVERRIDES[name]}
    for method, target in (("POST", "/health/live"), ("GET", "/health/live"), ("POST", "/admin/keys")):
        plain = gateway.request(method, target, {}, key="")
        status, _, body = gateway.request(method, target, {}, key="", headers=headers)
        assert (status, json.loads(body)) == (plain[0], json.loads(plain[2]))
    bound = gateway.new_key(ip_ranges=("203.0.113.0/24",))
    assert gateway.request("GET", "/v1/models", key=bound, headers={name: "203.0.113.7"})[0] == 403


@pytest.mark.parametrize("name", ["host", "authorization", "content-encoding"])
def test_a_header_that_counts_is_there_once(gateway: Gateway, name: str) -> None:
    """Of two, one server reads the first and another the last."""
    good = {"host": "localhost", "authorization": f"Bearer {gateway.key}", "content-encoding": "identity"}
    for first, last in ((good[name], "other"), ("other", good[name])):
        lines = [f"{other}: {value}" for other, value in good.items() if other != name]
        head = "\r\n".join(["GET /v1/models HTTP/1.1", *lines, f"{name}: {first}", f"{name}: {last}"])
        heard = say(gateway, head.encode() + b"\r\n\r\n")
        assert (heard.statuses, heard.is_closed) == ([400], True)
    assert say(gateway, b"GET /health/live HTTP/1.1\r\n\r\n").statuses == [400], "and no host is none"

"""What is posted to an address that a tenant names reaches no private one, whatever leads there, and ends in time."""

import asyncio
import base64
import hmac
import socket
import time

import pytest

from fakes.receiver import receiving
from meterhouse.billing.outbound import Outbound, Undelivered
from meterhouse.billing.webhook import WebhookSigner
from meterhouse.db.webhooks import Webhook
from meterhouse.keys.secret import Peppers

REFUSED = [
    "http://example.com/",
    "https://example.com:8443/",
    "https://127.0.0.1/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://0.0.0.0/",
    "https://localhost/",
    "https://intranet/",
    "https://db.internal/",
    "https://2130706433/",
    "https://127.1/",
    "https://0177.0.0.1/",
    "https://127.0.0.1./",
    "https://0x7f.1/",
    "https://0x7F000001/",
    "https://1.2.3.0x/",
    "https://localhost./",
    "https://db.internal./",
    "https://user:secret@example.com/",
    "https://example.com/#x",
    "https:///path",
    "ftp://example.com/",
    "file:///etc/passwd",
    "https://exa mple.com/",
    "https://example.com:x/",
]


@pytest.mark.parametrize("url", REFUSED)
async def test_an_address_that_can_be_seen_to_be_private_is_refused_before_and_at_the_try(url):
    async with Outbound(allows_private=False) as outbound:
        with pytest.raises(ValueError, match=r"."):
            outbound.check(url)
        with pytest.raises(Undelivered):
            await outbound.post(url, b"x", {}, 1)


def resolving_to(*addresses):
    """Answer each look-up with the next address, as a name server that rebinds does."""
    answers = list(addresses)

    def look_up(*_args, **_options):
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        place = (address, 443, 0, 0) if family is socket.AF_INET6 else (address, 443)
        return [(family, socket.SOCK_STREAM, 6, "", place)]

    return look_up


@pytest.mark.parametrize("name", ["rebind.example.com", "rebind.example.com.", "017700000001.example.com"])
@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"])
async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(name, address, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(address))
    async with Outbound(allows_private=False) as outbound:
        outbound.check(f"https://{name}/")
        with pytest.raises(Undelivered, match="not public"):
            await outbound.post(f"https://{name}/", b"x", {}, 1)


async def test_a_name_is_looked_up_and_checked_at_every_try(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("192.0.2.1", "93.184.215.14", "127.0.0.1"))
    async with Outbound(allows_private=False) as outbound:
        failures = []
        for _ in range(3):
            with pytest.raises(Undelivered) as failure:
                await outbound.post("https://rebind.example.com/", b"x", {}, 0.05)
            failures.append(str(failure.value))
    assert "not public" in failures[0]
    assert "not public" not in failures[1]  # a public address, which nobody answers at here
    assert "not public" in failures[2]


async def test_a_redirect_is_not_followed_and_an_answer_is_not_read(monkeypatch):
    async with receiving("redirect", 500, 200) as receiver, Outbound(allows_private=True) as outbound:
        for status in ("302", "500"):
            with pytest.raises(Undelivered, match=f"status {status}"):
                await outbound.post(receiver.url, b"x", {}, 2)
        await outbound.post(receiver.url, b"{}", {"content-type": "application/json"}, 2)
        assert (receiver.connections, receiver.received[-1].body) == (3, b"{}")


async def test_a_receiver_that_hangs_or_is_not_there_costs_its_time_and_no_more():
    async with receiving("hang", "break") as receiver, Outbound(allows_private=True) as outbound:
        started = time.monotonic()
        with pytest.raises(Undelivered, match=r"no answer within 0\.2 s"):
            await outbound.post(receiver.url, b"x", {}, 0.2)
        assert time.monotonic() - started < 2
        with pytest.raises(Undelivered, match="ServerDisconnected"):
            await outbound.post(receiver.url, b"x", {}, 2)
    async with Outbound(allows_private=True) as outbound:
        with pytest.raises(Undelivered):
            await outbound.post(receiver.url, b"x", {}, 2)
    with pytest.raises(Undelivered, match="stopping"):
        await outbound.post(receiver.url, b"x", {}, 2)


def test_the_signature_is_that_of_standard_webhooks():
    # The example of the specification: https://www.standardwebhooks.com, with its secret and message.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    message = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + b'{"test": 2432232314}'
    assert base64.b64encode(hmac.digest(key, message, "sha256")) == b"g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_stays_with_its_pepper_and_is_another_for_each_webhook():
    old, new = Peppers({1: b"p" * 43}), Peppers({1: b"p" * 43, 2: b"q" * 43})
    one, two = (Webhook(name, "org_1", "https://a.example/", 1, 1) for name in ("wh_1", "wh_2"))
    assert WebhookSigner(old).secret_of(one) == WebhookSigner(new).secret_of(one)
    assert WebhookSigner(new).secret_of(one) != WebhookSigner(new).secret_of(two)
    assert WebhookSigner(new).newest_version == 2
    assert WebhookSigner(Peppers({2: b"q" * 43})).sign(one, "msg_1", 1, b"") is None
    assert asyncio.iscoroutinefunction(Outbound.post)

"""Spend alerts through the official SDK, in both forms, to the e-mail and the webhook that arrive."""

import asyncio
import base64
import hmac
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import openai
import pytest

from fakes.certificates import write_certificates
from fakes.gateway import Gateway, provider_environment
from fakes.mail_server import MailServer, mail_server
from fakes.receiver import Receiver, receiving
from fakes.sdk import StrictSdk
from fakes.upstream import FakeUpstream

CHANNEL = {"type": "email", "recipients": ["ops@example.com", "cfo@example.com"], "subject_prefix": "[bill]"}
PLAIN = {"currency": "USD", "interval": "month", "notification_channel": {"type": "email", "recipients": []}}


class Outside(threading.Thread):
    """A mail server and a receiver of webhooks on a loop of their own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self._context = context
        self.mail: MailServer
        self.receiver: Receiver
        self.is_ready = threading.Event()
        self.stopping = asyncio.Event()
        self.loop = asyncio.new_event_loop()

    def run(self) -> None:
        self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            self.mail = await stack.enter_async_context(mail_server(self._context, is_tls=False))
            self.receiver = await stack.enter_async_context(receiving())
            self.is_ready.set()
            await self.stopping.wait()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Outside, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_certificates(folder))
    servers = Outside(context)
    servers.start()
    assert servers.is_ready.wait(10)
    yield servers, folder / "ca.pem"
    servers.loop.call_soon_threadsafe(servers.stopping.set)
    servers.join(10)


@pytest.fixture(scope="module")
def house(
    up: FakeUpstream,
    outside: tuple[Outside, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    servers, authority = outside
    environment = provider_environment(
        "fake",
        up.base_url,
        METERHOUSE_ALERT_SECONDS="0.1",
        METERHOUSE_PRIVATE_WEBHOOKS="true",
        METERHOUSE_SMTP_HOST="localhost",
        METERHOUSE_SMTP_PORT=str(servers.mail.port),
        METERHOUSE_SMTP_SENDER="meterhouse@example.com",
        METERHOUSE_SMTP_USERNAME="meterhouse",
        METERHOUSE_SMTP_PASSWORD="smtp-password-canary",
    )
    with (
        mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(authority)}),
        Gateway(tmp_path_factory.mktemp("alerts") / "data", environment) as running,
    ):
        yield running


@pytest.fixture(params=[openai.OpenAI, openai.AsyncOpenAI])
def sdk(house: Gateway, request: pytest.FixtureRequest) -> Iterator[StrictSdk]:
    client = request.param(base_url=house.base_url, api_key=None, admin_api_key=house.admin_key, max_retries=0)
    with StrictSdk(client) as made:
        yield made


@pytest.mark.parametrize("is_project", [False, True])
def test_alerts_are_set_listed_changed_and_removed_as_openai_s(sdk: StrictSdk, is_project: bool) -> None:
    owner = {}
    if is_project:
        owner = {"project_id": sdk.ask(lambda org: org.projects.with_raw_response.create(name="alerts")).id}
    first = tuple(owner.values())  # what comes first in some calls is a keyword in others

    def alerts(org: Any) -> Any:
        return org.projects.spend_alerts if is_project else org.spend_alerts

    def create(amount: int) -> Any:
        wish = {**PLAIN, "threshold_amount": amount, "notification_channel": CHANNEL}
        return sdk.ask(lambda org: alerts(org).with_raw_response.create(*first, **wish))

    made = [create(amount) for amount in (10**6, 10**7, 10**8)]
    assert made[0].notification_channel.subject_prefix == "[bill]"
    found = sdk.collect(lambda org: alerts(org).list(*first, limit=2))
    assert [one.id for one in found][-3:] == [one.id for one in made]
    page = sdk.ask(lambda org: alerts(org).with_raw_response.list(*first, limit=1, order="desc"))
    assert (page.data[0].id, page.has_more) == (made[2].id, True)
    wish = {**owner, **PLAIN, "threshold_amount": 5 * 10**6}
    changed = sdk.ask(lambda org: alerts(org).with_raw_response.update(made[0].id, **wish))
    assert (changed.threshold_amount, changed.notification_channel.recipients) == (5 * 10**6, [])
    assert sdk.ask(lambda org: alerts(org).with_raw_response.retrieve(made[0].id, **owner)) == changed
    for one in made:
        assert sdk.ask(lambda org, one=one: alerts(org).with_raw_response.delete(one.id, **owner)).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.ask(lambda org: alerts(org).with_raw_response.retrieve(made[0].id, **owner))


def test_what_is_spent_is_told_by_mail_and_webhook_once(house: Gateway, outside: tuple[Outside, Path]) -> None:
    servers, _ = outside
    model = "normal?tokens=10&first_ms=5"
    house.set_price("fake", model, "0", "4000")
    client = openai.OpenAI(base_url=house.base_url, api_key=house.key, admin_api_key=house.admin_key, max_retries=0)
    with client:
        organization = client.admin.organization
        alert = organization.spend_alerts.create(
            currency="USD", interval="month", threshold_amount=4, notification_channel=CHANNEL
        )
        own = house.request("GET", "/admin/organizations", key=house.admin_key)[2]
        path = f"/admin/organizations/{json.loads(own)['data'][0]['id']}"
        status, _, body = house.request("POST", f"{path}/webhooks", {"url": servers.receiver.url}, key=house.admin_key)
        assert status == 201, body
        secret = base64.b64decode(json.loads(body)["secret"].removeprefix("whsec_"))
        assert house.chat(f"fake/{model}", max_tokens=10)[0] == 200
        deadline = time.monotonic() + 60
        while not (servers.mail.messages and servers.receiver.received):
            assert time.monotonic() < deadline, house.request("GET", f"{path}/deliveries", key=house.admin_key)
            time.sleep(0.05)
        message = servers.receiver.received[0]
        signed = f"{message.headers['webhook-id']}.{message.headers['webhook-timestamp']}.".encode() + message.body
        expected = base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
        assert message.headers["webhook-signature"] == f"v1,{expected}"
        assert message.json["data"]["alert_id"] == alert.id
        while True:
            _, _, body = house.request("GET", f"{path}/deliveries", key=house.admin_key)
            states = [one["state"] for one in json.loads(body)["data"]]
            if states == ["delivered", "delivered"]:
                break
            assert time.monotonic() < deadline, states
            time.sleep(0.05)
    # Sent once; told again, under the same id, only if the answer was late.
    assert {one.headers["webhook-id"] for one in servers.receiver.received} == {message.headers["webhook-id"]}
    mail = servers.mail.messages[0]
    assert b"Subject: [bill] Spend alert: 0.04 USD reached in" in mail
    assert servers.mail.recipients == CHANNEL["recipients"]
    assert servers.mail.lines_in_clear[-1].startswith(b"STARTTLS")
    assert base64.b64decode(servers.mail.logins[0]) == b"\0meterhouse\0smtp-password-canary"
    assert b"smtp-password-canary" not in house.log_path.read_bytes()

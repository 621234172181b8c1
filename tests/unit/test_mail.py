"""What stands on an e-mail's envelope and in its head, with names that somebody chose in order to write more there."""

import ssl
from email import message_from_bytes
from email.message import Message

import pytest

from fakes.mail_server import mail_server
from meterhouse.billing.mail import Mail, Mailer, MailServer
from meterhouse.billing.outbound import Undelivered

BROKEN_LINE = "=?utf-8?q?=0D=0ABcc:_x=40evil.example=0D=0A=0D=0APay_here:?="
HIDDEN_COMMA = "=?utf-8?q?a=40evil.example=2C?=@example.com"
NOTHING = "=?utf-8?q??=@example.com"


async def send(recipients: tuple[str, ...], subject: str) -> tuple[list[str], list[Message]]:
    """Hand an e-mail in; returns who it went to, and what came."""
    async with mail_server(ssl.create_default_context(), is_tls=False) as server:
        mailer = Mailer(MailServer("127.0.0.1", server.port, "billing@house.example", security="none"))
        await mailer.send(Mail("msg_1", recipients, subject, "What is owed.\n"))
        return server.recipients, [message_from_bytes(one) for one in server.messages]


async def test_a_subject_that_spells_line_breaks_stays_one_line():
    _, (message,) = await send(("ops@example.com",), f"{BROKEN_LINE} Spend alert")
    assert message["Bcc"] is None
    assert (message["Message-ID"], message["Auto-Submitted"]) == ("<msg_1@house.example>", "auto-generated")
    body = message.get_payload()
    assert isinstance(body, str)
    assert body.startswith("What is owed.")


@pytest.mark.parametrize("address", [HIDDEN_COMMA, NOTHING])
async def test_an_address_that_spells_another_is_not_written_to(address):
    with pytest.raises(Undelivered):
        await send((address, "ops@example.com"), "Spend alert")


async def test_other_subjects_come_as_they_were_named():
    to, (message,) = await send(("ops@example.com", "b@example.com"), "[bill] 50 % = ? Ausgaben für März")
    assert to == ["ops@example.com", "b@example.com"]
    assert message["To"] == "ops@example.com, b@example.com"

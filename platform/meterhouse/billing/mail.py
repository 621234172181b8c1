"""Sends e-mail over one SMTP server, with TLS unless it is on this host.

The standard library's client blocks, so it runs on a thread, with a bound on each step. Not here: who is written to.
"""

import asyncio
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Literal

from meterhouse.billing.outbound import Undelivered

TIMEOUT_SECONDS = 10.0
ENCODED_WORD = "=?"
"""How a header spells any characters in ASCII, line breaks too (RFC 2047); the library reads it in what it is given."""
Security = Literal["starttls", "tls", "none"]


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where e-mail is handed in."""

    host: str
    port: int
    sender: str
    security: Security = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Mail:
    """An e-mail."""

    id: str
    """Becomes its Message-ID, by which a second copy can be known."""
    recipients: tuple[str, ...]
    subject: str
    text: str


class Mailer:
    """Hands e-mails in, one at a time."""

    def __init__(self, server: MailServer, context: ssl.SSLContext | None = None) -> None:
        """Take the server, and what its certificate is checked against (None: the system's authorities)."""
        self._server = server
        self._context = context
        self._turn = asyncio.Lock()

    async def send(self, mail: Mail) -> None:
        """Hand an e-mail in.

        Raises:
            Undelivered: The server did not take it, for any of its recipients.
        """
        async with self._turn:
            try:
                await asyncio.to_thread(self._send, self._write(mail))
            except (smtplib.SMTPException, OSError, ValueError) as error:
                raise Undelivered(f"{type(error).__name__}: {_said(error)}"[:200]) from None

    def _write(self, mail: Mail) -> EmailMessage:
        if any(ENCODED_WORD in address for address in mail.recipients):
            raise ValueError("an address spells another one")
        message = EmailMessage()
        message["From"] = self._server.sender
        message["To"] = ", ".join(mail.recipients)
        message["Subject"] = mail.subject.replace(ENCODED_WORD, "= ?")
        message["Message-ID"] = f"<{mail.id}@{self._server.sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text)
        return message

    def _send(self, message: EmailMessage) -> None:
        server = self._server
        context = self._context or ssl.create_default_context()
        if server.security == "tls":
            client: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_SECONDS, context=context)
        else:
            client = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_SECONDS)
        with client:
            if server.security == "starttls":
                client.starttls(context=context)
            if server.username is not None:
                client.login(server.username, server.password or "")
            refused = client.send_message(message)
        if refused:
            raise smtplib.SMTPException(f"{len(refused)} recipients were refused")


def _said(error: Exception) -> str:
    """Return what went wrong without what the server wrote, which may repeat what it was told."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"code {error.smtp_code}"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "every recipient was refused"
    return str(error)

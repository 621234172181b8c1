"""A mail server of a few lines on a real socket, with TLS: it keeps what it is handed, or refuses it."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class MailServer:
    """What came, and how it came."""

    context: ssl.SSLContext
    refuses: bytes = b""
    """The answer to a recipient instead of 250."""
    has_starttls: bool = True
    messages: list[bytes] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    logins: list[bytes] = field(default_factory=list)
    lines_in_clear: list[bytes] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            is_secure = writer.get_extra_info("ssl_object") is not None
            writer.write(b"220 mail.example ESMTP\r\n")
            while line := await reader.readline():
                if not is_secure:
                    self.lines_in_clear.append(line)
                word = line.split()[0].upper()
                if word == b"EHLO":
                    extra = b"250-STARTTLS\r\n" if self.has_starttls and not is_secure else b""
                    writer.write(b"250-mail.example\r\n" + extra + b"250 AUTH PLAIN\r\n")
                elif word == b"STARTTLS":
                    writer.write(b"220 go\r\n")
                    await writer.drain()
                    await writer.start_tls(self.context)
                    is_secure = True
                elif word == b"AUTH":
                    self.logins.append(line.split()[-1])
                    writer.write(b"235 ok\r\n")
                elif word == b"RCPT" and self.refuses:
                    writer.write(self.refuses + b"\r\n")
                elif word == b"RCPT":
                    self.recipients.append(line.decode().partition("<")[2].partition(">")[0])
                    writer.write(b"250 ok\r\n")
                elif word == b"DATA":
                    writer.write(b"354 go\r\n")
                    self.messages.append(await reader.readuntil(b"\r\n.\r\n"))
                    writer.write(b"250 ok\r\n")
                elif word == b"QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                else:
                    writer.write(b"250 ok\r\n")


@contextlib.asynccontextmanager
async def mail_server(context: ssl.SSLContext, *, is_tls: bool, **options: object) -> AsyncIterator[MailServer]:
    server = MailServer(context, **options)  # type: ignore[arg-type]
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(server.serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context if is_tls else None)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

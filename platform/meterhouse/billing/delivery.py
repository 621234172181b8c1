"""Delivers what lies in the outbox, again and again until it arrives or a day and more have gone.

Invariant: a delivery has one id over all tries; one that a dead process had claimed is tried again after its lease. So
it arrives at least once; more than once only when an answer is lost or late, or when the database does not take for
long that it arrived. Not here: how a webhook is signed (``webhook``), how anything is sent (``outbound``, ``mail``).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec

from meterhouse.billing.alerts import EMAIL, MailBody
from meterhouse.billing.mail import Mail
from meterhouse.billing.outbound import Undelivered
from meterhouse.billing.webhook import WebhookSigner
from meterhouse.db.outbox import Delivery, OutboxStore
from meterhouse.db.webhooks import WebhookStore
from meterhouse.errors import StoreDown
from meterhouse.metering import Clock
from meterhouse.telemetry.logs import Event, get_logger

TIMEOUT_SECONDS = 10.0
LEASE_MS = 60_000
"""Longer than what is claimed at a time takes, but for a mail server that hangs: then a message may come twice."""
MOST_AT_A_TIME = 8
PAUSES_SECONDS = (5, 30, 120, 600, 1_800, 3_600, 3 * 3_600, 6 * 3_600, 12 * 3_600)
"""Between a try and the next; after the last one it is given up, about a day after the first."""
KEPT_MS = 30 * 86_400_000
"""How long what was delivered or given up is kept, for whoever asks what became of it."""
NOTE_PAUSES_SECONDS = (0.5, 1.5, 4.5)
"""Between a try to note how a delivery went and the next; with what each may take they end well within the lease."""
GONE = "status 410"
"""The receiver says that it wants no more."""

_decode_recipients = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_mail = msgspec.json.Decoder(MailBody).decode


class Posts(Protocol):
    """Posts to an address; ``outbound.Outbound`` is one."""

    async def post(self, url: str, body: bytes, headers: dict[str, str], timeout_seconds: float) -> None:
        """Post once; raises Undelivered."""
        ...


class Sends(Protocol):
    """Sends e-mail; ``mail.Mailer`` is one."""

    async def send(self, mail: Mail) -> None:
        """Hand an e-mail in; raises Undelivered."""
        ...


class _Pointless(Undelivered):
    """Trying again would not help."""


@dataclass(frozen=True, slots=True)
class Carriers:
    """What carries deliveries."""

    posts: Posts
    signer: WebhookSigner
    mailer: Sends | None = None
    """None: no SMTP server is set."""


class Deliverer:
    """Delivers what is due. Any number of processes may: each claims its own."""

    def __init__(
        self,
        outbox: OutboxStore,
        webhooks: WebhookStore,
        carriers: Carriers,
        clock: Clock,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Take where deliveries lie, and what carries them; ``spread`` keeps tries apart."""
        self._outbox = outbox
        self._webhooks = webhooks
        self._carriers = carriers
        self._clock = clock
        self._spread = spread

    async def step(self) -> int:
        """Deliver what is due now; returns how much was tried. Raises StoreDown."""
        tried = 0
        while claimed := await self._outbox.claim(self._clock.now_ms(), LEASE_MS, MOST_AT_A_TIME):
            # Each is followed to its end whatever becomes of the others: one that is broken off would be sent again.
            ends = await asyncio.gather(*map(self.deliver, claimed), return_exceptions=True)
            for failure in filter(None, ends):
                raise failure
            tried += len(claimed)
        return tried

    async def deliver(self, delivery: Delivery) -> None:
        """Try once to deliver what was claimed, and note how it went. Raises StoreDown."""
        if self._clock.now_ms() >= delivery.next_at_ms:
            return  # this process stood still for longer than its claim lasts: it is another's by now
        try:
            await (self._mail(delivery) if delivery.channel == EMAIL else self._post(delivery))
        except Undelivered as failure:
            await self._postpone(delivery, failure)
        else:
            await _note(partial(self._outbox.resolve, delivery))

    async def tidy(self) -> None:
        """Forget what was resolved long ago. Raises StoreDown."""
        await self._outbox.forget(self._clock.now_ms() - KEPT_MS)

    async def _post(self, delivery: Delivery) -> None:
        webhook = await self._webhooks.find(delivery.target)
        if webhook is None:
            raise _Pointless("the webhook was removed")
        body = delivery.body.encode()
        signed = self._carriers.signer.sign(webhook, delivery.id, self._clock.now_ms() // 1_000, body)
        if signed is None:
            raise _Pointless("the pepper of its secret is gone: make the webhook anew")
        await self._carriers.posts.post(
            webhook.url, body, {"content-type": "application/json", **signed}, TIMEOUT_SECONDS
        )

    async def _mail(self, delivery: Delivery) -> None:
        mailer = self._carriers.mailer
        if mailer is None:
            raise Undelivered("no SMTP server is set here")
        body = _decode_mail(delivery.body)
        await mailer.send(Mail(delivery.id, _decode_recipients(delivery.target), body.subject, body.text))

    async def _postpone(self, delivery: Delivery, failure: Undelivered) -> None:
        is_over = isinstance(failure, _Pointless) or str(failure) == GONE or delivery.tries > len(PAUSES_SECONDS)
        next_at_ms = None
        if not is_over:
            pause_seconds = PAUSES_SECONDS[delivery.tries - 1]
            next_at_ms = self._clock.now_ms() + round(1_000 * self._spread(0.8 * pause_seconds, 1.2 * pause_seconds))
        event = Event.DELIVERY_GIVEN_UP if is_over else Event.DELIVERY_FAILED
        get_logger().warning(event, delivery_id=delivery.id, tries=delivery.tries, detail=str(failure))
        await _note(partial(self._outbox.postpone, delivery, str(failure), next_at_ms))


async def _note(work: Callable[[], Awaitable[None]]) -> None:
    """Write down how a delivery went, again where the database is too busy; raises StoreDown."""
    for pause_seconds in NOTE_PAUSES_SECONDS:
        try:
            return await work()
        except StoreDown as error:
            get_logger().warning(Event.STORE_FAILED, detail=error.detail)
        await asyncio.sleep(pause_seconds)
    return await work()

"""Composition of billing: what the administration uses of it, and what goes on beside the requests.

Each duty is done by one process at a time, which takes a turn in the database for it; where two overlap, because one
was slow, every duty bears it (see its own module). Deliveries need no turn: each process claims its own. Not here: the
rules themselves (``billing``).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from meterhouse.admin.billing import BillingParts
from meterhouse.billing.alert_changes import AlertChanges
from meterhouse.billing.alerts import AlertWatch
from meterhouse.billing.credits import Credits
from meterhouse.billing.delivery import Carriers, Deliverer
from meterhouse.billing.events import EventExport, Sink
from meterhouse.billing.invoice import Month
from meterhouse.billing.invoices import Invoices
from meterhouse.billing.mail import Mailer, MailServer
from meterhouse.billing.outbound import Outbound
from meterhouse.billing.webhook import WebhookSigner
from meterhouse.db.books import Books
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import close
from meterhouse.db.invoices import InvoiceStore
from meterhouse.db.outbox import OutboxStore
from meterhouse.db.turns import TurnStore
from meterhouse.exports import load_signing_key
from meterhouse.ids import new_id
from meterhouse.keys.secret import Peppers
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.metering import Clock
from meterhouse.settings import Settings, SettingsError
from meterhouse.signed_exports import FolderExport
from meterhouse.stores import OFFICE_CONNECTIONS, Stores, open_patient_engine
from meterhouse.telemetry.logs import Event, get_logger

INVOICE_SECONDS = 600.0
TIDY_SECONDS = 3_600.0
EXPORT_LOOK_SECONDS = 60.0
DELIVERY_SECONDS = 2.0
LEAST_TURN_MS = 60_000
HOUR_MS = 3_600_000

Beat = tuple[float, Callable[[], Awaitable[object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOffice:
    """What the administration uses, and what is to be done again and again: how often, in seconds, and what."""

    billing: BillingParts
    beats: tuple[Beat, ...]


class Duty:
    """Something that one process does at a time."""

    def __init__(self, turns: TurnStore, clock: Clock, holder: str) -> None:
        self._turns = turns
        self._clock = clock
        self._holder = holder

    async def do(self, name: str, every_seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Do it, unless another process has the turn; a turn that is not gone on with ends after three beats."""
        turn_ms = max(LEAST_TURN_MS, round(every_seconds * 3_000))
        if await self._turns.take(name, self._holder, self._clock.now_ms(), turn_ms):
            await work()


@asynccontextmanager
async def open_back_office(settings: Settings, stores: Stores) -> AsyncIterator[BackOffice]:
    """Open what billing needs, and close it again.

    Raises:
        SettingsError: The mail server or an address cannot work so.
    """
    async with AsyncExitStack() as stack:
        mailer = _open_mailer(settings)
        patient = open_patient_engine(settings, OFFICE_CONNECTIONS)
        stack.push_async_callback(close, patient)
        to_tenants = await stack.enter_async_context(Outbound(allows_private=settings.private_webhooks))
        to_operator = await stack.enter_async_context(Outbound(allows_private=True))
        signer = WebhookSigner(Peppers(stores.peppers))
        outbox = OutboxStore(stores.engine)
        catalog, clock, turns = stores.catalog, stores.clock, TurnStore(stores.engine)
        books = Books(patient, hash_rows)
        invoices = build_invoices(books, InvoiceStore(patient), catalog, clock)
        watch = AlertWatch(catalog.alerts, catalog.webhooks, clock, has_mail=mailer is not None)
        deliverer = Deliverer(outbox, catalog.webhooks, Carriers(to_tenants, signer, mailer), clock)
        duty = Duty(turns, clock, new_id("desk"))

        def in_turn(name: str, every_seconds: float, work: Callable[[], Awaitable[object]]) -> Beat:
            return every_seconds, partial(duty.do, name, every_seconds, work)

        beats = [
            in_turn("alerts", settings.alert_seconds, watch.step),
            (DELIVERY_SECONDS, deliverer.step),
            in_turn("tidy", TIDY_SECONDS, deliverer.tidy),
        ]
        if settings.invoice_after_hours is not None:
            issue = partial(issue_due, invoices, clock, settings.invoice_after_hours * HOUR_MS)
            beats.append(in_turn("invoices", INVOICE_SECONDS, issue))
        if settings.cloudevents_url is not None:
            sink = _open_sink(settings, to_operator)
            events = EventExport(books.seals, turns, to_operator, sink)
            beats.append(in_turn("cloudevents", settings.cloudevents_seconds, events.step))
        if settings.export_folder is not None:
            target = (settings.export_folder, settings.export_seconds)
            files = FolderExport(books, turns, clock, target, partial(load_signing_key, settings.data))
            look_seconds = min(EXPORT_LOOK_SECONDS, settings.export_seconds)
            beats.append(in_turn("export", look_seconds, files.step))
        yield BackOffice(
            billing=BillingParts(
                alerts=AlertChanges(catalog, signer, clock, to_tenants.check),
                outbox=outbox,
                invoices=invoices,
                credits=Credits(catalog, stores.service, clock),
                catalog=catalog,
            ),
            beats=tuple(beats),
        )


def build_invoices(books: Books, store: InvoiceStore, catalog: Catalog, clock: Clock) -> Invoices:
    """Return what issues invoices over stores that may take long."""
    return Invoices(store, books.seals, catalog, clock, Sealer(books.seals, get_logger()).seal_all)


async def issue_due(invoices: Invoices, clock: Clock, after_ms: int) -> None:
    """Issue the invoices of the last month that has been over for long enough."""
    month = Month.of(Month.of(clock.now_ms() - after_ms).start_ms - 1)
    if issued := await invoices.issue_due(month):
        get_logger().info(Event.INVOICES_ISSUED, month=month.name, count=issued)


def check_office(settings: Settings) -> None:
    """Refuse settings of mail and exports with which the office does not open; raises SettingsError."""
    _open_mailer(settings)
    if settings.cloudevents_url is not None:
        _open_sink(settings, Outbound(allows_private=True))


def _open_mailer(settings: Settings) -> Mailer | None:
    if settings.smtp_host is None:
        return None
    if settings.smtp_sender is None:
        raise SettingsError("METERHOUSE_SMTP_SENDER: expected the address that e-mail comes from.")
    if settings.smtp_security == "none" and settings.smtp_username is not None:
        raise SettingsError("METERHOUSE_SMTP_SECURITY: a password is not sent without TLS.")
    password = settings.smtp_password
    return Mailer(
        MailServer(
            host=settings.smtp_host,
            port=settings.smtp_port,
            sender=settings.smtp_sender,
            security=settings.smtp_security,
            username=settings.smtp_username,
            password=None if password is None else password.get_secret_value(),
        )
    )


def _open_sink(settings: Settings, outbound: Outbound) -> Sink:
    assert settings.cloudevents_url is not None
    try:
        outbound.check(settings.cloudevents_url)
    except ValueError as error:
        raise SettingsError(f"METERHOUSE_CLOUDEVENTS_URL: {error}.") from None
    token = settings.cloudevents_token
    return Sink(settings.cloudevents_url, None if token is None else token.get_secret_value())

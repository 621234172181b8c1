"""The tables of billing: invoices, spend alerts, webhooks, what is still to be delivered, and whose turn it is.

``invoice`` and ``spend_alert_firing`` are append-only like the ledger: what was billed or told stays so. Not here: a
statement, and the ledger's own tables (``db.tables``).
"""

import sqlalchemy as sa

from meterhouse.db.tables import metadata

__all__ = ["export_cursor", "invoice", "metadata", "outbox", "spend_alert", "spend_alert_firing", "turn", "webhook"]

invoice = sa.Table(
    "invoice",
    metadata,
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("month_ms", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("issued_at_ms", sa.BigInteger, nullable=False),
    # The last seal of the organization's chain that it covers; 0 when there was none.
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    sa.Column("last_hash", sa.Text, nullable=False),
    sa.Column("total_nanos", sa.BigInteger, nullable=False),
    # The whole invoice as JSON, as it was issued.
    sa.Column("document", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("organization_id", "month_ms"),
)

spend_alert = sa.Table(
    "spend_alert",
    metadata,
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("organization_id", sa.Text, sa.ForeignKey("organization.id"), nullable=False),
    # Empty: of the whole organization.
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("threshold_cents", sa.BigInteger, nullable=False),
    sa.Column("recipients", sa.JSON, nullable=False),
    sa.Column("subject_prefix", sa.Text, nullable=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("spend_alert_by_owner", "organization_id", "project_id", "created_at_ms"),
)

spend_alert_firing = sa.Table(
    "spend_alert_firing",
    metadata,
    sa.Column("alert_id", sa.Text, nullable=False),
    sa.Column("period_start_ms", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("threshold_cents", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("spent_nanos", sa.BigInteger, nullable=False),
    sa.Column("fired_at_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("alert_id", "period_start_ms", "threshold_cents"),
)

# Its secret is derived from a pepper and its id, so that no secret is stored.
webhook = sa.Table(
    "webhook",
    metadata,
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("organization_id", sa.Text, sa.ForeignKey("organization.id"), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("webhook_by_organization", "organization_id", "created_at_ms"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("organization_id", sa.Text, nullable=False),
    # "webhook" or "email".
    sa.Column("channel", sa.Text, nullable=False),
    # Of a webhook its id, of an e-mail its recipients as JSON.
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    # "waiting", "delivered" or "failed".
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_at_ms", sa.BigInteger, nullable=False),
    sa.Column("last_error", sa.Text, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("outbox_by_turn", "state", "next_at_ms"),
)

turn = sa.Table(
    "turn",
    metadata,
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("name"),
)

export_cursor = sa.Table(
    "export_cursor",
    metadata,
    sa.Column("sink", sa.Text, nullable=False),
    # Empty for a sink that goes on by time.
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("sink", "organization_id"),
)

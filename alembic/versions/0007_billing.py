"""Invoices, spend alerts and their webhooks, what is still to be delivered, and whose turn it is."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None

APPEND_ONLY = ("invoice", "spend_alert_firing")


def upgrade() -> None:
    _create_invoices()
    _create_alerts()
    _create_outbox()
    for table in APPEND_ONLY:
        if op.get_context().dialect.name == "postgresql":
            op.execute(
                f"CREATE TRIGGER {table}_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )
            continue
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def downgrade() -> None:
    tables = ("export_cursor", "turn", "outbox", "webhook", "spend_alert_firing", "spend_alert", "invoice")
    for table in tables:
        op.drop_table(table)


def _create_invoices() -> None:
    op.create_table(
        "invoice",
        _text("organization_id"),
        _bigint("month_ms"),
        _bigint("issued_at_ms"),
        _bigint("last_sequence"),
        _text("last_hash"),
        _bigint("total_nanos"),
        _text("document"),
        sa.PrimaryKeyConstraint("organization_id", "month_ms"),
    )


def _create_alerts() -> None:
    op.create_table(
        "spend_alert",
        _text("id"),
        _text("organization_id"),
        _text("project_id"),
        _bigint("threshold_cents"),
        sa.Column("recipients", sa.JSON, nullable=False),
        sa.Column("subject_prefix", sa.Text, nullable=True),
        _bigint("created_at_ms"),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["organization_id"], ["organization.id"]),
    )
    op.create_index("spend_alert_by_owner", "spend_alert", ["organization_id", "project_id", "created_at_ms"])
    op.create_table(
        "spend_alert_firing",
        _text("alert_id"),
        _bigint("period_start_ms"),
        _bigint("threshold_cents"),
        _bigint("spent_nanos"),
        _bigint("fired_at_ms"),
        sa.PrimaryKeyConstraint("alert_id", "period_start_ms", "threshold_cents"),
    )


def _create_outbox() -> None:
    op.create_table(
        "webhook",
        _text("id"),
        _text("organization_id"),
        _text("url"),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        _bigint("created_at_ms"),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["organization_id"], ["organization.id"]),
    )
    op.create_index("webhook_by_organization", "webhook", ["organization_id", "created_at_ms"])
    op.create_table(
        "outbox",
        *(_text(name) for name in ("id", "organization_id", "channel", "target", "body", "state")),
        sa.Column("tries", sa.Integer, nullable=False),
        _bigint("next_at_ms"),
        _text("last_error"),
        _bigint("created_at_ms"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("outbox_by_turn", "outbox", ["state", "next_at_ms"])
    op.create_table("turn", _text("name"), _text("holder"), _bigint("until_ms"), sa.PrimaryKeyConstraint("name"))
    op.create_table(
        "export_cursor",
        _text("sink"),
        _text("organization_id"),
        _bigint("position"),
        sa.PrimaryKeyConstraint("sink", "organization_id"),
    )


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def _bigint(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=False, autoincrement=False)

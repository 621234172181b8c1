"""Workers that are alive, and the chain of seals over what the ledger holds."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "worker",
        _text("id"),
        _text("host"),
        _text("journal_id"),
        _bigint("started_at_ms"),
        _bigint("seen_at_ms"),
        _bigint("unshipped_records"),
        sa.Column("is_leaving", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "seal",
        _text("organization_id"),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        _text("kind"),
        _text("request_id", nullable=True),
        sa.Column("attempt", sa.Integer, nullable=True),
        _text("adjustment_id", nullable=True),
        _text("previous_hash"),
        _text("hash"),
        _bigint("sealed_at_ms"),
        sa.PrimaryKeyConstraint("organization_id", "sequence"),
        sa.UniqueConstraint("request_id", "attempt", name="seal_of_record_once"),
        sa.UniqueConstraint("adjustment_id", name="seal_of_adjustment_once"),
        sa.CheckConstraint(
            "(kind = 'usage' AND request_id IS NOT NULL AND attempt IS NOT NULL AND adjustment_id IS NULL) OR "
            "(kind = 'adjustment' AND request_id IS NULL AND attempt IS NULL AND adjustment_id IS NOT NULL)",
            name="seal_is_of_one_thing",
        ),
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER seal_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON seal "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    else:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER seal_refuses_{change.lower()} BEFORE {change} ON seal "
                "BEGIN SELECT RAISE(ABORT, 'seal is append-only'); END"
            )


def downgrade() -> None:
    op.drop_table("seal")
    op.drop_table("worker")


def _text(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=nullable)


def _bigint(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=False)

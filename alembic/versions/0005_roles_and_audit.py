"""Admin keys of one organization, service accounts, models of a project, and who changed what."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("admin_key", sa.Column("organization_id", sa.Text, nullable=True))
    op.add_column("project", sa.Column("model_mode", sa.Text, nullable=True))
    op.add_column("project", sa.Column("model_ids", sa.JSON, nullable=True))
    op.create_table(
        "service_account",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("deleted_at_ms", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"]),
    )
    op.create_index("service_account_by_project", "service_account", ["project_id", "created_at_ms"])
    _create_audit_event()


def downgrade() -> None:
    op.drop_table("audit_event")
    op.drop_table("service_account")
    op.drop_column("project", "model_ids")
    op.drop_column("project", "model_mode")
    op.drop_column("admin_key", "organization_id")


def _create_audit_event() -> None:
    op.create_table(
        "audit_event",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target_id", sa.Text, nullable=False),
        sa.Column("organization_id", sa.Text, nullable=True),
        sa.Column("project_id", sa.Text, nullable=True),
        sa.Column("actor_kind", sa.Text, nullable=False),
        sa.Column("actor_id", sa.Text, nullable=False),
        sa.Column("actor_role", sa.Text, nullable=False),
        sa.Column("before", sa.JSON, nullable=True, quote=True),
        sa.Column("after", sa.JSON, nullable=True, quote=True),
        sa.Column("address", sa.Text, nullable=True),
        sa.Column("request_id", sa.Text, nullable=True),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_event_by_organization", "audit_event", ["organization_id", "created_at_ms"])
    op.create_index("audit_event_by_creation", "audit_event", ["created_at_ms"])
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER audit_event_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_event "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_event_refuses_{change.lower()} BEFORE {change} ON audit_event "
            "BEGIN SELECT RAISE(ABORT, 'audit_event is append-only'); END"
        )

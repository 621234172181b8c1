"""The catalog (organizations, projects, keys, limits, prices) and the ledger (records, hours, adjustments)."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("usage_record", "price", "adjustment")


def upgrade() -> None:
    _create_owners()
    _create_keys()
    _create_rules()
    _create_usage_record()
    _create_usage_hour()
    _create_adjustment()
    if op.get_context().dialect.name == "sqlite":
        _refuse_changes()


def downgrade() -> None:
    # Dropping a table drops its indexes and triggers.
    tables = ("meta", "adjustment", "usage_hour", "usage_record", "price", "limit_rule", "admin_key", "key", "project")
    for table in (*tables, "organization"):
        op.drop_table(table)


def _text(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=nullable)


def _bigint(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _create_owners() -> None:
    op.create_table(
        "organization",
        _text("id"),
        _text("name"),
        _bigint("created_at_ms"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "project",
        _text("id"),
        _text("organization_id"),
        _text("name"),
        _bigint("created_at_ms"),
        _bigint("archived_at_ms", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["organization_id"], ["organization.id"]),
    )
    op.create_index("project_by_organization", "project", ["organization_id", "created_at_ms"])


def _create_keys() -> None:
    op.create_table(
        "key",
        _text("id"),
        _text("root_key_id"),
        _text("project_id"),
        _text("name"),
        _text("hash"),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        _text("redacted"),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON, nullable=True),
        sa.Column("ip_ranges", sa.JSON, nullable=False),
        _text("service_account", nullable=True),
        _bigint("expires_at_ms", nullable=True),
        _bigint("revoked_at_ms", nullable=True),
        _bigint("created_at_ms"),
        _bigint("last_used_at_ms", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"]),
    )
    op.create_index("key_by_project", "key", ["project_id", "created_at_ms"])
    op.create_index("key_by_creation", "key", ["created_at_ms"])
    op.create_table(
        "admin_key",
        _text("id"),
        _text("name"),
        _text("role"),
        _text("hash"),
        sa.Column("pepper_version", sa.Integer, nullable=False),
        _text("redacted"),
        _bigint("expires_at_ms", nullable=True),
        _bigint("revoked_at_ms", nullable=True),
        _bigint("created_at_ms"),
        _bigint("last_used_at_ms", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )


def _create_rules() -> None:
    op.create_table(
        "limit_rule",
        _text("id"),
        _text("scope"),
        _text("scope_id"),
        _text("kind"),
        sa.Column("window", sa.Text, nullable=False, quote=True),
        _bigint("multiple"),
        _bigint("amount"),
        _text("model"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("scope", "scope_id", "kind", "window", "multiple", "model", name="limit_rule_once"),
    )
    op.create_table(
        "price",
        _text("id"),
        _text("provider"),
        _text("model"),
        sa.Column("components", sa.JSON, nullable=False),
        _bigint("effective_from_ms"),
        _text("source"),
        _bigint("created_at_ms"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table("meta", _text("name"), _text("value"), sa.PrimaryKeyConstraint("name"))


def _tokens_and_nanos() -> list[sa.Column]:
    return [
        _bigint("input_tokens"),
        _bigint("cached_input_tokens"),
        _bigint("cache_write_tokens"),
        _bigint("output_tokens"),
        _bigint("reasoning_tokens"),
        _bigint("input_audio_tokens"),
        _bigint("output_audio_tokens"),
        _bigint("charge_nanos"),
        _bigint("input_nanos"),
        _bigint("cached_input_nanos"),
        _bigint("cache_write_nanos"),
        _bigint("output_nanos"),
        _bigint("input_audio_nanos"),
        _bigint("output_audio_nanos"),
        _bigint("request_nanos"),
    ]


def _create_usage_record() -> None:
    op.create_table(
        "usage_record",
        sa.Column("request_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("requests", sa.Integer, nullable=False),
        _text("organization_id"),
        _text("project_id"),
        _text("key_id"),
        _text("root_key_id"),
        _text("model"),
        _text("served_model"),
        _text("provider"),
        _text("deployment"),
        _text("upstream_model"),
        _text("operation"),
        _text("service_tier"),
        _text("outcome"),
        _text("exactness"),
        _text("error_owner"),
        _text("error_code"),
        sa.Column("is_streamed", sa.Boolean, nullable=False),
        sa.Column("is_suspect", sa.Boolean, nullable=False),
        *_tokens_and_nanos(),
        _text("price_id", nullable=True),
        _bigint("overrun_nanos"),
        _bigint("admitted_at_ms"),
        _bigint("time_to_first_token_ms", nullable=True),
        _bigint("duration_ms"),
        _text("trace_id"),
        _bigint("recorded_at_ms"),
        sa.PrimaryKeyConstraint("request_id", "attempt"),
    )
    op.create_index("usage_record_by_organization", "usage_record", ["organization_id", "admitted_at_ms"])
    op.create_index("usage_record_by_project", "usage_record", ["project_id", "admitted_at_ms"])
    op.create_index("usage_record_by_root_key", "usage_record", ["root_key_id", "admitted_at_ms"])


def _create_usage_hour() -> None:
    op.create_table(
        "usage_hour",
        _text("organization_id"),
        _bigint("hour_ms"),
        _text("project_id"),
        _text("key_id"),
        _text("root_key_id"),
        _text("model"),
        _text("provider"),
        _text("operation"),
        _text("service_tier"),
        _text("outcome"),
        _text("error_owner"),
        _bigint("requests"),
        _bigint("attempts"),
        *_tokens_and_nanos(),
        *(_bigint(f"first_token_{bucket:02d}") for bucket in range(20)),
        *(_bigint(f"duration_{bucket:02d}") for bucket in range(20)),
        sa.PrimaryKeyConstraint(
            "organization_id",
            "hour_ms",
            "project_id",
            "key_id",
            "root_key_id",
            "model",
            "provider",
            "operation",
            "service_tier",
            "outcome",
            "error_owner",
        ),
    )
    op.create_index("usage_hour_by_project", "usage_hour", ["project_id", "hour_ms"])
    op.create_index("usage_hour_by_root_key", "usage_hour", ["root_key_id", "hour_ms"])
    op.create_index("usage_hour_by_hour", "usage_hour", ["hour_ms"])


def _create_adjustment() -> None:
    op.create_table(
        "adjustment",
        _text("id"),
        _text("organization_id"),
        _text("project_id"),
        _text("root_key_id", nullable=True),
        _bigint("period_start_ms"),
        _bigint("nanos"),
        _bigint("tokens"),
        _text("reason"),
        _bigint("created_at_ms"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("adjustment_by_organization", "adjustment", ["organization_id", "period_start_ms"])
    op.create_index("adjustment_by_project", "adjustment", ["project_id", "period_start_ms"])
    op.create_index("adjustment_by_root_key", "adjustment", ["root_key_id", "period_start_ms"])


def _refuse_changes() -> None:
    for table in APPEND_ONLY:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )

"""The tables, as SQLAlchemy Core sees them; the migrations in ``alembic/`` make them.

All times are Unix milliseconds, all ids text, all money integer nanos of USD. ``usage_record``, ``price``,
``adjustment``, ``seal`` and ``audit_event`` are append-only: triggers refuse UPDATE, DELETE and, on PostgreSQL,
TRUNCATE. The ledger's tables refer to nothing, so that a record can always be written. On PostgreSQL ``usage_record``
has a partition for each month. Not here: a statement.
"""

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from meterhouse.money import Meterable
from meterhouse.usage import Usage

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
RERATED_ID_PREFIX = "adj_rerate_"
"""Of adjustments that charge a record later, of which the meter is told by key and day."""
CREDIT_PERIOD_MS = 0
"""The period that a prepaid credit names: none. An adjustment of it corrects no charge (``db.credits``)."""

BUCKETS = 20
"""Buckets of a histogram: bucket i counts values up to bound i, the last one everything above."""
FIRST_TOKEN_BOUNDS_MS = (
    *(10, 20, 50, 100, 150, 200, 300, 400, 500, 750),
    *(1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 20_000, 60_000),
)
DURATION_BOUNDS_MS = (
    *(50, 100, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000),
    *(5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 60_000, 120_000, 300_000),
)

TOKEN_COLUMNS: tuple[str, ...] = Usage.__struct_fields__
COMPONENT_COLUMNS: dict[str, str] = {kind.value: f"{kind.value}_nanos" for kind in Meterable}
"""The column of each component's charge, by the component's name."""
FIRST_TOKEN_COLUMNS = tuple(f"first_token_{bucket:02d}" for bucket in range(BUCKETS))
DURATION_COLUMNS = tuple(f"duration_{bucket:02d}" for bucket in range(BUCKETS))

HOUR_KEY_COLUMNS = (
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
)
"""What an hourly row is about, in the order of its primary key."""
MEASURE_COLUMNS = (
    "requests",
    "attempts",
    *TOKEN_COLUMNS,
    "charge_nanos",
    *COMPONENT_COLUMNS.values(),
    *FIRST_TOKEN_COLUMNS,
    *DURATION_COLUMNS,
)
"""What an hourly row sums."""
REFUSAL_KEY_COLUMNS = ("organization_id", "hour_ms", "project_id", "key_id", "model", "error_owner", "error_code")
"""What a row of refused requests is about, in the order of its primary key."""


def is_ours(name: str | None, kind: str, parents: object) -> bool:
    """Say whether alembic may compare a thing: not a partition, which is made by the clock."""
    del parents
    return kind != "table" or not (name or "").startswith("usage_record_")


def _text(name: str, *arguments: SchemaItem, is_nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, *arguments, nullable=is_nullable)


def _integer(name: str, *, is_nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=is_nullable)


metadata = sa.MetaData()

organization = sa.Table(
    "organization",
    metadata,
    _text("id"),
    _text("name"),
    _integer("created_at_ms"),
    sa.PrimaryKeyConstraint("id"),
)

project = sa.Table(
    "project",
    metadata,
    _text("id"),
    _text("organization_id", sa.ForeignKey("organization.id")),
    _text("name"),
    _integer("created_at_ms"),
    _integer("archived_at_ms", is_nullable=True),
    # "allow_list" or "deny_list" of the models in the next column; NULL: every model.
    _text("model_mode", is_nullable=True),
    sa.Column("model_ids", sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("project_by_organization", "organization_id", "created_at_ms"),
)

service_account = sa.Table(
    "service_account",
    metadata,
    _text("id"),
    _text("project_id", sa.ForeignKey("project.id")),
    _text("name"),
    _text("role"),
    _integer("created_at_ms"),
    _integer("deleted_at_ms", is_nullable=True),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("service_account_by_project", "project_id", "created_at_ms"),
)

key = sa.Table(
    "key",
    metadata,
    _text("id"),
    _text("root_key_id"),
    _text("project_id", sa.ForeignKey("project.id")),
    _text("name"),
    _text("hash"),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    _text("redacted"),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("models", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("ip_ranges", sa.JSON, nullable=False),
    _text("service_account", is_nullable=True),
    _integer("expires_at_ms", is_nullable=True),
    _integer("revoked_at_ms", is_nullable=True),
    _integer("created_at_ms"),
    _integer("last_used_at_ms", is_nullable=True),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("key_by_project", "project_id", "created_at_ms"),
    sa.Index("key_by_creation", "created_at_ms"),
)

admin_key = sa.Table(
    "admin_key",
    metadata,
    _text("id"),
    _text("name"),
    _text("role"),
    _text("hash"),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    _text("redacted"),
    _integer("expires_at_ms", is_nullable=True),
    _integer("revoked_at_ms", is_nullable=True),
    _integer("created_at_ms"),
    _integer("last_used_at_ms", is_nullable=True),
    # Of an owner or a reader; NULL: an operator's key.
    _text("organization_id", is_nullable=True),
    sa.PrimaryKeyConstraint("id"),
)

limit_rule = sa.Table(
    "limit_rule",
    metadata,
    _text("id"),
    _text("scope"),
    _text("scope_id"),
    _text("kind"),
    # A reserved word of both databases.
    sa.Column("window", sa.Text, nullable=False, quote=True),
    _integer("multiple"),
    _integer("amount"),
    # Empty means every model: a NULL would not count as equal in the constraint.
    _text("model"),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("scope", "scope_id", "kind", "window", "multiple", "model", name="limit_rule_once"),
)

price = sa.Table(
    "price",
    metadata,
    _text("id"),
    _text("provider"),
    _text("model"),
    sa.Column("components", sa.JSON, nullable=False),
    _integer("effective_from_ms"),
    _text("source"),
    _integer("created_at_ms"),
    sa.PrimaryKeyConstraint("id"),
)

usage_record = sa.Table(
    "usage_record",
    metadata,
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
    *(_integer(name) for name in TOKEN_COLUMNS),
    _text("price_id", is_nullable=True),
    _integer("charge_nanos"),
    *(_integer(name) for name in COMPONENT_COLUMNS.values()),
    _integer("overrun_nanos"),
    _integer("admitted_at_ms"),
    _integer("time_to_first_token_ms", is_nullable=True),
    _integer("duration_ms"),
    _text("trace_id"),
    _integer("recorded_at_ms"),
    sa.PrimaryKeyConstraint("request_id", "attempt"),
    sa.Index("usage_record_by_organization", "organization_id", "admitted_at_ms"),
    sa.Index("usage_record_by_project", "project_id", "admitted_at_ms"),
    sa.Index("usage_record_by_root_key", "root_key_id", "admitted_at_ms"),
    # What was written lately: sealing looks there for records without a seal.
    sa.Index("usage_record_by_recording", "recorded_at_ms"),
    postgresql_partition_by="RANGE (request_id)",
)

usage_hour = sa.Table(
    "usage_hour",
    metadata,
    *(_integer(name) if name == "hour_ms" else _text(name) for name in HOUR_KEY_COLUMNS),
    *(_integer(name) for name in MEASURE_COLUMNS),
    sa.PrimaryKeyConstraint(*HOUR_KEY_COLUMNS),
    sa.Index("usage_hour_by_project", "project_id", "hour_ms"),
    sa.Index("usage_hour_by_root_key", "root_key_id", "hour_ms"),
    sa.Index("usage_hour_by_hour", "hour_ms"),
    postgresql_with={"fillfactor": 70},
)

# Requests that were refused and have no record: counted, approximately, and never billed from.
refusal_hour = sa.Table(
    "refusal_hour",
    metadata,
    *(_integer(name) if name == "hour_ms" else _text(name) for name in REFUSAL_KEY_COLUMNS),
    _integer("requests"),
    sa.PrimaryKeyConstraint(*REFUSAL_KEY_COLUMNS),
    sa.Index("refusal_hour_by_hour", "hour_ms"),
)

adjustment = sa.Table(
    "adjustment",
    metadata,
    _text("id"),
    _text("organization_id"),
    _text("project_id"),
    _text("root_key_id", is_nullable=True),
    _integer("period_start_ms"),
    _integer("nanos"),
    _integer("tokens"),
    _text("reason"),
    _integer("created_at_ms"),
    _text("created_by"),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("adjustment_by_organization", "organization_id", "period_start_ms"),
    sa.Index("adjustment_by_project", "project_id", "period_start_ms"),
    sa.Index("adjustment_by_root_key", "root_key_id", "period_start_ms"),
)

worker = sa.Table(
    "worker",
    metadata,
    _text("id"),
    _text("host"),
    _text("journal_id"),
    _integer("started_at_ms"),
    _integer("seen_at_ms"),
    _integer("unshipped_records"),
    sa.Column("is_leaving", sa.Boolean, nullable=False),
    sa.Column("is_cut_off", sa.Boolean, nullable=False, server_default=sa.false()),
    # The organizations of which it is; NULL: of any, as far as anybody knows.
    sa.Column("cut_off", sa.JSON(none_as_null=True), nullable=True),
    sa.PrimaryKeyConstraint("id"),
)

# A seal is of a usage record (kind "usage") or of an adjustment; what the other kind names is NULL.
seal = sa.Table(
    "seal",
    metadata,
    _text("organization_id"),
    sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
    _text("kind"),
    _text("request_id", is_nullable=True),
    sa.Column("attempt", sa.Integer, nullable=True),
    _text("adjustment_id", is_nullable=True),
    _text("previous_hash"),
    _text("hash"),
    _integer("sealed_at_ms"),
    sa.PrimaryKeyConstraint("organization_id", "sequence"),
    sa.UniqueConstraint("request_id", "attempt", name="seal_of_record_once"),
    sa.UniqueConstraint("adjustment_id", name="seal_of_adjustment_once"),
    sa.CheckConstraint(
        "(kind = 'usage' AND request_id IS NOT NULL AND attempt IS NOT NULL AND adjustment_id IS NULL) OR "
        "(kind = 'adjustment' AND request_id IS NULL AND attempt IS NULL AND adjustment_id IS NOT NULL)",
        name="seal_is_of_one_thing",
    ),
)

meta = sa.Table(
    "meta",
    metadata,
    _text("name"),
    _text("value"),
    sa.PrimaryKeyConstraint("name"),
)

provider_setting = sa.Table(
    "provider_setting",
    metadata,
    _text("name"),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("sealed_credential", sa.LargeBinary, nullable=True),
    _integer("updated_at_ms"),
    sa.PrimaryKeyConstraint("name"),
)

route_setting = sa.Table(
    "route_setting",
    metadata,
    _text("model"),
    sa.Column("targets", sa.JSON, nullable=False),
    _integer("updated_at_ms"),
    sa.PrimaryKeyConstraint("model"),
)

audit_event = sa.Table(
    "audit_event",
    metadata,
    _text("id"),
    _text("action"),
    _text("target_id"),
    _text("organization_id", is_nullable=True),
    _text("project_id", is_nullable=True),
    _text("actor_kind"),
    _text("actor_id"),
    _text("actor_role"),
    sa.Column("before", sa.JSON(none_as_null=True), nullable=True, quote=True),
    sa.Column("after", sa.JSON(none_as_null=True), nullable=True, quote=True),
    _text("address", is_nullable=True),
    _text("request_id", is_nullable=True),
    _integer("created_at_ms"),
    sa.PrimaryKeyConstraint("id"),
    sa.Index("audit_event_by_organization", "organization_id", "created_at_ms"),
    sa.Index("audit_event_by_creation", "created_at_ms"),
)

"""The catalog (organizations, projects, keys, limits, prices) and the ledger (records, hours, adjustments).

On PostgreSQL usage records are partitioned by month: the time is the first 48 bits of a request id, so that a bound
is the first UUIDv7 of its month (RFC 9562), and a record that arrives late lands in its own month.
"""

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
    if op.get_context().dialect.name == "postgresql":
        _refuse_changes_in_postgresql()
        _partition_by_month()
    else:
        _refuse_changes_in_sqlite()


def downgrade() -> None:
    # Dropping a table drops its indexes, triggers and partitions.
    tables = ("meta", "adjustment", "usage_hour", "usage_record", "price", "limit_rule", "admin_key", "key", "project")
    for table in (*tables, "organization"):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        for function in ("ensure_usage_partitions(integer)", "make_usage_partition(date)", "refuse_change()"):
            op.execute(f"DROP FUNCTION {function}")


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
        postgresql_partition_by="RANGE (request_id)",
    )
    op.create_index("usage_record_by_organization", "usage_record", ["organization_id", "admitted_at_ms"])
    op.create_index("usage_record_by_project", "usage_record", ["project_id", "admitted_at_ms"])
    op.create_index("usage_record_by_root_key", "usage_record", ["root_key_id", "admitted_at_ms"])
    # What was written lately: sealing looks there for records without a seal.
    op.create_index("usage_record_by_recording", "usage_record", ["recorded_at_ms"])


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
        # Room on each page, so that adding to an hour touches no index.
        postgresql_with={"fillfactor": 70},
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
        _text("created_by"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("adjustment_by_organization", "adjustment", ["organization_id", "period_start_ms"])
    op.create_index("adjustment_by_project", "adjustment", ["project_id", "period_start_ms"])
    op.create_index("adjustment_by_root_key", "adjustment", ["root_key_id", "period_start_ms"])


def _refuse_changes_in_sqlite() -> None:
    for table in APPEND_ONLY:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _refuse_changes_in_postgresql() -> None:
    # For each statement: one for each row would let a TRUNCATE pass.
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def _partition_by_month() -> None:
    op.execute("CREATE TABLE usage_record_default PARTITION OF usage_record DEFAULT")
    # A trigger for each statement is not inherited: it fires for the table that the statement names.
    op.execute(
        "CREATE TRIGGER usage_record_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_record_default "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    _create_partition_functions()
    op.execute("SELECT ensure_usage_partitions(3)")


def _create_partition_functions() -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    # Made apart and attached: CREATE TABLE ... PARTITION OF would wait for every reader and writer of the table.
    op.execute(
        f"""
        CREATE FUNCTION make_usage_partition(first_day date) RETURNS void
        LANGUAGE plpgsql SET search_path = {schema}, pg_temp SET timezone = 'UTC' AS $$
        DECLARE
            name text := 'usage_record_' || to_char(first_day, 'YYYY_MM');
            bounds text[];
        BEGIN
            SELECT array_agg(
                substr(hex, 1, 8) || '-' || substr(hex, 9, 4) || '-7000-8000-000000000000' ORDER BY hex
            ) INTO bounds
            FROM (
                SELECT lpad(to_hex((extract(epoch FROM day::timestamptz) * 1000)::bigint), 12, '0') AS hex
                FROM unnest(ARRAY[first_day, (first_day + interval '1 month')::date]) AS day
            ) AS months;
            EXECUTE format('CREATE TABLE %I (LIKE usage_record INCLUDING ALL)', name);
            EXECUTE format(
                'CREATE TRIGGER usage_record_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON %I '
                'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name
            );
            EXECUTE format(
                'ALTER TABLE usage_record ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, bounds[1], bounds[2]
            );
        END $$
        """  # noqa: S608 - the schema is quoted by PostgreSQL
    )
    # It runs with the rights of its owner, so that the application's role needs none on the schema. A month of which
    # the default partition holds a row cannot have a partition any more; the rows are an alarm of their own.
    op.execute(
        f"""
        CREATE FUNCTION ensure_usage_partitions(months_ahead integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = {schema}, pg_temp SET timezone = 'UTC' SET lock_timeout = '200ms' AS $$
        DECLARE
            first_day date;
            made integer := 0;
        BEGIN
            IF months_ahead NOT BETWEEN 0 AND 24 THEN
                RAISE EXCEPTION 'months_ahead is %, not 0 to 24', months_ahead;
            END IF;
            IF NOT pg_try_advisory_xact_lock(hashtext('{schema}.usage_record partitions')) THEN
                RETURN 0;
            END IF;
            FOR month IN -1..months_ahead LOOP
                first_day := date_trunc('month', now()) + make_interval(months => month);
                IF to_regclass('usage_record_' || to_char(first_day, 'YYYY_MM')) IS NULL THEN
                    BEGIN
                        PERFORM make_usage_partition(first_day);
                        made := made + 1;
                    EXCEPTION WHEN check_violation THEN
                        RAISE WARNING 'usage_record_default has rows of the month of %', first_day;
                    END;
                END IF;
            END LOOP;
            RETURN made;
        END $$
        """
    )
    for function in ("ensure_usage_partitions(integer)", "make_usage_partition(date)"):
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")

"""What the application's role may do on PostgreSQL, where it is not the role that owns the schema.

Invariant: it owns nothing, and holds no right but these: of the append-only tables it may read and add rows, so that
no bug and no injected statement changes what was recorded. Not here: making roles, which is the operator's.
"""

import sqlalchemy as sa

_READ_AND_ADD = ("SELECT", "INSERT")
_READ_AND_PUT = ("SELECT", "INSERT", "UPDATE")
_READ_PUT_AND_REMOVE = ("SELECT", "INSERT", "UPDATE", "DELETE")

RIGHTS: dict[str, tuple[str, ...]] = {
    "usage_record": _READ_AND_ADD,
    "usage_record_default": ("SELECT",),
    "price": _READ_AND_ADD,
    "adjustment": _READ_AND_ADD,
    "seal": _READ_AND_ADD,
    "invoice": _READ_AND_ADD,
    "spend_alert_firing": _READ_AND_ADD,
    "spend_alert": _READ_PUT_AND_REMOVE,
    "webhook": ("SELECT", "INSERT", "DELETE"),
    "outbox": _READ_PUT_AND_REMOVE,
    "turn": _READ_AND_PUT,
    "export_cursor": _READ_AND_PUT,
    "usage_hour": _READ_AND_PUT,
    "refusal_hour": _READ_AND_PUT,
    "audit_event": _READ_AND_ADD,
    "organization": _READ_AND_PUT,
    "project": _READ_AND_PUT,
    "service_account": _READ_AND_PUT,
    "key": _READ_AND_PUT,
    "admin_key": _READ_AND_PUT,
    "meta": _READ_AND_PUT,
    "limit_rule": ("SELECT", "INSERT", "DELETE"),
    "provider_setting": _READ_PUT_AND_REMOVE,
    "route_setting": _READ_PUT_AND_REMOVE,
    "worker": _READ_PUT_AND_REMOVE,
    "alembic_version": ("SELECT",),
}
"""The rights of the application's role, by table."""
FUNCTIONS = ("ensure_usage_partitions(integer)",)


def grant_rights(role: str, connection: sa.Connection) -> None:
    """Give a role exactly the rights of the application, in the schema that the connection works in."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    name = quote(role)
    schema = quote(connection.scalar(sa.text("SELECT current_schema()")) or "public")
    statements = [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {name}",
        f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM {name}",
        f"REVOKE CREATE ON SCHEMA {schema} FROM {name}",
        f"GRANT USAGE ON SCHEMA {schema} TO {name}",
        *(f"GRANT {', '.join(rights)} ON {schema}.{quote(table)} TO {name}" for table, rights in RIGHTS.items()),
        *(f"GRANT EXECUTE ON FUNCTION {schema}.{function} TO {name}" for function in FUNCTIONS),
    ]
    for statement in statements:
        connection.exec_driver_sql(statement)

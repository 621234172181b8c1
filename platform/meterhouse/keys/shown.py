"""What the audit log shows of an object: the fields that anybody may see who may see the object, and no secret."""

from collections.abc import Iterable

from meterhouse.audit import Fields
from meterhouse.db.keys import StoredAdminKey, StoredKey
from meterhouse.db.organizations import Project
from meterhouse.metering import Limit, Scope


def fields_of_project(project: Project) -> Fields:
    """Show a project."""
    return {"name": project.name, "archived_at_ms": project.archived_at_ms, **fields_of_models(project)}


def fields_of_models(project: Project) -> Fields:
    """Show which models a project may use."""
    return {"model_mode": project.model_mode, "model_ids": list(project.model_ids)}


def fields_of_key(key: StoredKey) -> Fields:
    """Show a key."""
    return {
        "name": key.name,
        "redacted_value": key.redacted,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "ip_ranges": list(key.ip_ranges),
        "service_account": key.service_account,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "limits": fields_of_limits(limit for limit in key.limits if limit.scope is Scope.KEY),
    }


def fields_of_admin_key(key: StoredAdminKey) -> Fields:
    """Show an admin key."""
    return {
        "name": key.name,
        "role": key.role,
        "redacted_value": key.redacted,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
    }


def fields_of_limits(limits: Iterable[Limit]) -> list[Fields]:
    """Show limits; amounts of ``spend`` are nanos of USD."""
    return [
        {
            "kind": limit.kind.value,
            "window": limit.window.value,
            "multiple": limit.multiple,
            "amount": limit.amount,
            "model": limit.model,
        }
        for limit in limits
    ]

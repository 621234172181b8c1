"""Who speaks: the resolved identity of one request."""

from dataclasses import dataclass
from enum import StrEnum

from meterhouse.metering import Limit


class KeyScope(StrEnum):
    """What a tenant's key may do."""

    INFERENCE = "inference"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Principal:
    """The organization, project and key behind a request, with everything that binds it."""

    organization_id: str
    project_id: str
    key_id: str
    root_key_id: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    """None: every model."""
    limits: tuple[Limit, ...]
    expires_at_ms: int | None

    @property
    def has_budget(self) -> bool:
        """Whether money is bounded, so that everything asked for must have a price."""
        return any(limit.kind == "spend" for limit in self.limits)


class Role(StrEnum):
    """How much an administrator may do; ``admin.roles`` says what."""

    OPERATOR = "operator"
    """Everything, in every organization."""
    OWNER = "owner"
    """Changes one organization."""
    READER = "reader"
    """Looks at one organization."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An administrator: an admin key with a role."""

    key_id: str
    role: str

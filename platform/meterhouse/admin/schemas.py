"""The JSON of the administration API: requests are checked strictly, answers never hold a hash or a secret."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from meterhouse.db.keys import StoredKey
from meterhouse.db.organizations import Organization, Project
from meterhouse.errors import Malformed
from meterhouse.keys.issuing import MAX_SERVICE_ACCOUNT_LENGTH, MOST_MODELS, MOST_RANGES
from meterhouse.limits.limit import format_limit
from meterhouse.metering import Limit, Scope
from meterhouse.money import Component, Meterable, Price

Name = Field(min_length=1, max_length=200)


class Strict(BaseModel):
    """A request body: an unknown field is a mistake, and said so."""

    model_config = ConfigDict(extra="forbid")


class OrganizationRequest(Strict):
    """A new organization."""

    name: str = Name


class OrganizationObject(BaseModel):
    """Who pays."""

    id: str
    object: str = "organization"
    name: str
    created_at: int

    @classmethod
    def of(cls, stored: Organization) -> "OrganizationObject":
        """Show a stored organization."""
        return cls(id=stored.id, name=stored.name, created_at=stored.created_at_ms // 1000)


class ProjectRequest(Strict):
    """A new project."""

    organization_id: str
    name: str = Name


class ProjectObject(BaseModel):
    """A part of an organization with its own keys and limits."""

    id: str
    object: str = "project"
    organization_id: str
    name: str
    created_at: int
    archived_at: int | None

    @classmethod
    def of(cls, stored: Project) -> "ProjectObject":
        """Show a stored project."""
        return cls(
            id=stored.id,
            organization_id=stored.organization_id,
            name=stored.name,
            created_at=stored.created_at_ms // 1000,
            archived_at=seconds(stored.archived_at_ms),
        )


class KeyRequest(Strict):
    """A new key."""

    name: str = Name
    project_id: str
    expires_in_seconds: int | None = Field(None, gt=0)
    models: list[str] | None = Field(
        None, min_length=1, max_length=MOST_MODELS, description="The only models it may use; null: every model"
    )
    limits: str = Field(
        "", description="`requests 600/minute; tokens 200000/minute; concurrent 20; spend 25 USD/month`"
    )
    ip_ranges: list[str] = Field(
        default_factory=list,
        max_length=MOST_RANGES,
        description="CIDR networks it may come from; empty: anywhere",
    )
    scopes: list[str] = Field(default_factory=lambda: ["inference", "usage"], min_length=1)
    service_account: str | None = Field(None, min_length=1, max_length=MAX_SERVICE_ACCOUNT_LENGTH)


class RotateRequest(Strict):
    """How long the old key goes on working."""

    overlap_seconds: int = Field(86_400, ge=0, le=604_800)


class KeyObject(BaseModel):
    """A key, without its secret."""

    id: str
    object: str = "key"
    organization_id: str
    project_id: str
    name: str
    redacted_value: str
    scopes: list[str]
    models: list[str] | None
    limits: list[str] = Field(description="Its own limits; those of its project and organization bind it as well")
    ip_ranges: list[str]
    service_account: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None

    @classmethod
    def of(cls, stored: StoredKey) -> "KeyObject":
        """Show a stored key."""
        return cls(**_key_fields(stored))


class IssuedKeyObject(KeyObject):
    """A new key; ``value`` is shown this once."""

    value: str

    @classmethod
    def with_value(cls, stored: StoredKey, value: str) -> "IssuedKeyObject":
        """Show a new key with its text."""
        return cls(**_key_fields(stored), value=value)


class LimitsRequest(Strict):
    """All limits of one organization, project or key; what is not named is removed."""

    scope: Scope
    scope_id: str
    limits: str = Field(description="Clauses separated by `;`; empty removes all")


class LimitsObject(BaseModel):
    """The limits that one organization, project or key has itself."""

    object: str = "limits"
    scope: Scope
    scope_id: str
    limits: list[str]

    @classmethod
    def of(cls, scope: Scope, scope_id: str, limits: list[Limit]) -> "LimitsObject":
        """Show stored limits."""
        return cls(scope=scope, scope_id=scope_id, limits=[format_limit(limit) for limit in limits])


class PriceRequest(Strict):
    """A price from a moment on, in USD per million tokens; it replaces the one in force then."""

    provider: str = Name
    model: str = Field(min_length=1, max_length=256, description="The provider's own name of the model")
    input_usd: str = Field(description='A decimal in quotes, so that no digit is lost: `"2.50"`')
    output_usd: str
    cached_input_usd: str | None = None
    cache_write_usd: str | None = None
    request_usd: str | None = Field(None, description="Per single request")
    effective_from: int | None = Field(
        None,
        ge=0,
        le=32_503_680_000,
        description="Unix seconds; null: now. In the past only where the model had no price",
    )


class ComponentObject(BaseModel):
    """One line of a price."""

    kind: Meterable
    nanos_per_million: int
    from_input_tokens: int
    utc_minutes: tuple[int, int] | None
    service_tier: str | None
    weekdays: tuple[int, ...] | None

    @classmethod
    def of(cls, component: Component) -> "ComponentObject":
        """Show a component."""
        return cls(**{name: getattr(component, name) for name in cls.model_fields})


class PriceObject(BaseModel):
    """What a model of a provider costs from a time on."""

    id: str
    object: str = "price"
    provider: str
    model: str
    effective_from: int
    source: str
    components: list[ComponentObject]

    @classmethod
    def of(cls, price: Price) -> "PriceObject":
        """Show a price."""
        return cls(
            id=price.id,
            provider=price.provider,
            model=price.model,
            effective_from=price.effective_from_ms // 1000,
            source=price.source,
            components=[ComponentObject.of(component) for component in price.components],
        )


Item = TypeVar("Item")


class Listing(BaseModel, Generic[Item]):
    """A page; ``after`` of the next one is ``last_id``."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


def _key_fields(stored: StoredKey) -> dict[str, Any]:
    own = [limit for limit in stored.limits if limit.scope is Scope.KEY]
    return {
        "id": stored.id,
        "organization_id": stored.organization_id,
        "project_id": stored.project_id,
        "name": stored.name,
        "redacted_value": stored.redacted,
        "scopes": sorted(stored.scopes),
        "models": None if stored.models is None else sorted(stored.models),
        "limits": [format_limit(limit) for limit in own],
        "ip_ranges": list(stored.ip_ranges),
        "service_account": stored.service_account,
        "created_at": stored.created_at_ms // 1000,
        "expires_at": seconds(stored.expires_at_ms),
        "revoked_at": seconds(stored.revoked_at_ms),
        "last_used_at": seconds(stored.last_used_at_ms),
    }


def refuse_given(body: BaseModel, *names: str) -> None:
    """Refuse a field of OpenAI's that has no meaning here, unless it is null.

    Raises:
        Malformed: One was given.
    """
    for name in names:
        if getattr(body, name) is not None:
            raise Malformed(f"'{name}' is not supported here. Leave it out.", param=name, code="unsupported_parameter")


def seconds(milliseconds: int | None) -> int | None:
    """Return Unix seconds, as OpenAI's API has times."""
    return None if milliseconds is None else milliseconds // 1000

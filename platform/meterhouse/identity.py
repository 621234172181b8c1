"""Who speaks: the resolved identity of one request."""

from dataclasses import dataclass, field
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
    project_models: frozenset[str] | None = None
    """The only models of its project; None: every model."""
    denied_models: frozenset[str] = frozenset()
    """Models that its project may not use, by the names under which they are listed."""
    origins: tuple[str, ...] | None = None
    """Of a client token: the pages that may use it, as far as a browser says; None: it is a key."""
    has_budget: bool = field(init=False, repr=False, compare=False)
    """Whether money is bounded, so that everything asked for must have a price."""
    may_use_all: bool = field(init=False, repr=False, compare=False)
    """Whether no model is out of bounds."""
    has_model_limit: bool = field(init=False, repr=False, compare=False)
    """Whether a limit binds one model only."""

    def __post_init__(self) -> None:
        """Work out once what every request asks."""
        object.__setattr__(self, "has_budget", any(limit.kind == "spend" for limit in self.limits))
        may_use_all = self.models is None and self.project_models is None and not self.denied_models
        object.__setattr__(self, "may_use_all", may_use_all)
        object.__setattr__(self, "has_model_limit", any(limit.model is not None for limit in self.limits))

    def may_use(self, *names: str) -> bool:
        """Say whether key and project may use a model, by the names that it goes by."""
        if self.models is not None and self.models.isdisjoint(names):
            return False
        if self.project_models is not None and self.project_models.isdisjoint(names):
            return False
        return self.denied_models.isdisjoint(names)


class Role(StrEnum):
    """How much an administrator may do; ``admin.roles`` says what."""

    OPERATOR = "operator"
    """Everything, in every organization."""
    OWNER = "owner"
    """Changes one organization."""
    READER = "reader"
    """Looks at one organization."""


class ActorKind(StrEnum):
    """What an administrator showed."""

    ADMIN_KEY = "admin_key"
    JWT = "jwt"
    CLI = "cli"
    """Nothing: a command, by a user of the operating system."""
    PROCESS = "process"
    """Nothing: whoever can start a command has the database anyway."""


@dataclass(frozen=True, slots=True)
class Actor:
    """An administrator: who changes something, or looks at what is not its own key's."""

    kind: ActorKind
    id: str
    """The id of an admin key, or the subject of a JWT."""
    role: Role
    organization_id: str | None = None
    """The one that it is bound to; None only for an operator."""

    def __post_init__(self) -> None:
        if (self.role is Role.OPERATOR) != (self.organization_id is None):
            raise ValueError("an operator is bound to no organization, everybody else to one")

    def may_see(self, organization_id: str | None) -> bool:
        """Say whether an organization's objects are within reach; those of no organization are the operators'."""
        return self.role is Role.OPERATOR or (organization_id is not None and self.organization_id == organization_id)


@dataclass(frozen=True, slots=True)
class Author:
    """An actor at the moment of a change, as the audit log names it."""

    actor: Actor
    address: str | None = None
    request_id: str | None = None
    """As clients see it (``req_...``)."""


COMMAND_LINE = Author(Actor(ActorKind.PROCESS, "meterhouse", Role.OPERATOR))
"""The author of what is changed without a server: by a command, or at the first start."""

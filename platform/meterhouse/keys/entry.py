"""A key as the keyring remembers it: who it makes of a request, whether it is still good, from where it may come.

Who an admin key makes of one is here too; it is not remembered.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from meterhouse.db.keys import StoredAdminKey, StoredKey
from meterhouse.db.organizations import ALLOW_LIST, DENY_LIST
from meterhouse.errors import NotPermitted
from meterhouse.identity import Actor, ActorKind, Principal, Role

MAPPED_BITS = 96
"""Of an IPv6 address that is an IPv4 one, before that (``::ffff:192.0.2.7``)."""
_UNBOUND = "This admin key belongs to no organization and may do nothing. Ask an operator for another one."


@dataclass(slots=True)
class Entry:
    """What was read of a key, and when. Nothing of it changes but the mark."""

    key: StoredKey
    principal: Principal
    networks: tuple[IPv4Network | IPv6Network, ...]
    read_at_ms: int
    mirror_at_ms: int
    """When it is to be mirrored again."""
    mark: bytes | None = None
    """Of the header whose key was found good by this reading, or one before it that found the same
    (``secret.HeaderMarks``)."""

    def admits(self, address: str | None) -> bool:
        """Say whether the key may come from an address; None, a local socket, passes only keys without networks."""
        return not self.networks or _is_within(address, self.networks)


def entry_of(stored: StoredKey, read_at_ms: int, mirror_at_ms: int) -> Entry:
    """Make an entry of what a store has."""
    principal = Principal(
        organization_id=stored.organization_id,
        project_id=stored.project_id,
        key_id=stored.id,
        root_key_id=stored.root_key_id,
        scopes=stored.scopes,
        models=stored.models,
        limits=stored.limits,
        expires_at_ms=stored.expires_at_ms,
        project_models=frozenset(stored.project_model_ids) if stored.project_model_mode == ALLOW_LIST else None,
        denied_models=frozenset(stored.project_model_ids if stored.project_model_mode == DENY_LIST else ()),
    )
    return Entry(stored, principal, tuple(map(_network_of, stored.ip_ranges)), read_at_ms, mirror_at_ms)


def actor_of(stored: StoredAdminKey) -> Actor:
    """Say who an admin key makes of a request; raises NotPermitted when it is bound to nothing."""
    try:
        return Actor(ActorKind.ADMIN_KEY, stored.id, Role(stored.role), stored.organization_id)
    except ValueError:
        # Before an owner or a reader was bound to an organization, such keys could be made, and could do nothing.
        raise NotPermitted(_UNBOUND, detail=f"{stored.id} is a {stored.role}'s of no organization") from None


def why_dead(stored: StoredKey | StoredAdminKey, now_ms: int) -> str | None:
    """Say why a key opens nothing whoever holds it; None: it is good."""
    if stored.revoked_at_ms is not None:
        return "is revoked"
    if stored.expires_at_ms is not None and now_ms >= stored.expires_at_ms:
        return "has expired"
    if isinstance(stored, StoredKey) and stored.project_archived_at_ms is not None:
        return "belongs to an archived project"
    return None


def _network_of(text: str) -> IPv4Network | IPv6Network:
    """Read a range; one of IPv4 that is written in IPv6's form is one of IPv4, as such an address is."""
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((int(mapped), network.prefixlen - MAPPED_BITS))
    return network


def _is_within(address: str | None, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    if address is None:
        return False
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        # A socket that listens on IPv6 shows an IPv4 client in this form.
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)

"""Whether an address may be a provider's that was set through the API: a public one, unless the host allows others.

Invariant: whoever may administrate Meterhouse may not thereby reach what only its host can reach. What a name resolves
to is checked where it is connected to (``upstream``), so that it cannot change in between.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(host: str) -> bool:
    """Whether a literal address is one of the public internet."""
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None,))[0]
        if embedded is None and address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            address = embedded
    return address.is_global and not address.is_multicast


def check_public(base_url: str) -> None:
    """Refuse a base URL that can be seen not to be public and secure.

    Raises:
        ValueError: with a text that says what to change.
    """
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        raise ValueError("a provider that is set through the API is reached by https://, or its credential would leak")
    try:
        is_allowed = is_public(host)
    except ValueError:
        is_allowed = "." in host and not host.endswith((".localhost", ".local", ".internal"))
    if not is_allowed:
        raise ValueError(
            f"{host} is a private address; METERHOUSE_PRIVATE_PROVIDERS=true allows such, or set it in the environment"
        )

"""Whether an address may be a provider's that was set through the API: a public one, unless the host allows others.

Invariant: whoever may administrate Meterhouse may not thereby reach what only its host can reach. What a name resolves
to is checked where it is connected to (``http1.site``), so that it cannot change in between.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that is given out of IPv6 (RFC 4291, 2.4). What is outside is nobody's, or a network's own: its translations to
IPv4, its sites, its overlays."""
_NEVER_PUBLIC = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"), IPv6Network("3fff::/20"))
"""What ``ipaddress`` may take for global: addresses of protocols (RFC 6890), one of which a cloud has for its machines'
metadata; that at which Azure's host answers its machines; and of documentation (RFC 9637)."""
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)


def is_public(host: str) -> bool:
    """Whether a literal address is one of the public internet."""
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            address = embedded
        elif address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _NEVER_PUBLIC)


def may_be_public(host: str) -> bool:
    """Whether a host is a public address, or a name that may lead to one; what it does lead to is checked later.

    A host whose last part is a number is an address to every client (the URL standard says so), in forms that the
    system reads and that meet no resolver: ``127.1``, ``0177.0.0.1``, ``127.0.0.1.``. Only the plain form may be used.
    """
    try:
        return is_public(host)
    except ValueError:
        bare = host.removesuffix(".")
    is_address = _NUMBER.fullmatch(bare.rpartition(".")[2]) is not None
    return host.isascii() and not is_address and "." in bare and not bare.lower().endswith(_LOCAL_SUFFIXES)


def check_public(base_url: str) -> None:
    """Refuse a base URL that can be seen not to be public and secure.

    Raises:
        ValueError: with a text that says what to change.
    """
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        raise ValueError("a provider that is set through the API is reached by https://, or its credential would leak")
    if not host.isascii():
        raise ValueError("the host of a provider that is set through the API is written in ASCII (xn--...)")
    if not may_be_public(host):
        raise ValueError(
            f"{host} is a private address; METERHOUSE_PRIVATE_PROVIDERS=true allows such, or set it in the environment"
        )

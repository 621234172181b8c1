"""Whether an address may be a provider's that was set through the API: a public one, unless the host allows others.

Invariant: whoever may administrate Meterhouse may not thereby reach what only its host can reach. What a name resolves
to is checked where it is connected to (``http1.site``), so that it cannot change in between.
"""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_NAT64 = IPv6Network("64:ff9b::/96")
_NEVER_PUBLIC = (IPv6Network("::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("fec0::/10"))
"""What ``ipaddress`` may take for global: an IPv4 address in a form long gone (RFC 4291, 2.5.5.1), a network's own
translation to IPv4 (RFC 8215), and a site's own addresses (RFC 3879)."""
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)


def is_public(host: str) -> bool:
    """Whether a literal address is one of the public internet."""
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None,))[0]
        if any(address in network for network in _NEVER_PUBLIC):
            return False
        if embedded is None and address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            address = embedded
    return address.is_global and not address.is_multicast


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

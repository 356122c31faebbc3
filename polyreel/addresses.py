"""Which addresses the server reaches for clients: the public internet, and what the operator allows besides.

The table is written out, from IANA's registries of special-purpose addresses and three of cloud providers'.
`ipaddress.is_global` is not asked: on Python 3.11.7 it calls 192.0.0.192 (Oracle's metadata), 64:ff9b::a9fe:a9fe (NAT64
of 169.254.169.254), 2002:7f00:1:: (6to4 of 127.0.0.1), fec0::/10 and ff02::1 global.

Knows neither names nor URLs; `polyreel.outbound` resolves the one and reads the other.

Source: iana.org/assignments/iana-ipv4-special-registry, iana.org/assignments/iana-ipv6-special-registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: What is not public in IPv4, and why. The rest is.
_SPECIAL_V4 = {
    IPv4Network(network): kind
    for network, kind in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "carrier-grade NAT",  # 100.100.100.200 too, Alibaba's metadata
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "Azure's platform",
        "169.254.0.0/16": "link-local",  # 169.254.169.254 too, the metadata of most clouds
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "IETF protocols",  # 192.0.0.192 too, Oracle's metadata
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "AMT",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",  # 255.255.255.255 too
    }.items()
}

#: All that is assigned as public in IPv6. Outside lie ::1, mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96), fc00::/7,
#: fe80::/10, fec0::/10 and ff00::/8: also what would lead to a public IPv4 address inside.
_PUBLIC_V6 = IPv6Network("2000::/3")

#: What is not public within that, and why.
_SPECIAL_V6 = {
    IPv6Network(network): kind
    for network, kind in {
        "2001::/23": "IETF protocols",  # Teredo (2001::/32) too, which holds an IPv4 address
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",  # holds an IPv4 address
        "2620:4f:8000::/48": "AS112",
        "3fff::/20": "documentation",
    }.items()
}

#: host, 10.0.0.0/8, host:8080, [fd00::1]:8080, fd00::/8
_ENTRY = re.compile(
    r"(?P<host>\[[^]]*]|[^:]*)(:(?P<port>[0-9]{1,5}))?|(?P<bare_v6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]+)?)"
)

#: A name as resolvers take it, without the dot at the end; `_` is in no standard and in many clusters.
NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")

#: What resolvers read as an address, also where it is written in no standard way: 127.1, 0x7f000001, 017.0.0.1.
ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def why_not_public(address: Address) -> str | None:
    """Return what kind of address this is, None for a public one."""
    if isinstance(address, IPv6Address):
        if address not in _PUBLIC_V6:
            return "not public"
        return next((kind for network, kind in _SPECIAL_V6.items() if address in network), None)
    return next((kind for network, kind in _SPECIAL_V4.items() if address in network), None)


@dataclass(frozen=True)
class AllowList:
    """What the operator lets the server reach besides.

    Args:
        names: host and port; None is any port.
        networks: likewise.
    """

    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[Network, int | None], ...] = ()

    @classmethod
    def read(cls, entries: Iterable[str]) -> AllowList:
        """Return the list of "hooks.internal", "hooks.internal:8080", "10.0.0.0/8", "10.1.2.3:8080", "[fd00::1]:8080".

        Raises:
            ValueError: names the entry and what is wrong with it.
        """
        names: set[tuple[str, int | None]] = set()
        networks: list[tuple[Network, int | None]] = []
        for entry in entries:
            host, port = _split(entry)
            try:
                networks.append((ip_network(host), port))
            except ValueError as err:
                if "host bits" in str(err):
                    raise ValueError(f"{entry}: write the network's first address: {ip_network(host, False)}") from None
                if not NAME.fullmatch(host) or ENDS_IN_A_NUMBER.fullmatch(host):
                    raise ValueError(f"{entry}: {_RIGHT}") from None
                names.add((host, port))
        return cls(frozenset(names), tuple(networks))

    def names_host(self, host: str, port: int) -> bool:
        """Return whether a host stands here by name."""
        return (host, None) in self.names or (host, port) in self.names

    def holds(self, address: Address, port: int) -> bool:
        """Return whether an address lies in a network that stands here."""
        return any(address in network and only in (None, port) for network, only in self.networks)

    def may_hold(self, port: int) -> bool:
        """Return whether any network stands here that a name might lead to."""
        return any(only in (None, port) for _, only in self.networks)


_RIGHT = (
    "write a host (hooks.internal), an address or network (10.0.0.0/8), with a port after it or without (host:8080)"
)


def _split(entry: str) -> tuple[str, int | None]:
    found = _ENTRY.fullmatch(entry.strip().lower())
    if found is None:
        raise ValueError(f"{entry}: {_RIGHT}")
    host, port = found["bare_v6"] or found["host"], int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"{entry}: a port lies between 1 and 65535")
    return host.strip("[]").removesuffix("."), port


def literal(host: str) -> Address | None:
    """Return the address that a host is, None for a name.

    Args:
        host: lower case, without brackets.

    Raises:
        ValueError: an address that is not written in its plain form, or no name either.
    """
    if ":" in host or ENDS_IN_A_NUMBER.fullmatch(host):
        return ip_address(host)  # refuses 127.1, 0x7f.1, 010.0.0.1
    if not NAME.fullmatch(host):
        raise ValueError("neither a name nor an address")
    return None

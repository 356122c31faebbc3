"""URLs that clients give, taken apart once and strictly: what was checked is then what is asked.

Two readers of one URL are how servers are led astray (`https://good.example\\@10.0.0.1`), so what readers disagree
about is refused, and nothing reads the text again afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import quote

from polyreel.errors import InvalidRequest, UnsafeAddress

#: Longest URL that is taken, characters. Links that S3 signs with a session token have 1,500.
_LONGEST = 4096

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^#]*)(#.*)?")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+]|[^:\[\]]+)(:(?P<port>[0-9]{0,5}))?")

#: Characters that readers of URLs disagree about: one drops them, another ends the host there.
_DISPUTED = re.compile(r"[\x00-\x20\x7f\\]|\s")

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

#: The port of each scheme that is spoken.
PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Target:
    """Where a URL leads.

    Args:
        scheme: "https" or "http".
        host: in lower case, without brackets or a dot at the end; a name or an address.
        path: with the query, without the fragment; "" or beginning with "/".
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def take_apart(field: str, url: str) -> Target:
    """Return where a URL leads, wherever that is.

    Args:
        field: in the client's words, for messages.

    Raises:
        InvalidRequest: not an absolute URL, or one that is not read the same everywhere.
        UnsafeAddress: another scheme, or a user name in it.
    """
    found = None if len(url) > _LONGEST or _DISPUTED.search(url) else _URL.fullmatch(url)
    if found is None:
        raise InvalidRequest(
            f"{field} must be an absolute URL of at most {_LONGEST} characters, without spaces or backslashes", field
        )
    scheme = found["scheme"].lower()
    if scheme not in PORTS:
        raise UnsafeAddress(f"{field} must start with https://, got {scheme[:20]}:", field)
    if "@" in found["authority"]:
        raise UnsafeAddress(f"{field} must not hold a user name or password", field)
    authority = _AUTHORITY.fullmatch(found["authority"])
    if authority is None or not found["authority"].isascii():
        raise InvalidRequest(f"{field} must name its host in ASCII (xn--… for other letters)", field)
    port = int(authority["port"] or PORTS[scheme])
    if not 1 <= port <= 65535:
        raise InvalidRequest(f"{field} must have a port between 1 and 65535, got {port}", field)
    path = quote(found["path"], safe=_PRINTABLE)
    return Target(scheme, _host(field, authority["host"].lower()), port, f"/{path}" if path.startswith("?") else path)


def _host(field: str, host: str) -> str:
    if not host.startswith("["):
        return host.removesuffix(".")
    try:
        return str(IPv6Address(host[1:-1]))
    except ValueError:
        raise InvalidRequest(f"{field} must name a host, or an address in its plain form", field) from None

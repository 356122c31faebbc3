"""All that this server fetches or posts because a client named a URL goes through here, and only to public addresses.

The name is resolved here, every address that it leads to is looked at, and the connection is made to one of those that
were looked at: a name that answers something else a moment later changes nothing. TLS, SNI and the Host header keep the
name. No redirect is followed, no proxy of the environment is used, nothing is decompressed, and a call ends when its
time is over, however slowly the other side answers.

Blocks; callers on an event loop use a thread.

Source: OWASP's Server Side Request Forgery Prevention Cheat Sheet; CVE-2026-108719 and CVE-2026-24779 are this feature
done wrong. `docs/security.md` says it to operators.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

import httpcore2
import structlog

import polyreel
from polyreel.addresses import Address, AllowList, literal, why_not_public
from polyreel.connections import CONNECT_S, Guard, NoAddress, TooMuchWork
from polyreel.errors import OutboundFailed, UnsafeAddress
from polyreel.targets import PORTS, Target, take_apart

log = structlog.get_logger()


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched.

    Args:
        content: whole, as it was sent.
        content_type: in lower case, without parameters, "" where none was said; only what the other side claims.
    """

    content: bytes
    content_type: str


@dataclass(frozen=True)
class Reply:
    """What a receiver answered.

    Args:
        headers: names in lower case.
        body: as much as came in time, of the first `max_reply_bytes`.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a name, as the system resolves it.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in found))


@dataclass(frozen=True)
class Outbound:
    """Calls to URLs of clients.

    Args:
        allow: hosts and networks that may be reached besides, over http too and on any port (`AllowList.read`).
        http: whether public addresses may be reached over http on port 80 too.
        backend: makes connections to addresses (tests: one that only records).
        resolver: returns the addresses of a name.
        tls: None trusts what the system trusts, or what SSL_CERT_FILE names.
    """

    allow: Sequence[str] = ()
    http: bool = False
    backend: httpcore2.NetworkBackend = field(default_factory=httpcore2.SyncBackend)
    resolver: Callable[[str, int], list[str]] = resolve
    tls: ssl.SSLContext | None = None

    @cached_property
    def _allowed(self) -> AllowList:
        return AllowList.read(self.allow)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self.tls or httpcore2.default_ssl_context()

    def check_url(self, field: str, url: str) -> str:
        """Return a URL as it will be asked, without its fragment. Asks no DNS: where a name leads is seen at the call.

        Args:
            field: in the client's words, for messages.

        Raises:
            InvalidRequest: not an absolute URL.
            UnsafeAddress: a scheme, a port or a written address that is not reached for clients.
        """
        return str(self._checked(field, url))

    def fetch(self, url: str, max_bytes: int, total_s: float, field: str = "url") -> Fetched:
        """Return the file at a URL.

        Args:
            max_bytes: longest file that is read.
            total_s: for everything together: name, connection, TLS, question and answer.
            field: in the client's words, for messages.

        Raises:
            InvalidRequest, UnsafeAddress: as `check_url`, or the name leads elsewhere than to public addresses.
            OutboundFailed: no answer in time, not 200, compressed, or too long.
        """
        with self._answer(field, "GET", url, None, {}, total_s) as (answer, headers):
            if answer.status != 200:
                moved = ", and redirects are not followed" if 300 <= answer.status < 400 else ""
                raise OutboundFailed(f"{field} was answered with status {answer.status}{moved}")
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise OutboundFailed(f"{field} was answered compressed, though that was not asked for")
            content = bytearray()
            for chunk in answer.iter_stream():
                content += chunk
                if len(content) > max_bytes:
                    raise OutboundFailed(f"{field} leads to more than {max_bytes} bytes")
            return Fetched(bytes(content), headers.get("content-type", "").partition(";")[0].strip().lower())

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        total_s: float,
        max_reply_bytes: int,
        field: str = "url",
    ) -> Reply:
        """Post a body and return the answer, whatever its status.

        The status counts when it has come: what is missing of its body after `total_s` is left out.

        Args:
            headers: Content-Type among them; Host, Content-Length, User-Agent and Accept-Encoding are added.
            total_s: for everything together.

        Raises:
            InvalidRequest, UnsafeAddress: as `check_url`, or the name leads elsewhere than to public addresses.
            OutboundFailed: no answer in time.
        """
        with self._answer(field, "POST", url, body, headers, total_s) as (answer, replied):
            read = bytearray()
            with suppress(httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
                for chunk in answer.iter_stream():
                    read += chunk
                    if len(read) >= max_reply_bytes:
                        break
            return Reply(answer.status, replied, bytes(read[:max_reply_bytes]))

    @contextmanager
    def _answer(
        self, field: str, method: str, url: str, body: bytes | None, headers: Mapping[str, str], total_s: float
    ) -> Iterator[tuple[httpcore2.Response, dict[str, str]]]:
        """Ask, and give the answer with its body still to be read."""
        target = self._checked(field, url)
        guard = Guard(
            self.backend,
            self.resolver,
            lambda addresses: self._check_addresses(field, target, addresses),
            time.monotonic() + total_s,
        )
        asked = {
            "Host": target.authority,
            "User-Agent": f"Polyreel/{polyreel.__version__}",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **headers,
        }
        url_parts = httpcore2.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path or "/")
        try:
            with (
                httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=guard) as pool,
                pool.stream(method, url_parts, headers=list(asked.items()), content=body) as answer,
            ):
                yield (
                    answer,
                    {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers},
                )
        except NoAddress as err:
            # In the words for a name that leads inside: who asks is not to learn which of these exist.
            raise OutboundFailed(_not_public(field).message) from err
        except httpcore2.ConnectTimeout as err:
            raise OutboundFailed(f"{field} could not be reached within {min(total_s, CONNECT_S):g} s") from err
        except httpcore2.TimeoutException as err:
            raise OutboundFailed(f"{field} did not answer within {round(total_s, 2):g} s") from err
        except TooMuchWork as err:
            raise OutboundFailed(f"{field} was answered in too many small pieces") from err
        except httpcore2.ProtocolError as err:
            raise OutboundFailed(f"{field} was answered with something that is not HTTP") from err
        except httpcore2.NetworkError as err:
            if any(isinstance(cause, ssl.SSLError) for cause in err.args):  # the pool cuts the chain of causes
                raise OutboundFailed(f"{field} has no certificate that is valid for its name") from err
            raise OutboundFailed(f"{field} could not be reached, or hung up") from err

    def _checked(self, field: str, url: str) -> Target:
        """Return where a URL leads, if that may be asked as far as can be seen without asking its name."""
        target = take_apart(field, url)
        if self._allowed.names_host(target.host, target.port):
            return target
        try:
            address = literal(target.host)
        except ValueError:
            raise UnsafeAddress(f"{field} must name a host, or an address in its plain form", field) from None
        if address is not None:
            self._check_addresses(field, target, [address])
        elif not self._allowed.may_hold(target.port):  # else it depends on where the name leads
            self._check_public_terms(field, target)
            if "." not in target.host or target.host.endswith(".localhost"):
                raise _not_public(field)
        return target

    def _check_addresses(self, field: str, target: Target, addresses: Sequence[Address]) -> None:
        """Let all addresses of a host pass, or none.

        Raises:
            UnsafeAddress: one of them is neither public nor allowed; does not say which.
        """
        if self._allowed.names_host(target.host, target.port):
            return
        others = [address for address in addresses if not self._allowed.holds(address, target.port)]
        for address in others:
            kind = why_not_public(address)
            if kind is not None:
                log.info("address refused", host=target.host, address=str(address), kind=kind)
                raise _not_public(field)
        if others:
            self._check_public_terms(field, target)

    def _check_public_terms(self, field: str, target: Target) -> None:
        if target.scheme == "http" and not self.http:
            raise UnsafeAddress(f"{field} must start with https://, got http://", field)
        if target.port != PORTS[target.scheme]:
            raise UnsafeAddress(f"{field} must use port {PORTS[target.scheme]}, got {target.port}", field)


def _not_public(field: str) -> UnsafeAddress:
    return UnsafeAddress(
        f"{field} must lead to a public address; the operator of this server can allow others (webhook_allow)", field
    )

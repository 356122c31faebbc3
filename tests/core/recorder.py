"""Stands where sockets would be opened: writes down what would be connected to, and answers from a script."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore2

from polyreel.outbound import Outbound

#: A public name and address that no test ever reaches.
PUBLIC = "93.184.216.34"

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\npng"

#: As `Outbound` makes it, once for all tests.
_TLS = Outbound()._tls


class Recorder(httpcore2.NetworkBackend):
    """A backend without sockets.

    Attributes:
        connects: address and port of each connection that would have been made.
        tls_names: the name that each TLS handshake would have asked for.
        sent: all that would have been written.
    """

    def __init__(self, answer: bytes = PLAIN, refusing: Iterable[str] = ()) -> None:
        self.connects: list[tuple[str, int]] = []
        self.tls_names: list[str | None] = []
        self.sent = b""
        self._answer = answer
        self._refusing = set(refusing)

    def connect_tcp(self, host: str, port: int, *_args: object, **_options: object) -> httpcore2.NetworkStream:
        self.connects.append((host, port))
        if host in self._refusing:
            raise httpcore2.ConnectError("refused")
        return _Stream(self, self._answer)


class _Stream(httpcore2.MockStream):
    def __init__(self, recorder: Recorder, answer: bytes) -> None:
        super().__init__([answer])
        self._recorder = recorder

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._recorder.sent += bytes(buffer)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        assert ssl_context.check_hostname
        assert ssl_context.verify_mode is ssl.CERT_REQUIRED
        self._recorder.tls_names.append(server_hostname)
        return self


def outbound(recorder: Recorder, names: Mapping[str, list[str]] | None = None, **options: Any) -> Outbound:
    """Return calls that are recorded.

    Args:
        names: addresses of each name; any other leads to a public address.
    """
    known = names or {}

    def resolver(host: str, _port: int) -> list[str]:
        return known.get(host, [PUBLIC])

    return Outbound(backend=recorder, resolver=resolver, **{"tls": _TLS, **options})

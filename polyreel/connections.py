"""Connections for `polyreel.outbound`: to addresses that were looked at, and over when their time is.

Fills in httpcore2's `NetworkBackend`, its public seam between HTTP and sockets. Knows no rule: what addresses are good,
its owner says.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import httpcore2

from polyreel.addresses import Address, literal

T = TypeVar("T")

#: Addresses of one name that are tried at most.
_MOST_TRIED = 4

#: Longest time to connect to one address, seconds: what takes longer is not there.
CONNECT_S = 5.0

#: Bytes that are written before the clock is looked at again.
_SLICE = 16 * 1024

#: Longest that the reading of one answer may keep a processor, seconds: 15 MB take 0.05. In pieces of a byte, or after
#: endless interim answers, they take minutes, and eight such files held the API up for a third of a second each time.
_WORK_S = 0.5


class NoAddress(Exception):
    """Raised when a name has no address."""


class TooMuchWork(httpcore2.ProtocolError):
    """Raised when an answer costs more than anybody's would who means well."""


class Guard(httpcore2.NetworkBackend):
    """The connection of one call.

    Args:
        inner: makes connections to addresses.
        resolver: returns the addresses of a name, or raises OSError.
        check: raises for addresses of which one must not be reached.
        ends_at: by the monotonic clock.
    """

    def __init__(
        self,
        inner: httpcore2.NetworkBackend,
        resolver: Callable[[str, int], list[str]],
        check: Callable[[list[Address]], None],
        ends_at: float,
    ) -> None:
        self._inner = inner
        self._resolver = resolver
        self._check = check
        self._ends_at = ends_at

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Resolve, look, connect: in this order, and to nothing else."""
        addresses = self._addresses(host, port)
        self._check(addresses)
        untried = addresses[:_MOST_TRIED]
        while untried:
            address = untried.pop(0)
            # Each gets its share: the first, of an IPv6 network without a way out, would take all the time.
            share_s = min(CONNECT_S, _left_s(self._ends_at) / (len(untried) + 1))
            try:
                return Timed(self._inner.connect_tcp(str(address), port, timeout=share_s), self._ends_at)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not untried:
                    raise
        raise NoAddress(host)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.NetworkStream:
        """Refuse."""
        raise httpcore2.UnsupportedProtocol("no unix sockets")

    def _addresses(self, host: str, port: int) -> list[Address]:
        address = literal(host)
        if address is not None:
            return [address]
        try:
            return [ip_address(text) for text in _in_time(lambda: self._resolver(host, port), self._ends_at)]
        except OSError as err:
            raise NoAddress(host) from err


class Timed(httpcore2.NetworkStream):
    """A connection of which each call gets the time that is left of the whole, whatever its caller allows it.

    For one thread, whose work between two reads is counted.
    """

    def __init__(self, stream: httpcore2.NetworkStream, ends_at: float) -> None:
        self._stream = stream
        self._ends_at = ends_at
        self._began = time.thread_time()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is."""
        if time.thread_time() - self._began > _WORK_S:
            raise TooMuchWork("too much work")
        return self._stream.read(max_bytes, _left_s(self._ends_at))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all."""
        for start in range(0, len(buffer), _SLICE):
            self._stream.write(buffer[start : start + _SLICE], _left_s(self._ends_at))

    def close(self) -> None:
        """Close."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Return the connection under TLS, for the name."""
        return Timed(self._stream.start_tls(ssl_context, server_hostname, _left_s(self._ends_at)), self._ends_at)

    def get_extra_info(self, info: str) -> Any:  # Any: httpcore2's own
        """Return what httpcore2 asks."""
        return self._stream.get_extra_info(info)


def _left_s(ends_at: float) -> float:
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        raise httpcore2.TimeoutException("time is over")
    return left_s


def _in_time(call: Callable[[], T], ends_at: float) -> T:
    """Return what `call` returns; leave it behind when time is over, for the system's resolver knows no deadline.

    In a thread that nobody waits for at exit; the resolver gives up by itself after half a minute.
    """
    answer: SimpleQueue[tuple[bool, Any]] = SimpleQueue()  # Any: a T, or what was raised

    def run() -> None:
        try:
            answer.put((True, call()))
        except Exception as err:
            answer.put((False, err))

    threading.Thread(target=run, daemon=True, name="resolve").start()
    try:
        is_good, said = answer.get(timeout=_left_s(ends_at))
    except Empty:
        raise httpcore2.TimeoutException("no answer to the name in time") from None
    if not is_good:
        raise said
    found: T = said
    return found

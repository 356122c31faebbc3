"""Receivers of webhooks, of every kind that there is: real HTTP servers on loopback that remember what they got."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One message.

    Args:
        headers: names in lower case.
        at: by the monotonic clock.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """One receiver. Use as a context manager.

    Args:
        answers: what it does with a message; `ANSWERS` has the kinds.
        host: 127.0.0.2 and so on are other receivers on the same machine.
    """

    answers: Callable[[Receiver, BaseHTTPRequestHandler], None]
    host: str = "127.0.0.1"
    received: list[Received] = field(default_factory=list)
    most_at_once: int = 0
    written: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def do_GET(self) -> None:  # whoever follows a redirect comes with this
                receiver._take(self)

            def log_message(self, *_args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 200

            def handle_error(self, *_args: object) -> None:
                pass  # who hung up on us

        self._server = Server((self.host, 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self._server.server_port}/hook"

    def count(self) -> int:
        """Return how many messages have come."""
        with self._lock:
            return len(self.received)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.received.append(Received(handler.path, headers, body, time.monotonic()))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self.answers(self, handler)
        finally:
            with self._lock:
                self._now -= 1


def answering(status: int, **headers: str) -> Callable[[Receiver, BaseHTTPRequestHandler], None]:
    """Return a receiver's answer with a status; underscores in names of headers are dashes."""

    def answer(_receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def resetting(_receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Cut the connection without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hanging(receiver: Receiver, _handler: BaseHTTPRequestHandler) -> None:
    """Say nothing until the test is over."""
    receiver.let_go.wait(60)


def dripping(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Send a header every moment, so that no read ever takes long, and never come to an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not receiver.let_go.wait(0.02):
        handler.wfile.write(b"X-More: 1\r\n")
        handler.wfile.flush()


def endless(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Answer with 1 GB."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**30))
    handler.end_headers()
    for _ in range(2**30 // 65536):
        handler.wfile.write(bytes(65536))
        receiver.written += 65536


def bomb(_receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Answer with 50 kB that unpack to 50 MB."""
    packed = gzip.compress(bytes(50_000_000), 9)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(packed)))
    handler.end_headers()
    handler.wfile.write(packed)

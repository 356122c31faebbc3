"""A proxy before an S3 server that can refuse, hang, or answer with an error of its own choosing."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

#: What S3 services say: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
SLOW_DOWN = (503, "SlowDown")
WRONG_KEY = (403, "InvalidAccessKeyId")


class S3Proxy:
    """Passes bytes between HTTP clients and a server on loopback; use as a context manager.

    Args:
        port: of the server.

    Attributes:
        endpoint: for clients.
        puts: results that were sent while something was wrong; probes and snapshots are not counted.
        longest_s: how long a client that was left without an answer has waited at most, seconds.
    """

    def __init__(self, port: int) -> None:
        self.puts = 0
        self.longest_s = 0.0
        self._server = port
        self._answer: tuple[int, str] | None = None
        self._hangs = False
        self._clients: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def refuse(self) -> None:
        """Listen no more, and hang up, as a server that has ended."""
        self._close()
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Take connections and requests, and never answer."""
        self._hangs = True

    def answer(self, status: int, code: str) -> None:
        """Answer every request with an error."""
        self._answer = (status, code)

    def mend(self) -> None:
        """Let everything pass again; who hangs is hung up on."""
        self._answer, self._hangs = None, False
        if self._listener.fileno() == -1:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listen()

    def __enter__(self) -> S3Proxy:
        self._listen()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._hangs = False
        self._close()

    def _close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in `accept`
        self._listener.close()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), name="s3 proxy", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="s3 proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Serve one connection: what is wrong is looked at anew with each request."""
        self._clients.add(client)
        with client, suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._server))
            threading.Thread(target=_copy, args=(server, client), name="s3 proxy", daemon=True).start()
            with server:
                while data := client.recv(65536):
                    if self._hangs or self._answer:
                        self._fail(client, data)
                        break
                    server.sendall(data)
                server.shutdown(socket.SHUT_RDWR)
        self._clients.discard(client)

    def _fail(self, client: socket.socket, data: bytes) -> None:
        self.puts += b"PUT " in data[:4] and b"/out/" in data.partition(b"\r\n")[0]
        if self._answer:
            status, code = self._answer
            body = f"<Error><Code>{code}</Code><Message>as the test wishes</Message></Error>".encode()
            head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
            client.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        client.settimeout(0.1)
        while self._hangs or self._answer:
            try:
                if not client.recv(65536):  # it has given up
                    break
            except TimeoutError:
                if self._answer and time.monotonic() - began > 2:
                    return
        if not self._answer:
            self.longest_s = max(self.longest_s, time.monotonic() - began)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)

"""A proxy before Valkey that can lose the reply to a command, or cut its clients off."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes between TCP clients and a unix socket; use as a context manager.

    Args:
        path: of the server's unix socket.

    Attributes:
        url: for clients.
        lost: replies that were lost so far.
    """

    def __init__(self, path: str) -> None:
        self.lost = 0
        self._path = path
        self._marker: bytes | None = None
        self._reply_marker: bytes | None = None
        self._passes = threading.Event()
        self._passes.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def lose_the_reply_to(self, marker: str) -> None:
        """Hang up on the next client whose bytes hold `marker`, once the server has answered them."""
        self._marker = marker.encode()

    def lose_the_reply_with(self, marker: str) -> None:
        """Hang up on the next client that would be told `marker`."""
        self._reply_marker = marker.encode()

    def cut(self) -> None:
        """Let nothing pass, in silence, as a cable does that was pulled."""
        self._passes.clear()

    def mend(self) -> None:
        """Let everything pass again, also what has waited."""
        self._passes.set()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.close()
        self._passes.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passes.wait()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._path)
        except OSError:  # Redis is gone, so is this client's connection
            _end(client, server)
            return
        hangs_up = threading.Event()

        def answer() -> None:
            with suppress(OSError):
                while data := server.recv(65536):
                    self._passes.wait()
                    if hangs_up.is_set() or (self._reply_marker and self._reply_marker in data):
                        self._reply_marker = None
                        self.lost += 1
                        break
                    client.sendall(data)
            _end(client, server)

        threading.Thread(target=answer, name="proxy", daemon=True).start()
        with suppress(OSError):
            while data := client.recv(65536):
                self._passes.wait()
                if self._marker is not None and self._marker in data:
                    self._marker = None
                    hangs_up.set()
                server.sendall(data)
        _end(client, server)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

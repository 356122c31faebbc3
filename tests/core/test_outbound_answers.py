"""What the other side may do to a call: nothing that costs more memory or time than the caller said.

Against a real server on loopback, which the calls' own list allows.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from polyreel.errors import OutboundFailed
from polyreel.outbound import Outbound, Reply, resolve

CALLS = Outbound(allow=["127.0.0.0/8"])

Behaviour = Callable[[socket.socket], None]


class Server:
    """Does one thing to each connection; `sent` counts the bytes that it got rid of."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    self._behaviour(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    """Start servers, and stop them after the test."""
    servers: list[Server] = []

    def start(behaviour: Behaviour) -> Server:
        servers.append(Server(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answering(head: str, body: bytes = b"") -> Behaviour:
    """Read a request's head, and answer."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    return behave


def dripping(head: bytes, drop: bytes) -> Behaviour:
    """Answer `head`, and then `drop` ten times a second for as long as anybody listens."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.1)

    return behave


def silent(connection: socket.socket) -> None:
    """Read until the other side hangs up, and say nothing."""
    while connection.recv(65536):
        pass


def fetch(server: Server, max_bytes: int = 1000, total_s: float = 5.0) -> bytes:
    return CALLS.fetch(server.url, max_bytes, total_s, "image").content


def post(server: Server, body: bytes = b"{}", total_s: float = 5.0) -> Reply:
    return CALLS.post(server.url, body, {"Content-Type": "application/json"}, total_s, 1000)


def test_a_file_of_just_the_longest_length_is_read(serve):
    assert fetch(serve(answering("HTTP/1.1 200 OK\nContent-Length: 1000", b"a" * 1000))) == b"a" * 1000


def test_what_is_said_of_the_content_is_passed_on_without_its_parameters(serve):
    server = serve(answering("HTTP/1.1 200 OK\nContent-Type: Image/PNG; charset=x\nContent-Length: 1", b"a"))
    assert CALLS.fetch(server.url, 10, 5.0).content_type == "image/png"


@pytest.mark.parametrize("head", ["Content-Length: 1073741824", "Transfer-Encoding: chunked"])
def test_a_gigabyte_is_cut_where_the_longest_file_ends(serve, head):
    sent = 0

    def behave(connection: socket.socket) -> None:
        nonlocal sent
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        chunk = b"a" * 65536
        for _ in range(16384):
            connection.sendall(b"10000\r\n" + chunk + b"\r\n" if "chunked" in head else chunk)
            sent += len(chunk)

    server = serve(behave)
    with pytest.raises(OutboundFailed, match=r"^image leads to more than 1000000 bytes$"):
        fetch(server, 1_000_000)
    assert post(server).body == b"a" * 1000
    assert sent < 50_000_000  # what the sockets' buffers hold, and not a gigabyte


def test_a_bomb_is_not_unpacked(serve):
    bomb = zlib.compress(bytes(20_000_000), 9, 31)
    assert len(bomb) < 20_000
    server = serve(answering(f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {len(bomb)}", bomb))
    with pytest.raises(OutboundFailed, match=r"^image was answered compressed, though that was not asked for$"):
        fetch(server, 1_000_000)
    assert post(server).body == bomb[:1000]


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: yes\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x"),
    ],
    ids=["status", "headers", "interim answers", "body", "chunks", "a chunk's extension"],
)
def test_an_answer_that_drips_is_cut_when_time_is_over(serve, head, drop):
    server = serve(dripping(head, drop))
    began = time.monotonic()
    with pytest.raises(OutboundFailed, match=r"^image did not answer within 0\.25 s$"):
        fetch(server, total_s=0.25)
    assert 0.2 < time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["chunks", "interim answers"],
)
def test_an_answer_in_a_million_pieces_does_not_keep_the_processor_busy(serve, head, piece):
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        while True:
            connection.sendall(piece * 10_000)

    server = serve(behave)
    began = time.thread_time()
    with pytest.raises(OutboundFailed, match=r"^image was answered in too many small pieces$"):
        fetch(server, 15_000_000, total_s=20.0)
    assert time.thread_time() - began < 2, "it took all of the twenty seconds"


def test_a_receivers_status_counts_although_its_body_never_ends(serve):
    server = serve(dripping(b"HTTP/1.1 202 Accepted\r\nRetry-After: 7\r\nContent-Length: 500\r\n\r\n", b"a"))
    reply = post(server, total_s=0.25)
    assert (reply.status, reply.headers["retry-after"]) == (202, "7")
    assert 1 <= len(reply.body) <= 6


def test_a_receiver_that_reads_nothing_is_left_when_time_is_over(serve):
    done = threading.Event()
    server = serve(lambda _connection: done.wait(10) and None)
    began = time.monotonic()
    with pytest.raises(OutboundFailed, match=r"^url did not answer within 0\.25 s$"):
        post(server, bytes(50_000_000), total_s=0.25)
    assert time.monotonic() - began < 2
    done.set()


def test_one_that_answers_nothing_is_left_when_time_is_over(serve):
    with pytest.raises(OutboundFailed, match=r"^image did not answer within 0\.3 s$"):
        fetch(serve(silent), total_s=0.3)


def test_a_resolver_that_hangs_is_left_when_time_is_over():
    done = threading.Event()

    def hanging(_host: str, _port: int) -> list[str]:
        done.wait(10)
        return []

    began = time.monotonic()
    with pytest.raises(OutboundFailed, match=r"^image did not answer within 0\.3 s$"):
        Outbound(resolver=hanging).fetch("https://good.example/", 1000, 0.3, "image")
    assert time.monotonic() - began < 2
    done.set()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (answering("HTTP/1.1 404 Not Found\nContent-Length: 0"), "image was answered with status 404"),
        (answering("HTTP/1.1 204 No Content"), "image was answered with status 204"),
        (answering("SSH-2.0-OpenSSH_9.9"), "image was answered with something that is not HTTP"),
        (answering("HTTP/1.1 200 OK\nX: " + "y" * 200_000), "image was answered with something that is not HTTP"),
        (
            answering("HTTP/1.1 200 OK\nContent-Length: 9", b"short"),
            "image was answered with something that is not HTTP",
        ),
        (lambda connection: connection.recv(1) and None, "image could not be reached, or hung up"),
    ],
    ids=["404", "204", "SSH", "endless headers", "cut short", "hangs up"],
)
def test_an_answer_that_is_of_no_use_is_named(serve, behaviour, message):
    with pytest.raises(OutboundFailed) as failed:
        fetch(serve(behaviour))
    assert failed.value.message == message


def test_a_name_is_asked_of_the_system_and_each_of_its_addresses_tried(serve):
    server = serve(answering("HTTP/1.1 200 OK\nContent-Length: 1", b"a"))  # on 127.0.0.1, and not on ::1
    assert {"127.0.0.1"} <= set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    assert Outbound(allow=["localhost"]).fetch(f"http://localhost:{server.port}/", 10, 5.0).content == b"a"


def test_a_name_that_the_system_does_not_know_is_not_called():
    with pytest.raises(OutboundFailed, match=r"^url must lead to a public address"):
        Outbound().fetch("https://no-such-name.invalid/", 10, 20.0)


def test_nobody_who_listens_is_named_too(serve):
    server = serve(silent)  # on 127.0.0.1 alone
    with pytest.raises(OutboundFailed, match=r"^image could not be reached, or hung up$"):
        CALLS.fetch(f"http://127.0.0.2:{server.port}/", 1000, 5.0, "image")


@pytest.mark.parametrize("status", [200, 201, 404, 410, 429, 500])
def test_a_webhooks_answer_is_returned_whatever_its_status(serve, status):
    reply = post(serve(answering(f"HTTP/1.1 {status} So\nX-Word: Yes\nContent-Length: 2", b"ok")))
    assert reply == Reply(status, {"x-word": "Yes", "content-length": "2"}, b"ok")


def test_a_post_says_what_it_is(serve):
    heads: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        heads.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = serve(behave)
    CALLS.post(server.url + "hook?x=1", b'{"a": 1}', {"Content-Type": "application/json", "webhook-id": "m1"}, 5.0, 10)
    head, _, body = heads[0].partition(b"\r\n\r\n")
    assert body in (b'{"a": 1}', b"")  # sent after its head, so perhaps not read with it
    assert head.decode().split("\r\n") == [
        "POST /hook?x=1 HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: Polyreel/0.1.0",
        "Accept-Encoding: identity",
        "Connection: close",
        "Content-Type: application/json",
        "webhook-id: m1",
        "Content-Length: 8",
    ]


@pytest.mark.parametrize("value", ["a\r\nX-Forged: 1", "a\nb", "a\0b"])
def test_a_header_that_would_end_its_line_is_not_sent(serve, value):
    with pytest.raises(OutboundFailed):
        CALLS.post(serve(silent).url, b"", {"X-Note": value}, 2.0, 10)


@pytest.fixture
def tls_server(serve) -> Server:
    """A server whose certificate is for hooks.test; answers the name that the handshake asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("hooks_test.pem"))

    def behave(connection: socket.socket) -> None:
        names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: names.append(name)
        with context.wrap_socket(connection, server_side=True) as secured:
            host = secured.recv(65536).split(b"Host: ")[1].split(b"\r\n")[0]
            body = str(names[0]).encode() + b" " + host
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    return serve(behave)


def over_tls(server: Server, host: str) -> bytes:
    """Call loopback by a name; only the certificate of the tests is trusted."""
    tls = ssl.create_default_context(cafile=str(Path(__file__).with_name("hooks_test.pem")))
    calls = Outbound(allow=["127.0.0.0/8"], tls=tls, resolver=lambda _host, _port: ["127.0.0.1"])
    return calls.fetch(f"https://{host}:{server.port}/", 1000, 5.0, "image").content


def test_tls_asks_for_the_name_although_an_address_is_connected_to(tls_server):
    assert over_tls(tls_server, "hooks.test") == f"hooks.test hooks.test:{tls_server.port}".encode()


@pytest.mark.parametrize("host", ["other.test", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(tls_server, host):
    with pytest.raises(OutboundFailed, match=r"^image has no certificate that is valid for its name$"):
        over_tls(tls_server, host)


def test_a_certificate_that_nobody_known_signed_is_refused(tls_server):
    calls = Outbound(allow=["127.0.0.0/8"], resolver=lambda _host, _port: ["127.0.0.1"])
    with pytest.raises(OutboundFailed, match=r"^image has no certificate that is valid for its name$"):
        calls.fetch(f"https://hooks.test:{tls_server.port}/", 1000, 5.0, "image")

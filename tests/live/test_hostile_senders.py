"""A served process against senders that no client library is: bytes on a socket, as they come."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

import httpx2
import psutil
import pytest

from tests.conftest import KEY, LiveServer

SUBMIT = "/polyreel/v1/jobs"


def connect(server: LiveServer) -> socket.socket:
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=40)


def ask(server: LiveServer, *lines: str) -> bytes:
    """Send a request's lines as they are; return all that is answered until the server has nothing more to say."""
    with connect(server) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def serving(server: LiveServer) -> psutil.Process:
    """Return the process that answers."""
    everybody = psutil.Process(server.process.pid).children(recursive=True)
    return next(process for process in everybody if process.name() == "polyreel serve")


@pytest.mark.parametrize("head", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
def test_a_hundred_megabytes_are_refused_at_once_and_fill_no_memory(live: LiveServer, head: str) -> None:
    process = serving(live)
    before = process.memory_info().rss
    piece = b"100000\r\n" + b"a" * 2**20 + b"\r\n" if "chunked" in head else b"a" * 2**20
    with connect(live) as connection:
        began = time.monotonic()
        connection.sendall(
            f"POST {SUBMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{head}\r\n\r\n".encode()
        )
        for _ in range(25):  # what a client of a hundred has sent when it looks
            connection.sendall(piece)
        answer = connection.recv(65536)
        took_s = time.monotonic() - began
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert took_s < 15  # half a second on a machine that does nothing else; who waits for the rest waits 20
    assert process.memory_info().rss - before < 40e6  # 20 MiB may be kept for a body that is not announced


@pytest.mark.parametrize("path", ["/files/../../../../etc/passwd", "/files//etc/passwd", "/files/..%2f..%2fetc/passwd"])
def test_a_path_that_no_client_has_tidied_leads_out_of_no_folder(live: LiveServer, path: str) -> None:
    answer = ask(live, f"GET {path}?exp=9999999999&sig={'0' * 64} HTTP/1.1", "Host: x")
    assert answer.split(b" ")[1] in (b"403", b"404")
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "line",
    [
        "X-Request-Id: a\nSet-Cookie: b=c",
        "X-Request-Id: a\0b",
        "X Request: a",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -1",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
    ],
)
def test_a_request_that_two_servers_would_read_differently_is_refused(live: LiveServer, line: str) -> None:
    answer = ask(live, f"POST {SUBMIT} HTTP/1.1", "Host: x", line)
    assert answer.split(b" ")[1] in (b"400", b"401")
    assert b"Set-Cookie" not in answer


def test_a_forwarded_address_is_not_believed_of_just_anybody(live: LiveServer) -> None:
    answer = httpx2.post(
        f"{live.base_url}/api/v6/video/text2video",
        json={"key": KEY, "prompt": "x", "instant_response": True, "num_frames": 9, "num_inference_steps": 1},
        headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-For": "1.2.3.4"},
        timeout=30,
    )
    assert answer.json()["future_links"][0].startswith(f"{live.base_url}/files/")


@pytest.mark.slow
def test_a_byte_a_second_is_left_within_half_a_minute_and_the_connection_closed(live: LiveServer) -> None:
    with connect(live) as connection:
        began = time.monotonic()
        connection.sendall(
            f"POST {SUBMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 500\r\n\r\n".encode()
        )
        connection.settimeout(1)
        answer = b""
        while time.monotonic() - began < 30 and b"}" not in answer:
            connection.sendall(b"{")
            try:
                answer += connection.recv(65536)
            except TimeoutError:
                continue
        assert 19 < time.monotonic() - began < 30
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in answer.lower()
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert "The request body did not come in time" in json.dumps(body)
        connection.settimeout(5)
        with suppress(ConnectionResetError):  # closed too, while a byte was under way
            assert connection.recv(1) == b""

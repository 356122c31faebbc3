"""`python -m polyreel.health_check`: whether the process of this container is at work."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from polyreel.health_check import main
from polyreel.records import RESIDENTS, WORKER_PREFIX
from polyreel.webhooks import COURIERS


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The Redis that the container's environment names."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Start an API that answers /health with a status."""
    servers = []

    def answer(status: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("POLYREEL_PORT", str(server.server_port))

    yield answer
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_api_is_well_when_it_answers(answering: Callable[[int], None]) -> None:
    answering(200)
    assert main(["serve"]) == 0


def test_an_api_that_answers_with_an_error_is_not_well(
    answering: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answering(500)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "the API answers /health with 500\n"


def test_an_api_that_does_not_answer_is_not_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, but nobody listens
        monkeypatch.setenv("POLYREEL_PORT", str(bound.getsockname()[1]))
        assert main(["serve"]) == 1
    assert "does not answer on port" in capsys.readouterr().err


def test_a_worker_is_well_while_it_says_so(client: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{socket.gethostname()}-gpu0-0123abcd"
    client.hset(RESIDENTS, name, "{}")
    client.set(WORKER_PREFIX + name, "{}", ex=15)
    assert main(["worker"]) == 0
    client.delete(WORKER_PREFIX + name)  # as when it has not beaten for 15 s
    assert main(["worker"]) == 1
    assert capsys.readouterr().err == f"no worker of {socket.gethostname()} says in Redis that it lives\n"


def test_a_worker_of_another_container_is_not_ours(client: redis.Redis) -> None:
    client.hset(RESIDENTS, "elsewhere-gpu0-0123abcd", "{}")
    client.set(WORKER_PREFIX + "elsewhere-gpu0-0123abcd", "{}", ex=15)
    assert main(["worker"]) == 1


def test_a_courier_is_well_when_it_came_for_work_lately(client: redis.Redis) -> None:
    name, now = f"{socket.gethostname()}-77-0123abcd", int(client.time()[0])
    client.zadd(COURIERS, {name: now})
    assert main(["courier"]) == 0
    client.zadd(COURIERS, {name: now - 120})
    assert main(["courier"]) == 1


def test_a_redis_that_is_away_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    assert main(["worker"]) == 1
    assert capsys.readouterr().err.startswith("Redis does not answer: ")


def test_a_wrong_call_says_which_processes_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redis"]) == 2
    assert capsys.readouterr().err == "usage: python -m polyreel.health_check serve|worker|courier\n"

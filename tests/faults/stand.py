"""Starts, kills, stops and starts again the parts of a server: Valkey, API processes, workers and their keepers.

Everything is started from the main thread: Linux ties the parent-death signal to the thread that forked, and nothing
is to outlive a test run that is killed itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
import redis
import yaml

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.leases import Leases
from polyreel.queue import Queue
from polyreel.records import Records, StoredJob, connect
from polyreel.settings import load_settings
from tests.conftest import KEY, OTHER_KEY, free_port
from tests.faults.paced import FOLDER
from workers.batch_sizes import MeasuredSize, Run, store

ROOT = Path(__file__).parent.parent.parent

#: Every duration of the queue follows from this, seconds.
LEASE_S = 2.0

#: How long a test waits for what must come, seconds. Generous: what must come fast is asserted apart.
PATIENCE_S = 90.0

#: Catalogue names; one job of any takes as long as its prompt says. The last one is not served by the usual workers.
MODELS = ("first", "second", "apart")


class Gone(AssertionError):
    """Raised when a condition did not come true in time."""


def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> float:
    """Wait until a condition holds; return the seconds that it took.

    Raises:
        Gone: it did not; says what.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise Gone(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - began


class Part:
    """One process of the server, over all its lives.

    Args:
        name: for messages and the name of its log.
        command: returns the arguments of its next start.
        environment: of it.
        folder: for its log.
    """

    def __init__(self, name: str, command: Callable[[], list[str]], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.environment = environment
        self.log = folder / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says goes into its log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True while it lives, also while it is stopped."""
        return self._process is not None and self._process.poll() is None

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal if it lives."""
        if self.is_running:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill it as the kernel does, and wait until it is gone; what it started is left alone."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self, timeout_s: float = 60) -> int:
        """End it in good order; return its exit code."""
        assert self._process is not None, f"{self.name} was not started"
        self.signal(signal.SIGTERM)
        return self._process.wait(timeout_s)


class Worker(Part):
    """A worker; every life has a name of its own, as under a supervisor."""

    def __init__(self, slot: str, flags: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.lives = 0
        self.slot = slot

        def command() -> list[str]:
            self.lives += 1
            return _module("tests.faults.worker", *flags, "--name", self.worker, "--parent", str(os.getpid()))

        super().__init__(slot, command, environment, folder)

    @property
    def worker(self) -> str:
        """The name of this life."""
        return f"{self.slot}-{self.lives}"

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs that it says it has, in its heartbeat."""
        with redis.Redis.from_url(self.environment["REDIS_URL"], decode_responses=True) as client:
            about = client.get(f"polyreel:worker:{self.worker}")
        return list(json.loads(str(about))["jobs"]) if about else ["(unknown)"]

    @property
    def keeper(self) -> int | None:
        """Process id of its keeper, None while it has none."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "keeper" in " ".join(child.cmdline()):
                        return child.pid
        return None

    def kill_with_keeper(self) -> None:
        """Kill both at once, as when the machine dies: nobody gives the leases back."""
        keeper = self.keeper
        if keeper:
            os.kill(keeper, signal.SIGKILL)
        self.kill()


class Stand:
    """A whole server whose parts can be had one by one.

    Args:
        folder: for everything that it writes.
        apis, workers: how many processes of each.
        batch: jobs of a size that share a call; 1 is none.
        variables: further environment of all parts, e.g. POLYREEL_DRAIN_S="1".
    """

    def __init__(self, folder: Path, *, apis: int = 2, workers: int = 2, batch: int = 1, **variables: str) -> None:
        self.folder = folder
        self.points = folder / "points"
        self.points.mkdir(parents=True)
        (folder / "checkpoint").mkdir()
        self.config = write_profile(folder / "all.yaml", folder / "checkpoint", MODELS)
        write_profile(folder / "usual.yaml", folder / "checkpoint", MODELS[:2])
        write_profile(folder / "apart.yaml", folder / "checkpoint", MODELS[2:])
        self.state = folder / "state"
        self._variables = variables
        self._broker = start_embedded(self.state)
        self.url = self._broker.url
        self.catalogue = load_settings(str(self.config), state_dir=self.state).settings.catalogue
        if batch > 1:
            self._measure(batch)
        self.client = connect(self.url, patient=True)
        self.records = Records(self.client, 3600)
        self.leases = Leases(self.client, retention_s=3600, lease_s=LEASE_S)
        self.queue = Queue(
            self.url, retention_s=3600, max_open=100_000, job_timeout_s=600, lease_s=LEASE_S, patient=True
        )
        self.apis = [self.make_api(f"api{n}") for n in range(apis)]
        self.workers = [self.make_worker(f"w{n}") for n in range(workers)]
        self._extra: list[Part] = []

    def make_api(self, name: str, url: str = "", **variables: str) -> Part:
        """Return an API process that is not started yet; its address is `base_url(part)`."""
        port = free_port()
        flags = ["--config", str(self.config), "--state-dir", str(self.state), "--port", str(port)]
        return Part(
            name,
            lambda: _module("tests.faults.api", *flags, "--parent", str(os.getpid())),
            self._environment(url, **{"FAULTS_PORT": str(port), **variables}),
            self.folder,
        )

    def make_worker(self, slot: str, url: str = "", profile: str = "usual", **variables: str) -> Worker:
        """Return a worker that is not started yet; the profile "apart" serves the model of that name alone."""
        flags = ["--config", str(self.folder / f"{profile}.yaml"), "--state-dir", str(self.state)]
        return Worker(slot, flags, self._environment(url, **variables), self.folder)

    @contextlib.contextmanager
    def running(self, *parts: Part) -> Iterator[None]:
        """Have further parts inside; they are killed at the end."""
        self._extra += parts
        try:
            for part in parts:
                part.start()
            for part in parts:
                self._wait_for(part)
            yield
        finally:
            for part in parts:
                part.signal(signal.SIGCONT)
                part.kill()
                self._extra.remove(part)

    def _environment(self, url: str, **variables: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("POLYREEL_", "FAULTS_"))}
        paths = [str(ROOT), str(ROOT / "tests" / "faults" / "site"), os.environ.get("PYTHONPATH", "")]
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "REDIS_URL": url or self.url,
            "POLYREEL_API_KEYS": f"alice:{KEY},bob:{OTHER_KEY}",
            "POLYREEL_LEASE_S": f"{LEASE_S:g}",
            "POLYREEL_MAX_QUEUED": "5000",
            "POLYREEL_RETENTION_S": "3600",
            # An idle worker leaves no job to a peer that has its model in memory: the peer may be the one that is dead.
            "POLYREEL_SCHEDULING__GRACE_SWAPS": "0",
            FOLDER: str(self.points),
            **self._variables,
            **variables,
        }

    def _measure(self, batch: int) -> None:
        runs = (Run(batch_size=1, seconds_per_job=1.0), Run(batch_size=batch, seconds_per_job=0.5))
        for model, entry in self.catalogue.models.items():
            size = MeasuredSize(
                num_frames=64, height=512, width=512, num_inference_steps=2, batch_size=batch, runs=runs
            )
            store(self.state / "batches.json", model, entry, "cpu", (size,))

    def start(self) -> None:
        """Start what does not run, and wait until all of it serves."""
        if self._broker.process.poll() is not None:
            self.start_valkey()
        parts = [part for part in [*self.apis, *self.workers] if not part.is_running]
        for part in parts:
            part.start()
        for part in parts:
            self._wait_for(part)

    def tend(self) -> None:
        """Start again what has died, as a supervisor would, without waiting for it."""
        for part in [*self.apis, *self.workers]:
            if not part.is_running:
                part.start()

    def start_some(self) -> None:
        """Start what does not run, and wait until one API process and one worker serve."""
        if self._broker.process.poll() is not None:
            self.start_valkey()
        was_running = [part for part in [*self.apis, *self.workers] if part.is_running]
        self.tend()
        for parts in (self.apis, self.workers):
            self._wait_for(next((part for part in was_running if part in parts), parts[0]))

    def _wait_for(self, part: Part) -> None:
        def serves() -> bool:
            if not part.is_running:
                raise Gone(f"{part.name} has ended:\n{part.log.read_text()[-2000:]}")
            if isinstance(part, Worker):
                about = self.client.get(f"polyreel:worker:{part.worker}")
                return bool(about and json.loads(str(about))["models"])
            try:
                return httpx2.get(f"{base_url(part)}/health", timeout=5).status_code == 200
            except httpx2.TransportError:
                return False

        until(serves, f"{part.name} serves", every_s=0.05)

    @property
    def valkey(self) -> EmbeddedBroker:
        """The running queue server."""
        return self._broker

    def kill_valkey(self) -> None:
        """Kill the queue server as the kernel does."""
        self._broker.process.kill()
        self._broker.process.wait()

    def start_valkey(self) -> None:
        """Start it again on what it wrote."""
        self._broker = start_embedded(self.state)

    def close(self) -> None:
        """End everything at once."""
        for part in [*self.apis, *self.workers, *self._extra]:
            part.signal(signal.SIGCONT)
            if isinstance(part, Worker) and part.is_running:
                part.kill_with_keeper()
            part.kill()
        self._broker.process.send_signal(signal.SIGCONT)
        self.client.close()
        self._broker.stop()

    # What a test asks for, and sees.

    def ask_to_stop_at(self, point: str) -> None:
        """Let the next process that comes to a point of `tests.faults.worker` or `.api` wait there."""
        (self.points / point).touch()

    def stopped_at(self, point: str) -> int:
        """Wait until a process waits at a point; return its id."""
        until(lambda: list(self.points.glob(f"{point}.*")), f"a process comes to {point}")
        return int(next(self.points.glob(f"{point}.*")).suffix[1:])

    def let_go(self, point: str) -> None:
        """Let the process at a point go on, or take back the wish that one stops."""
        for path in [self.points / point, *self.points.glob(f"{point}.*")]:
            path.unlink(missing_ok=True)

    def worker_of(self, pid: int) -> Worker:
        """Return the worker with this process id."""
        return next(worker for worker in self.workers if worker.is_running and worker.pid == pid)

    def calls(self, what: str = "began") -> list[dict[str, Any]]:
        """Return the pipeline calls that began or ended so far. Any: JSON."""
        log = self.points / "calls.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [call for call in map(json.loads, lines) if call["what"] == what]

    def times_begun(self, prompt: str) -> int:
        """Return in how many pipeline calls a prompt was."""
        return sum(call["prompts"].count(prompt) for call in self.calls())

    def record(self, job_id: str) -> StoredJob:
        """Return a record that must be there."""
        stored = self.records.get(job_id)
        assert stored is not None, f"the record of {job_id} is gone"
        return stored


def base_url(api: Part) -> str:
    """Return the address of an API process."""
    return f"http://127.0.0.1:{api.environment['FAULTS_PORT']}"


def write_profile(path: Path, checkpoint: Path, names: Sequence[str]) -> Path:
    """Write a catalogue of paced models that every dialect can name; return its path."""
    models = {
        name: {
            "family": "paced",
            "checkpoint": str(checkpoint),
            "defaults": {"num_frames": 2, "height": 64, "width": 64, "fps": 8, "num_inference_steps": 2},
            "names": {
                "huggingface": [f"faults/{name}"],
                "universal": [name],
                "modelslab": [name],
                "novita": [f"{name}.safetensors"],
            },
        }
        for name in names
    }
    dialects = {
        "universal": {"endpoint_model": names[0]},
        "modelslab": {"default_model": names[0], "hold_s": 0},
    }
    profile = {"device": "cpu", "resident_models": len(names), "models": models, "dialects": dialects}
    path.write_text(yaml.safe_dump(profile))
    return path


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", name, *arguments]

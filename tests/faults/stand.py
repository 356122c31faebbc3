"""A whole server whose parts can be killed, stopped and started one by one, and the ways to look into it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import yaml

from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.leases import Leases
from polyreel.profiles import load_settings
from polyreel.queue import Queue
from polyreel.records import Records, StoredJob, connect
from tests.conftest import KEY, OTHER_KEY, free_port
from tests.faults.paced import FOLDER
from tests.faults.parts import LEASE_S, Gone, Part, Worker, base_url, module, until
from workers.batch_sizes import MeasuredSize, Run, store

ROOT = Path(__file__).parent.parent.parent

#: Catalogue names; one job of any takes as long as its prompt says. The last one is not served by the usual workers.
MODELS = ("first", "second", "apart")


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
        self.courier = self.make_courier("courier")
        self._extra: list[Part] = []

    def make_api(self, name: str, url: str = "", **variables: str) -> Part:
        """Return an API process that is not started yet; its address is `base_url(part)`."""
        port = free_port()
        flags = ["--config", str(self.config), "--state-dir", str(self.state), "--port", str(port)]
        return Part(
            name,
            lambda: module("tests.faults.api", *flags, "--parent", str(os.getpid())),
            self._environment(url, **{"FAULTS_PORT": str(port), **variables}),
            self.folder,
        )

    def make_worker(self, slot: str, url: str = "", profile: str = "usual", **variables: str) -> Worker:
        """Return a worker that is not started yet; the profile "apart" serves the model of that name alone."""
        flags = ["--config", str(self.folder / f"{profile}.yaml"), "--state-dir", str(self.state)]
        return Worker(slot, flags, self._environment(url, **variables), self.folder)

    def make_courier(self, name: str, main: str = "tests.faults.courier") -> Part:
        """Return a courier that is not started yet: one in a hurry, or "server.courier"."""
        flags = ["--config", str(self.config), "--state-dir", str(self.state)]
        return Part(
            name, lambda: module(main, *flags, "--parent", str(os.getpid())), self._environment(""), self.folder
        )

    @contextlib.contextmanager
    def running(self, *parts: Part) -> Iterator[None]:
        """Have further parts inside; they are killed at the end."""
        self._extra += parts
        try:
            for part in parts:
                part.start()
            for part in parts:
                self.wait_for(part)
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
            "POLYREEL_WEBHOOK_ALLOW": "127.0.0.1",
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

    @property
    def _parts(self) -> list[Part]:
        return [*self.apis, *self.workers, self.courier]

    def start(self) -> None:
        """Start what does not run, and wait until all of it serves."""
        if self._broker.process.poll() is not None:
            self.start_valkey()
        parts = [part for part in self._parts if not part.is_running]
        for part in parts:
            part.start()
        for part in parts:
            self.wait_for(part)

    def tend(self) -> None:
        """Start again what has died, as a supervisor would, without waiting for it."""
        for part in self._parts:
            if not part.is_running:
                part.start()

    def start_some(self) -> None:
        """Start what does not run, and wait until one API process and one worker serve."""
        if self._broker.process.poll() is not None:
            self.start_valkey()
        was_running = [part for part in self._parts if part.is_running]
        self.tend()
        for parts in (self.apis, self.workers):
            self.wait_for(next((part for part in was_running if part in parts), parts[0]))

    def wait_for(self, part: Part) -> None:
        def serves() -> bool:
            if not part.is_running:
                raise Gone(f"{part.name} has ended:\n{part.log.read_text()[-2000:]}")
            if part.name.startswith("courier"):
                return bool(self.client.zcard("polyreel:webhooks:couriers"))
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
        for part in [*self._parts, *self._extra]:
            part.signal(signal.SIGCONT)
            if isinstance(part, Worker) and part.is_running:
                part.kill_with_keeper()
            part.kill()
        self._broker.process.send_signal(signal.SIGCONT)
        self.client.close()
        self._broker.stop()

    # What a test asks for, and sees.

    @property
    def bases(self) -> list[str]:
        """The addresses of the API processes."""
        return [base_url(api) for api in self.apis]

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

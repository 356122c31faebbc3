"""A worker's parts over a real Valkey, with fake families in the place of the models."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import workers.residency
from models import Family
from polyreel.broker import start_embedded
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.queue import Queue
from polyreel.storage import Storage
from polyreel.storage.local import LocalStorage
from tests.workers.claims import runner_for
from workers.residency import Residency
from workers.runner import JobRunner


@pytest.fixture(scope="module")
def _quick_collections() -> Iterator[None]:
    """Every job that runs out of memory collects garbage, which takes half a second with all of pytest's own in it."""
    import torch  # noqa: F401  whose objects are most of it

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class OwnValkey:
    """A Valkey of one test's own, which may hang, or die and come back with what it acknowledged.

    Attributes:
        url: stays the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The server ends with the thread that started it.
        self._starter = ThreadPoolExecutor(1)
        self._broker = self._starter.submit(start_embedded, folder)
        self.url = self._broker.result().url

    def kill(self) -> None:
        self._broker.result().process.kill()
        self._broker.result().process.wait()

    def start_soon(self) -> None:
        """Start it again; returns at once."""
        self._broker = self._starter.submit(start_embedded, self._folder)

    def signal(self, signum: int) -> None:
        os.kill(self._broker.result().process.pid, signum)

    def stop(self) -> None:
        process = self._broker.result().process
        process.kill()
        process.wait()
        self._starter.shutdown()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnValkey]:
    own = OwnValkey(tmp_path / "valkey")
    yield own
    own.stop()


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = Queue(redis_url, retention_s=60, max_open=100, job_timeout_s=60, patient=True)
    yield queue
    queue.records.client.close()  # left to a collection of garbage, it is a warning in whichever test that falls into


@pytest.fixture
def stored(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "results")


@pytest.fixture
def make_residency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Residency]:
    """Return a factory of residencies; each model is a folder of its own that the family of that name loads."""
    known: dict[str, Family] = {}

    def make(capacity: int = 1, **models: Family) -> Residency:
        monkeypatch.setattr(workers.residency, "families", lambda: known)
        entries = {}
        for name, family in models.items():
            # Two workers may each have a family of the same kind.
            kind = family.name if known.get(family.name, family) is family else f"{family.name}-{len(known)}"
            known[kind] = family
            (tmp_path / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
            entries[name] = ServedModel(family=kind, checkpoint=str(tmp_path / "checkpoints" / name))
        return Residency(Catalogue(entries), tmp_path / "built", "cpu", capacity)

    return make


@pytest.fixture
def make_runner(
    queue: Queue, stored: LocalStorage, make_residency: Callable[..., Residency], tmp_path: Path
) -> Callable[..., JobRunner]:
    """Return a factory of runners that serve one family under the catalogue name "ltx-tiny". Any: as `JobRunner`."""

    def make(family: Family, *, worker: str = "one", storage: Storage = stored, **options: Any) -> JobRunner:
        residency = make_residency(**{"ltx-tiny": family})
        return runner_for(queue, residency, storage, tmp_path / "scratch", worker, **options)

    return make

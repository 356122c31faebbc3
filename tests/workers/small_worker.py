"""A worker's process wired as `polyreel worker` wires it, with a family that computes nothing.

    python -m tests.workers.small_worker REDIS_URL FOLDER [--drain-s S] [--hold-storing] [--stop-after-claim]

While the file `FOLDER/go` is not there, steps stand still; or, with --hold-storing, the storing of files does.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

import workers.residency
from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.leases import Claim, Wishes
from polyreel.logs import configure_logs
from polyreel.queue import Queue, rq_connection
from polyreel.records import Records, connect
from polyreel.storage.local import LocalStorage
from tests.core.jobs import MODEL
from tests.families.quick import Quick
from workers.keeping import Keeping, setup_for
from workers.model_orders import ModelOrders
from workers.residency import Residency
from workers.runner import JobRunner
from workers.worker import ModelWorker, make_worker, wait_for_queue

NAME = "small"


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)


def in_a_destructor(file: Path) -> None:
    """Wait where Python drops what is raised: the first stop is lost."""

    class Waits:
        def __del__(self) -> None:
            wait_for(file)

    Waits()
    wait_for(file)


def in_a_library_that_catches_all(file: Path) -> None:
    """Wait where the first stop is caught."""
    try:
        wait_for(file)
    except BaseException:
        wait_for(file)


def in_a_library_that_makes_another_error_of_it(file: Path) -> None:
    try:
        wait_for(file)
    except BaseException as err:
        raise ValueError("no such token") from err


#: Where a step waits.
WAITS = {
    place.__name__: place
    for place in (wait_for, in_a_destructor, in_a_library_that_catches_all, in_a_library_that_makes_another_error_of_it)
}


@dataclass(frozen=True)
class HeldStorage(LocalStorage):
    """Stores nothing before a file is there."""

    def put(self, source: Path, key: str) -> None:
        wait_for(self.folder.parent / "go")
        super().put(source, key)


def main() -> None:
    """Work until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drain-s", type=float, default=30.0)
    parser.add_argument("--hold-storing", action="store_true")
    parser.add_argument("--stop-after-claim", action="store_true")
    parser.add_argument("--wait", choices=WAITS, default="wait_for")
    options = parser.parse_args()
    configure_logs("debug", "worker")
    folder: Path = options.folder
    family = Quick(after_step=lambda step: None if options.hold_storing else WAITS[options.wait](folder / "go"))
    workers.residency.families = lambda: {"quick": family}
    (folder / "checkpoint").mkdir(exist_ok=True)
    catalogue = Catalogue({MODEL: ServedModel(family="quick", checkpoint=str(folder / "checkpoint"))})
    residency = Residency(catalogue, folder, "cpu", 1)
    queue = Queue(options.url, retention_s=60, max_open=100, job_timeout_s=60, patient=True)

    def about() -> dict[str, object]:
        return {"loaded": residency.loaded, "pinned": sorted(residency.pinned), "commands": orders.states()}

    keeping = Keeping(setup_for(options.url, NAME, retention_s=60, lease_s=20, log_level="info"), about)
    storage = HeldStorage(folder / "results") if options.hold_storing else LocalStorage(folder / "results")
    reports = Records(connect(options.url, patient=False), 60)
    runner = JobRunner(queue, reports, keeping, residency, storage, folder / "scratch", NAME)

    orders = ModelOrders(runner.attempts, keeping.refresh)
    keeping.on_orders = orders.hear

    def claim() -> list[Claim]:
        orders.carry_out()
        return runner.claim(Wishes([MODEL], residency.loaded))

    def run(claims: Sequence[Claim]) -> None:
        if options.stop_after_claim:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)  # until the drain is over
        runner.run(claims)

    def on_drain() -> None:
        structlog.get_logger().info("told to stop")
        keeping.refresh()

    wait_for_queue(reports.client)
    worker: ModelWorker = make_worker(
        rq_connection(options.url, patient=True), NAME, [MODEL],
        claim=claim, run=run, jobs=runner.jobs, on_drain=on_drain, drain_s=options.drain_s, stop=runner.stop,
    )  # fmt: skip
    keeping.start()
    try:
        worker.work(logging_level=None)
        runner.finish()
    finally:
        runner.hand_back()
        keeping.stop()


if __name__ == "__main__":
    main()

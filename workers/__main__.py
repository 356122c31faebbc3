"""`polyreel worker`: prepares the checkpoints, then runs jobs until it is told to stop."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from polyreel.errors import ConfigurationError
from polyreel.processes import start_as

if TYPE_CHECKING:
    from polyreel.leases import Claim

#: How long ffmpeg may take to say its version, seconds: the first start from a cold disk is slow.
_FFMPEG_S = 60.0


def main(argv: list[str] | None = None) -> int:
    """Run a worker; return its exit code (0 stopped, 2 wrong settings, 71 not fit for another job: start the next)."""
    parser = argparse.ArgumentParser(prog="polyreel worker")
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)  # unique per start; the supervisor gives up its leases by it
    options = parser.parse_args(argv)
    start_as("polyreel worker" + (f" --device {options.device}" if options.device else ""), options.parent)
    try:
        return _work(options)
    except ConfigurationError as err:
        print(f"polyreel worker: {err}", file=sys.stderr)  # noqa: T201
        return 2


def _work(options: argparse.Namespace) -> int:
    from polyreel.profiles import load_settings

    settings = load_settings(options.config, state_dir=options.state_dir, device=options.device).settings
    # Before torch is imported: it reads these once. Passive waiting keeps two busy processes from starving each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    _need_the_model_libraries()
    _need_ffmpeg()

    from redis import RedisError

    from polyreel.commands import Commands, Orders
    from polyreel.leases import Wishes
    from polyreel.logs import configure_logs, log_crashes
    from polyreel.policy import load_judge
    from polyreel.queue import Queue, rq_connection
    from polyreel.records import Records, connect
    from polyreel.redis_fitness import check_redis
    from polyreel.storage import connect_storage
    from polyreel.storage_marker import claim as claim_storage
    from polyreel.tracing import configure_tracing
    from workers.batch_sizes import BatchSizes, device_name
    from workers.gpu_stats import gpu_of
    from workers.keeping import Keeping, setup_for
    from workers.memory import device_memory
    from workers.model_orders import ModelOrders
    from workers.offer import Offer
    from workers.quota import quota_of
    from workers.residency import Residency
    from workers.runner import JobRunner
    from workers.self_check import UNFIT_EXIT
    from workers.sweeper import Sweeper
    from workers.worker import make_worker, wait_for_queue

    configure_logs(settings.log_level, "worker", prompts=settings.log_prompts, secrets=settings)
    log_crashes()
    configure_tracing("worker")
    import structlog

    name = options.name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    structlog.configure(  # a processor, since what is bound in one thread's context is missing in the others'
        processors=[lambda _l, _m, event: {"worker": name, **event}, *structlog.get_config()["processors"]]
    )
    log = structlog.get_logger()
    if settings.redis_url is None:
        raise ConfigurationError(
            "redis_url: a worker needs REDIS_URL; `polyreel up` starts an embedded queue by itself."
        )
    url = settings.redis_url.get_secret_value()
    check_redis(url)
    judge = load_judge(settings.content_policy)
    residency = Residency(
        settings.catalogue,
        settings.state_dir / "checkpoints",
        settings.device,
        settings.resident_models,
        lora_bytes=settings.resident_loras_mb * 1e6,
    )
    queue = Queue(
        url,
        retention_s=settings.retention_s,
        max_open=settings.max_queued,
        job_timeout_s=settings.job_timeout_s,
        lease_s=settings.lease_s,
        rule=settings.scheduling.rule(),
        patient=True,
    )
    state = residency.prepare()
    import torch
    from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

    torch.set_num_threads(settings.threads)
    device = residency.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device: {device} was asked for, and torch finds no CUDA here. Use --device cpu.")
    memory = device_memory(device)

    def about() -> dict[str, object]:
        return {
            "device": device,
            "memory_bytes": memory[1] if memory else None,
            "models": [] if worker.is_draining else offer.served(),
            "loaded": residency.loaded,
            "pinned": sorted(residency.pinned),
            "commands": orders.states(),
            "loading": runner.loading or orders.loading,
            "capacity": settings.resident_models,
            "held_s": round(runner.held_s, 3),
            "unavailable": attempts.unavailable,
            "job": next(iter(runner.current), ""),
            "jobs": runner.jobs(),
            "succeeded": runner.succeeded,
        }

    keeping = Keeping(
        setup_for(
            url,
            name,
            retention_s=settings.retention_s,
            lease_s=settings.lease_s,
            log_level=settings.log_level,
            gpu=gpu_of(device, os.environ),
        ),
        about,
    )
    scratch = settings.state_dir / "scratch"
    storage = connect_storage(settings.storage_url, settings.s3)
    batch_sizes = BatchSizes.load(settings.state_dir / "batches.json", settings.catalogue, device_name(device))
    reports = Records(connect(url, patient=False), settings.retention_s, settings.lease_s)
    quota = quota_of(settings, storage, reports)
    runner = JobRunner(
        queue,
        reports,
        keeping,
        residency,
        storage,
        scratch,
        name,
        file_metadata=settings.file_metadata,
        batch_sizes=batch_sizes,
        resume_every=settings.resume_every,
        previews=settings.previews,
        judge=judge,
        spool_s=settings.spool_s,
        least_free_bytes=settings.min_free_mb * 1e6,
    )
    attempts = runner.attempts
    orders = ModelOrders(attempts, keeping.refresh)
    keeping.on_orders = orders.hear
    swap_s: dict[str, float] = {}

    offer = Offer(
        reports.client,
        name,
        list(settings.catalogue.models),
        lambda: attempts.unavailable,
        settings.unavailable_after_s,
    )

    def claim() -> list[Claim]:
        orders.carry_out()
        if attempts.fitness.unfit:
            end()
            return []
        wishes = Wishes(offer.wanted(), residency.loaded, runner.held_s, swap_s, batch_sizes.limits())
        return runner.claim(wishes)

    def run(claims: Sequence[Claim]) -> None:
        runner.run(claims, lambda: UnixSignalDeathPenalty(settings.job_timeout_s, JobTimeoutException))  # type: ignore[no-untyped-call]
        with suppress(RedisError):  # the old figures serve as well
            swap_s.update(queue.leases.swap_seconds())
        if attempts.fitness.unfit:
            end()

    def end() -> None:
        log.critical("worker ends", reason=attempts.fitness.unfit)
        worker.end_after_this_job()

    wait_for_queue(reports.client)
    claim_storage(queue.records.client, storage, settings)  # before the first result lies where nobody finds it
    worker = make_worker(
        rq_connection(url, patient=True),
        name,
        list(settings.catalogue.models),
        claim=claim,
        run=run,
        jobs=runner.jobs,
        on_drain=keeping.refresh,
        drain_s=settings.drain_s,
        stop=runner.stop,
    )

    def alone() -> None:
        attempts.fitness.unfit = "no keeper of its leases can be had"
        worker.end_after_this_job()

    keeping.on_alone = alone
    attempts.unavailable = {model: trouble for model, trouble in state.items() if trouble}
    keeping.start()  # before a model is loaded, which may take minutes: it also looks after what the dead left behind
    sweeper = Sweeper(
        storage,
        settings.retention_s,
        scratch,
        reports.client,
        quota,
        lambda: claim_storage(reports.client, storage, settings),
    )
    try:
        with suppress(RedisError):  # the keeper hears of them too, a moment later
            orders.hear(Orders(pins=Commands(reports.client).pins()))
        attempts.unavailable |= {model: trouble for model, trouble in residency.load_pinned().items() if trouble}
        orders.carry_out()
        keeping.refresh()
        sweeper.start()
        log.info("worker ready", device=device, models=offer.served())
        worker.work(logging_level=None)
        runner.finish(settings.drain_s)
    finally:
        runner.stop.is_heeded = True
        runner.hand_back()  # what a second signal cut off between two jobs
        sweeper.stop()
        keeping.stop()
    return UNFIT_EXIT if attempts.fitness.unfit else 0


def _need_the_model_libraries() -> None:
    for library in ("torch", "diffusers", "transformers", "numpy", "PIL", "imageio_ffmpeg"):
        if find_spec(library) is None:
            raise ConfigurationError(
                f"{library} is not installed; a worker needs it: pip install 'polyreel[worker]' (or make install)."
            )


def _need_ffmpeg() -> None:
    """Without one, every video would be lost when it is finished."""
    import imageio_ffmpeg

    named = os.environ.get("IMAGEIO_FFMPEG_EXE")
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        subprocess.run([program, "-version"], capture_output=True, check=True, timeout=_FFMPEG_S)
    except (OSError, RuntimeError, subprocess.SubprocessError) as err:
        why = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        fix = "Unset it to use the one that comes with imageio-ffmpeg" if named else "pip install imageio-ffmpeg"
        raise ConfigurationError(
            f"IMAGEIO_FFMPEG_EXE: {named or 'the ffmpeg of imageio-ffmpeg'} cannot be run: {why}. {fix}, or name an "
            "ffmpeg with libx264 and libvpx-vp9 in it (apt-get install ffmpeg, then /usr/bin/ffmpeg)."
        ) from None


if __name__ == "__main__":
    sys.exit(main())

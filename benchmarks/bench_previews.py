"""What a preview costs a step: latents of the published sizes, from the scheduler's tensors to the key in Redis.

What it isolates: `workers.reports.Reports.step`, with a preview at every step (a worker makes one in half a second).
The control, interleaved with it, is the same report without previews, over the same embedded Valkey: one script that
every step waits for anyway, and that is on disk before it is answered. "preview" is the median of the differences. The
parts of it are measured by themselves. Milliseconds, medians; one thread, as a worker has by default.

Run: python -m benchmarks.bench_previews [rounds]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import workers.reports
from models import Progress
from models._previews import Preview
from polyreel.broker import start_embedded
from polyreel.leases import Claim, Wishes
from polyreel.queue import Queue
from polyreel.records import Records, connect
from tests.core.jobs import MODEL, queued
from tests.workers.claims import unkept
from workers.preview_files import jpeg
from workers.reports import Reports

ROW = "{:32} {:>9} {:>8} {:>8} {:>9} {:>9} {:>9} {:>8}"

UNIPC = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
FLOW, DDIM = FlowMatchEulerDiscreteScheduler(), DDIMScheduler()

#: Name, VAE, shape of the latents in the denoiser, scheduler, size of the video and what the VAE divides it by.
CASES: list[tuple[str, str, tuple[int, ...], Any, tuple[int, ...]]] = [
    ("Wan 2.1 81x480x832", "AutoencoderKLWan", (1, 16, 21, 60, 104), UNIPC, ()),
    ("Wan 2.1 81x720x1280", "AutoencoderKLWan", (1, 16, 21, 90, 160), UNIPC, ()),
    ("Wan 2.2 TI2V 121x704x1280", "AutoencoderKLWan", (1, 48, 31, 44, 80), UNIPC, ()),
    ("LTX 121x512x768", "AutoencoderKLLTXVideo", (1, 16 * 16 * 24, 128), FLOW, (121, 512, 768)),
    ("LTX-2 121x1088x1920", "AutoencoderKLLTX2Video", (1, 16 * 34 * 60, 128), FLOW, (121, 1088, 1920)),
    ("AnimateDiff 16x512x512", "AutoencoderKL", (1, 4, 16, 64, 64), DDIM, ()),
    ("AnimateDiff 16x512x512, batch 4", "AutoencoderKL", (4, 4, 16, 64, 64), DDIM, ()),
]


def timed(call: Callable[[], object]) -> float:
    """Return milliseconds."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def smooth(shape: tuple[int, ...]) -> torch.Tensor:
    """Return latents that are no noise: a JPEG of noise would be larger, and slower, than one of a video."""
    waves = torch.linspace(0, 9, int(torch.tensor(shape).prod())).sin().reshape(shape)
    return waves + 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def measure(case: tuple[Any, ...], claims: list[Claim], records: Records, rounds: int) -> None:
    """Print one row."""
    name, vae, shape, scheduler, size = case
    arguments = dict(zip(("num_frames", "height", "width"), size, strict=False))
    pipeline = SimpleNamespace(
        vae=type(vae, (), {})(), vae_spatial_compression_ratio=32, vae_temporal_compression_ratio=8
    )
    preview = Preview(pipeline, arguments)
    watched = type(scheduler).from_config(scheduler.config)
    watched.set_timesteps(rounds)
    preview.watch(watched)
    sample, output = smooth(shape), smooth(shape)
    without, with_previews = (Reports(records, unkept(), "one", claims, shows=shows) for shows in (False, True))
    progress = Progress("denoising", 1, 50, 0.1, lambda: dict(enumerate(preview.pictures())))
    rows: dict[str, list[float]] = {key: [] for key in ("colours", "jpeg", "control", "all", "preview")}
    for timestep in watched.timesteps[:rounds]:
        watched.step(output, timestep, sample, return_dict=False)
        pictures = preview.pictures()
        rows["colours"].append(timed(preview.pictures))
        rows["jpeg"].append(timed(lambda: [jpeg(picture) for picture in pictures]))  # noqa: B023
        rows["control"].append(timed(lambda: without.step(progress)))
        rows["all"].append(timed(lambda: with_previews.step(progress)))
        rows["preview"].append(rows["all"][-1] - rows["control"][-1])
    print(
        ROW.format(
            name,
            "x".join(map(str, pictures[0].shape[1::-1])),
            *(f"{median(values):.2f}" for values in rows.values()),
            f"{max(len(jpeg(picture)) for picture in pictures) / 1000:.1f} kB",
        )
    )


def main() -> None:
    """Print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    torch.set_num_threads(1)
    workers.reports._SHOW_S = 0.0
    with tempfile.TemporaryDirectory() as folder:
        broker = start_embedded(Path(folder))
        queue = Queue(broker.url, retention_s=60, max_open=100, job_timeout_s=600, patient=False, lease_s=3600)
        for _ in range(4):
            queue.submit(queued())
        claims = queue.leases.claim("one", Wishes([MODEL], batches={MODEL: [(10**12, 4)]}))
        client = connect(broker.url, patient=False)
        records = Records(client, 60)
        print(ROW.format("", "picture", "colours", "JPEG", "report", "with it", "preview", "file"))
        try:
            for case in CASES:
                measure(case, claims, records, rounds)
        finally:
            client.close()
            queue.records.client.close()
            broker.stop()


if __name__ == "__main__":
    main()

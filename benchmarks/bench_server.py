"""What the server adds to the bare pipeline: seconds from submit to stored file, less the pipeline's own seconds.

The control is the bare diffusers call (same family code, same tiny checkpoint, same request, same thread count) in this
process, in the same run, in turns with the server's jobs, because these machines are noisy. The overhead holds the
HTTP submit, two Redis round trips per step, the claim, encoding and storing. Encoding is reported apart: it is work
that somebody has to do, and the bare call does not.

    make bench                                 9 jobs of 256x256, 17 frames, 8 steps on the tiny LTX checkpoint
    python benchmarks/bench_server.py --jobs 30 --size 64 --frames 9 --steps 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx2

from models import Checkpoint, PreparedRequest, families
from models.checkpoints import locate
from polyreel.entries import Placement
from polyreel.records import connect, job_key, parse
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from tests.conftest import KEY, start_live_server, stop_live_server


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("jobs", 9), ("size", 256), ("frames", 17), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polyreel-bench-") as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Alternate bare calls and server jobs; the first of each warms up and is dropped."""
    import torch

    torch.set_num_threads(1)
    server = start_live_server(folder / "state", folder / "up.log")
    try:
        family = families()["ltx"]
        checkpoint = Checkpoint(locate("tiny:ltx", None, folder / "state" / "checkpoints"))
        model = family.load(checkpoint, device="cpu", dtype="float32", placement=Placement(mode="resident"))
        reader = connect(f"unix://{folder}/state/queue/redis.sock", patient=False)
        bare, whole, encode, store, wait = [], [], [], [], []
        for n in range(options.jobs + 1):
            request = VideoRequest(
                model="ltx-tiny",
                prompts=(PromptSpan("a cat", options.frames),),
                height=options.size,
                width=options.size,
                fps=8,
                num_inference_steps=options.steps,
                guidance_scale=7,
                seed=n,
                outputs=(OutputSpec("mp4", 8),),
            )
            start = time.perf_counter()
            family.generate(model, [PreparedRequest(request)], lambda _progress: None)
            bare_s = time.perf_counter() - start
            submitted = time.time()
            answer = httpx2.post(
                f"{server.base_url}/api/v6/video/text2video",
                json={
                    "key": KEY, "prompt": "a cat", "model_id": "ltx", "num_frames": options.frames, "fps": 8,
                    "height": options.size, "width": options.size, "num_inference_steps": options.steps, "seed": n,
                    "output_type": "mp4",
                },
                timeout=60,
            ).json()  # fmt: skip
            answered = time.time()
            stored = parse(reader.hgetall(job_key(answer["meta"]["file_prefix"])))
            assert stored is not None, answer
            if n == 0:
                continue
            timings = stored.job.timings
            bare.append(bare_s)
            whole.append(stored.job.ended_at - submitted)
            encode.append(timings["encode"])
            store.append(timings["store"])
            wait.append(answered - stored.job.ended_at)
        report(options, bare, whole, encode, store, wait)
    finally:
        stop_live_server(server.process)


def report(
    options: argparse.Namespace,
    bare: list[float],
    whole: list[float],
    encode: list[float],
    store: list[float],
    wait: list[float],
) -> None:
    """Print medians over the jobs, and the overhead as a ratio to the control."""
    overhead = [w - b - e for w, b, e in zip(whole, bare, encode, strict=True)]
    median = statistics.median
    print(
        f"{options.jobs} jobs, {options.size}x{options.size}, {options.frames} frames, {options.steps} steps, 1 thread"
    )
    rows = {
        "bare diffusers call (control)": bare,
        "submit to stored file": whole,
        "  of it encoding mp4": encode,
        "  of it storing": store,
        "  overhead (less control and encoding)": overhead,
        "stored file to answer (poll)": wait,
    }
    for name, values in rows.items():
        print(f"  {name:40s} median {median(values) * 1000:8.1f} ms   min {min(values) * 1000:8.1f} ms")
    print(f"  submit to stored file / control: {median(whole) / median(bare):.3f}")
    share = median(overhead) / median(bare) * 100
    print(f"  overhead per job: {median(overhead) * 1000:.1f} ms = {share:.1f} % of the control")


if __name__ == "__main__":
    main()

"""What the queue does by itself: submits, polls, claims, ends, and how soon it notices deaths and cancels.

Real processes and a real Valkey that writes every command to disk before it answers; only the model is a stand-in.
Rates are given as ratios to a control of the same run, in turns with it, because these machines are noisy:

    HTTP requests       to GET /health of the same API process, which does nothing
    calls of the queue  to PING over the same connection
    whole jobs          to encoding the same file in this process, which somebody has to do

    make bench-queue                                  about four minutes
    python benchmarks/bench_queue.py --times 5        fewer kills and cancels
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from polyreel.formats import formats
from polyreel.job import JobStatus, VideoJob
from polyreel.leases import Wishes
from polyreel.queue import Queue
from tests.conftest import KEY
from tests.core.jobs import REQUEST, queued
from tests.faults.parts import Worker, base_url, until
from tests.faults.stand import Stand

#: Requests of one round, over so many connections.
_REQUESTS, _CONNECTIONS = 400, 16

#: Of a job that is cancelled, seconds.
_STEP_S = 0.1

_SMALL = replace(REQUEST, model="first", height=64, width=64, num_inference_steps=1)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each rate; the median counts")
    parser.add_argument("--times", type=int, default=20, help="kills and cancels of each kind; the worst counts")
    parser.add_argument("--lost-machines", type=int, default=3, help="with the usual lease of 20 s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polyreel-bench-") as folder:
        stand = Stand(Path(folder) / "quick", apis=1, workers=2)
        try:
            rates(stand, options.rounds)
            stand.start()
            latencies(stand, options.times)
        finally:
            stand.close()
        stand = Stand(Path(folder) / "usual", apis=0, workers=2, POLYREEL_LEASE_S="20")
        try:
            stand.start()
            seconds = [lose_machine(stand, n) for n in range(options.lost_machines)]
            row("worker and keeper killed to next start, lease of 20 s", seconds)
        finally:
            stand.close()


def rates(stand: Stand, rounds: int) -> None:
    """Measure what one process can do a second."""
    print(f"rates, median of {rounds} rounds in turns")
    database = f"{stand.url}?db=1"
    api = stand.make_api("alone", url=database, POLYREEL_MAX_QUEUED="1000000")
    queue = Queue(database, retention_s=60, max_open=10**6, job_timeout_s=60, patient=True)
    with stand.running(api):
        job = queue.submit(queued(_SMALL)).job
        body = {"key": KEY, "prompt": "a cat", "num_frames": 2, "height": 64, "width": 64, "instant_response": True}
        requests = {
            "GET /health (control)": http("GET", "/health"),
            "submit (ModelsLab)": http("POST", "/api/v6/video/text2video", body),
            "poll (Novita)": http("GET", f"/v3/async/task-result?task_id={job.id}"),
        }
        port = int(base_url(api).rpartition(":")[2])
        compare({name: lambda text=text: asyncio.run(ask(port, text)) for name, text in requests.items()}, rounds)
    queue.records.client.flushdb()
    calls = {"PING (control)": lambda: pings(queue), "claim, one report, end": lambda: ends(queue, 200)}
    compare(calls, rounds)
    queue.records.client.flushdb()
    video = np.zeros((_SMALL.num_frames, 64, 64, 3), np.uint8)
    whole: dict[str, Callable[[], float]] = {
        "encoding a gif, 1 process (control)": lambda: encodings(video, stand.folder / "control.gif")
    }
    stand.workers[0].start()
    until(lambda: stand.client.exists(f"polyreel:worker:{stand.workers[0].worker}"), "it serves")
    whole["whole jobs, 1 worker"] = lambda: jobs(stand, 40)
    compare(whole, rounds)


def http(method: str, path: str, body: dict[str, object] | None = None) -> bytes:
    """Return the text of a request that keeps its connection."""
    content = json.dumps(body).encode() if body else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


async def ask(port: int, text: bytes) -> float:
    """Send a request again and again over several connections; return answers per second."""

    async def over_one(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(text)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"not 200: {head.decode()}")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(over_one(_REQUESTS // _CONNECTIONS) for _ in range(_CONNECTIONS)))
    return _REQUESTS / (time.perf_counter() - began)


def pings(queue: Queue) -> float:
    """Return PINGs per second."""
    began = time.perf_counter()
    for _ in range(1000):
        queue.records.client.ping()
    return 1000 / (time.perf_counter() - began)


def ends(queue: Queue, count: int) -> float:
    """Return no-op jobs per second: claimed, reported once, ended, by one process."""
    for _ in range(count):
        queue.submit(queued(_SMALL))
    wishes, records = Wishes(models=["first"]), queue.records
    began = time.perf_counter()
    for _ in range(count):
        [claim] = queue.leases.claim("bench", wishes)
        for status in (JobStatus.RUNNING, JobStatus.SUCCEEDED):
            if not records.advance(claim.job_id, claim.fence, status, "bench", progress=50):
                raise SystemExit(f"{claim.job_id} was taken from us")
    return count / (time.perf_counter() - began)


def encodings(video: np.ndarray, path: Path) -> float:
    """Return gifs per second."""
    began = time.perf_counter()
    for _ in range(20):
        formats()["gif"].encode(video, _SMALL.outputs[0], path, audio=None, metadata=None)
    return 20 / (time.perf_counter() - began)


def jobs(stand: Stand, count: int) -> float:
    """Return whole jobs per second, gifs in the storage included."""
    submitted = [stand.queue.submit(queued(_SMALL)).job for _ in range(count)]
    began = time.perf_counter()
    until(lambda: stand.client.zcard("polyreel:open") == 0, "all have ended", every_s=0.005)
    seconds = time.perf_counter() - began
    if any(stand.record(job.id).job.status is not JobStatus.SUCCEEDED for job in submitted):
        raise SystemExit("a job failed")
    return count / seconds


def compare(measures: dict[str, Callable[[], float]], rounds: int) -> None:
    """Run measures in turns, the first being the control; print their medians and ratios."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for n in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if n:  # the first round warms up
                found[name].append(value)
    control = statistics.median(next(iter(found.values())))
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"  {name:58} {middle:9.1f} /s   {middle / control:6.3f} of the control")


def latencies(stand: Stand, times: int) -> None:
    """Measure how long one thing takes after another."""
    print(f"latencies over {times} times, by Redis' clock")
    row("submit to start, idle workers", [claim_s(stand) for _ in range(times)])
    row("worker killed (its keeper lives) to next start", [kill(stand, n, Worker.kill) for n in range(times)])
    row("worker and keeper killed to next start, lease of 2 s", [lose_machine(stand, n) for n in range(times)])
    stand.start()
    stand.workers[1].stop()
    row(f"cancel to next start, steps of {_STEP_S:g} s", [cancel_s(stand) for _ in range(times)])
    row("cancel to the record's end", [cancelled_s(stand) for _ in range(times)])


def claim_s(stand: Stand) -> float:
    """Return the seconds from a job's submit to its start while nothing else is to be done."""
    job = stand.queue.submit(queued(_SMALL)).job
    ended(stand, job)
    done = stand.record(job.id).job
    return done.started_at - done.created_at


def kill(stand: Stand, n: int, how: Callable[[Worker], None]) -> float:
    """Kill the worker that runs a job; return the seconds until another has started it."""
    stand.start()
    job = submit(stand, f"killed {n} step_s=1")
    until(lambda: started(stand, job), "it runs", every_s=0.005)
    worker = next(w for w in stand.workers if w.worker == stand.record(job.id).job.worker)
    time.sleep(0.3)  # into the first step
    killed_at = redis_time(stand)
    how(worker)
    until(lambda: stand.record(job.id).fence == 2, "another worker has it", every_s=0.005)
    seconds = stand.record(job.id).job.started_at - killed_at
    ended(stand, job)
    return seconds


def lose_machine(stand: Stand, n: int) -> float:
    """As `kill`, with the worker's keeper: nobody gives the lease back."""
    return kill(stand, n, Worker.kill_with_keeper)


def cancel_s(stand: Stand) -> float:
    """Return the seconds from the cancel of a running job to the start of the next one on the same worker."""
    running, following = (submit(stand, f"cancel {n} step_s={_STEP_S}", steps=50) for n in range(2))
    until(lambda: stand.record(running.id).job.step, "it runs", every_s=0.005)
    cancelled_at = redis_time(stand)
    stand.queue.cancel(running.id)
    until(lambda: started(stand, following), "the next one runs", every_s=0.005)
    seconds = stand.record(following.id).job.started_at - cancelled_at
    stand.queue.cancel(following.id)
    ended(stand, following)
    return seconds


def cancelled_s(stand: Stand) -> float:
    """Return the seconds from the cancel of a running job to its end in the record."""
    job = submit(stand, f"cancelled step_s={_STEP_S}", steps=50)
    until(lambda: stand.record(job.id).job.step, "it runs", every_s=0.005)
    cancelled_at = redis_time(stand)
    stand.queue.cancel(job.id)
    return stand.record(job.id).job.ended_at - cancelled_at


def submit(stand: Stand, prompt: str, steps: int = 3) -> VideoJob:
    """Submit a job with orders in its prompt."""
    request = replace(_SMALL, prompts=(replace(_SMALL.prompts[0], prompt=prompt),), num_inference_steps=steps)
    return stand.queue.submit(queued(request)).job


def started(stand: Stand, job: VideoJob) -> bool:
    """Return whether a worker has taken a job."""
    return stand.record(job.id).fence > 0


def ended(stand: Stand, job: VideoJob) -> None:
    """Wait until a job has ended."""
    until(lambda: stand.record(job.id).job.status.is_terminal, "it has ended")


def redis_time(stand: Stand) -> float:
    """Return the seconds of Redis' clock."""
    seconds, microseconds = stand.client.time()
    return float(seconds + microseconds / 1e6)


def row(name: str, seconds: Sequence[float]) -> None:
    """Print the median and the worst."""
    print(f"  {name:58} median {statistics.median(seconds):7.3f} s   max of {len(seconds)}: {max(seconds):7.3f} s")


if __name__ == "__main__":
    main()

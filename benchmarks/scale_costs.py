"""What each call of Polyreel costs a real Valkey and the API: microseconds of CPU, bytes, round trips, memory.

The calls are the server's own code (`polyreel.leases`, `polyreel.records`, `workers.keeper`, `workers.worker`, and a
real `polyreel serve` by HTTP), the Valkey writes every command to disk before it answers. CPU is that of Valkey's main
thread and of the API process, as the kernel counts it, so other programs on the machine change it little. Control:
PING in the same run.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import redis

from benchmarks.scale_model import Cost, Flush, Memory
from polyreel.job import JobStatus, VideoJob, new_job
from polyreel.leases import Claim, Wishes
from polyreel.processes import command
from polyreel.queue import Queue, rq_connection
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from polyreel.scheduling import Rule
from server.gate import Gate
from server.reader import connect_reader
from server.waiting import Waiting
from workers.keeper import Keeper, Setup, State
from workers.worker import ModelWorker, make_worker

MODEL, KEY = "ltx-tiny", "bench-key-0123456789"

#: Of a request and a receipt as real ones are long.
_PROMPT = "A slow pan over a harbour at dawn, fishing boats, thin fog, warm light, photographed on film. " * 3
RECEIPT = {"checkpoint": "Lightricks/LTX-Video", "prompts": [{"prompt": _PROMPT, "num_frames": 97}], "pad": "x" * 1200}
OUTPUT = {
    "key": "out/7b1e0000-0000-4000-8000-000000000000/1/7b1e0000-0000-4000-8000-000000000000.mp4", "format": "mp4",
    "media_type": "video/mp4", "bytes": 1234567, "height": 512, "width": 768, "num_frames": 97, "fps": 24.0,
    "sha256": "0" * 64,
}  # fmt: skip

REQUEST = VideoRequest(
    model=MODEL,
    prompts=(PromptSpan(_PROMPT, 97),),
    height=512,
    width=768,
    fps=24.0,
    num_inference_steps=30,
    guidance_scale=3.0,
    seed=42,
    outputs=(OutputSpec("mp4", 24.0),),
)

#: Round trips of a call that write, where there are several.
FLUSHES = {"learn": 2.0, "rq": 3.0, "end": 3.0}

#: What an API process answers in this benchmark, over so many connections.
_CONNECTIONS = 8

#: Threads that send what a busy Redis answers in one go.
_AT_ONCE = 8

#: Requests that are measured together.
_ASKED = 50


@dataclass(frozen=True)
class Measured:
    """All costs by name, the memory, and the control.

    Args:
        ping_us: of a PING.
    """

    costs: dict[str, Cost]
    memory: Memory
    flush: Flush
    ping_us: float


def a_job(owner: str = "bench") -> VideoJob:
    """Return a job to submit."""
    return new_job(REQUEST, dialect="native", owner=owner, extensions=("mp4",))


def open_bench(url: str) -> Queue:
    """Return a queue that takes any number of jobs."""
    return Queue(url, retention_s=3600, max_open=10**7, job_timeout_s=3600, patient=True)


class Refused(Exception):
    """Raised when the API does not answer as it must; says how."""


class SimWorker:
    """Sends what a worker sends, through the same code; makes nothing.

    Args:
        url: of Redis.
        name: of the worker.
        queue, rq: may be shared: the clients are safe for threads.
    """

    def __init__(self, url: str, name: str, queue: Queue, rq: redis.Redis) -> None:
        self.name = name
        self.queue = queue
        self.wishes = Wishes([MODEL, "wan"], [MODEL], 100.0, {MODEL: 20.0})
        self.keeper = Keeper(Setup(url, name, os.getpid(), 3600, 20.0), lambda lost: None)
        self.rq: ModelWorker = make_worker(rq, name, [MODEL], claim=list, run=lambda claims: None)
        self.tell()

    def tell(self, *claims: Claim) -> None:
        """Say what the worker is doing, as its heartbeat does."""
        names = [claim.job_id for claim in claims]
        about: dict[str, Any] = {  # Any: JSON
            "device": "cuda", "memory_bytes": 80 * 2**30, "models": [MODEL, "wan", "animatediff"],
            "loaded": [MODEL, "wan"] if self.name.startswith("other") else [MODEL], "pinned": [], "commands": [],
            "loading": "", "capacity": 1, "held_s": 100.0, "unavailable": {},
            "job": names[0] if names else "", "jobs": names, "succeeded": 0,
        }  # fmt: skip
        self.keeper.take(State(about, [(claim.job_id, claim.fence) for claim in claims]).to_line())

    def beat(self) -> None:
        self.keeper._beat()

    def renew(self) -> None:
        self.keeper._renew()

    def reap(self) -> None:
        self.keeper._reap()

    def claim(self) -> list[Claim]:
        return self.queue.leases.claim(self.name, self.wishes)

    def read(self, claim: Claim) -> None:
        self.queue.records.get(claim.job_id)

    def report(self, claim: Claim, step: int = 1) -> None:
        self.queue.records.advance_all(
            [(claim.job_id, claim.fence)],
            JobStatus.RUNNING,
            self.name,
            stage="denoising",
            step=step,
            total_steps=REQUEST.num_inference_steps,
            progress=10 + step % 70,
        )

    def end(self, claim: Claim) -> None:
        """Encoded, stored, succeeded: three reports, the last with receipt and output."""
        say = self.queue.records.advance
        timings = {"load": 0.1, "text_encoding": 0.2, "denoising": 50.1, "decoding": 2.0, "encode": 1.0, "store": 0.1}
        say(claim.job_id, claim.fence, JobStatus.ENCODING, self.name, progress=85, stage="encoding", timings=timings)
        say(claim.job_id, claim.fence, JobStatus.UPLOADING, self.name, progress=95, stage="", timings=timings)
        fields = {"progress": 100, "timings": timings, "receipt": RECEIPT, "outputs": [OUTPUT]}
        if not say(claim.job_id, claim.fence, JobStatus.SUCCEEDED, self.name, **fields):
            raise SystemExit(f"{claim.job_id} was taken from {self.name}")

    def learn(self) -> None:
        self.queue.records.learn_seconds(MODEL, 60.0, shape="ltx-tiny 97x512x768 30", own_s=59.0)
        self.queue.leases.swap_seconds()

    def show(self, claim: Claim) -> None:
        """Tell RQ's tools, thrice a job."""
        for shown in (claim.job_id, None, claim.job_id):
            self.rq._show(shown)
        self.rq.check_for_suspension(burst=False)


class Meter:
    """Reads what Valkey says of itself. Costs are differences, less what asking takes."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def look(self) -> dict[str, float]:
        """Return CPU seconds of the main thread, bytes, reads and the length of the append-only file."""
        said: Any = self.client.info("everything")  # Any: redis-py's loose type
        return {
            "cpu": said["used_cpu_user_main_thread"] + said["used_cpu_sys_main_thread"],
            "bytes": said["total_net_input_bytes"] + said["total_net_output_bytes"],
            "reads": said["total_reads_processed"],
            "disk": said["aof_current_size"],
            "memory": said["used_memory"],
        }

    def cost(self, call: Callable[[int], object], times: int, at_once: int = 1) -> Cost:
        """Return the mean cost of a call.

        Args:
            at_once: threads that call: a Redis with much to do answers several in one go, and each is cheaper then.
        """
        empty = self._difference(lambda: None)
        with ThreadPoolExecutor(at_once) as threads:
            found = self._difference(lambda: list(threads.map(call, range(times))))
        per = {name: max(0.0, found[name] - empty[name]) / times for name in found}
        return Cost(redis_us=per["cpu"] * 1e6, bytes=per["bytes"], trips=round(per["reads"], 2), disk_bytes=per["disk"])

    def _difference(self, do: Callable[[], object]) -> dict[str, float]:
        before = self.look()
        do()
        after = self.look()
        return {name: after[name] - before[name] for name in before}


def measure(url: str, folder: Path, times: int, few: int, many: int) -> Measured:
    """Measure everything; needs a Valkey of its own, which is emptied.

    Args:
        times: calls of each kind.
        few, many: workers that live during the first and the second round: what grows with them shows.
    """
    with redis.Redis.from_url(url, decode_responses=True) as client:
        meter, queue, rq = Meter(client), open_bench(url), rq_connection(url, patient=True)
        client.flushall()
        ping = statistics.median(meter.cost(lambda n: queue.records.client.ping(), times).redis_us for _ in range(3))
        flush = _flush(meter, queue.records.client, times)
        small, memory = _round(meter, queue, rq, url, folder, times, few)
        large, _ = _round(meter, queue, rq, url, folder, max(20, times // 4), many, http=False)
        costs = {
            name: replace(cost, redis_us_each=_slope(cost, large.get(name), few, many)) for name, cost in small.items()
        }
        # What the slope is of: a heartbeat costs the same however many there are, so noise is not extrapolated.
        grows = ("claim", "view", "repair")
        costs = {
            name: _from_zero(cost, few) if name in grows else replace(cost, redis_us_each=0.0)
            for name, cost in costs.items()
        }
        shared_us = _more_us(meter, queue.records.client, times, _AT_ONCE)
        costs = {name: _without_flushes(cost, name, shared_us) for name, cost in costs.items()}
        queue.records.client.close()
        rq.close()
        client.flushall()
    return Measured(costs, memory, flush, ping)


def _flush(meter: Meter, client: redis.Redis, times: int) -> Flush:
    """Measure a flush: what SET takes more than GET."""
    client.set("bench:flush", 0)

    def seconds(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    wall_s = seconds(lambda: client.set("bench:flush", 1)) - seconds(lambda: client.get("bench:flush"))
    return Flush(_more_us(meter, client, times, 1), max(0.0, wall_s))


def _more_us(meter: Meter, client: redis.Redis, times: int, at_once: int) -> float:
    """Return what SET costs more than GET, microseconds; less where those who write at once share a flush."""
    write = meter.cost(lambda n: client.set("bench:flush", 1), times, at_once).redis_us
    return max(0.0, write - meter.cost(lambda n: client.get("bench:flush"), times, at_once).redis_us)


def _without_flushes(cost: Cost, name: str, flush_us: float) -> Cost:
    flushes = FLUSHES.get(name, 1.0) if cost.disk_bytes > 0 else 0.0
    return replace(cost, redis_us=max(0.0, cost.redis_us - flushes * flush_us), flushes=flushes)


def _slope(small: Cost, large: Cost | None, few: int, many: int) -> float:
    return max(0.0, (large.redis_us - small.redis_us) / (many - few)) if large else 0.0


def _from_zero(cost: Cost, few: int) -> Cost:
    return replace(cost, redis_us=max(0.0, cost.redis_us - few * cost.redis_us_each))


def _round(
    meter: Meter, queue: Queue, rq: redis.Redis, url: str, folder: Path, times: int, workers: int, *, http: bool = True
) -> tuple[dict[str, Cost], Memory]:
    """Measure each call while so many workers live and have a job each."""
    meter.client.flushall()
    empty = meter.look()["memory"]
    others = [SimWorker(url, f"other-{n}", queue, rq) for n in range(workers)]
    for other in others:
        other.beat()
    living = meter.look()["memory"]
    one = SimWorker(url, "one", queue, rq)
    costs: dict[str, Cost] = {"idle claim": meter.cost(lambda n: one.claim(), times, _AT_ONCE)}
    for _ in others:
        queue.submit(a_job())
    for other in others:
        [claim] = other.claim()
        other.report(claim)
        other.tell(claim)
        other.beat()
    queue.submit(
        replace(a_job(), request=replace(REQUEST, model="wan"))
    )  # that the others have in memory: a claim asks who
    before = meter.look()["memory"]
    costs["submit"] = meter.cost(lambda n: queue.submit(a_job()), times, _AT_ONCE)
    opened = meter.look()["memory"]
    claims: list[Claim] = []
    costs["claim"] = meter.cost(lambda n: claims.extend(one.claim()), times, _AT_ONCE)
    one.tell(*claims[:2])
    costs["beat"] = meter.cost(lambda n: one.beat(), times, _AT_ONCE)
    costs["renew"] = meter.cost(lambda n: one.renew(), times, _AT_ONCE)
    costs["reap"] = meter.cost(lambda n: one.reap(), times, _AT_ONCE)
    costs["read"] = meter.cost(lambda n: one.read(claims[n]), times, _AT_ONCE)
    costs["report"] = meter.cost(lambda n: one.report(claims[n], n), times, _AT_ONCE)
    costs["rq"] = meter.cost(lambda n: one.show(claims[n]), times, _AT_ONCE)
    costs["learn"] = meter.cost(lambda n: one.learn(), times, _AT_ONCE)
    costs["repair"] = meter.cost(lambda n: queue.leases.repair(), 3)
    costs["view"] = asyncio.run(_views(meter, url, len(others) + times))
    if http:
        costs |= _http(meter, url, folder, times, others)
    costs["end"] = meter.cost(lambda n: one.end(claims[n]), times, _AT_ONCE)
    ended = meter.look()["memory"]
    memory = Memory(
        open_job=(opened - before) / times,
        # What a job leaves, of what it had while it was open: the API's own submits are open still.
        ended_job=_ended_bytes(meter.client, [claim.job_id for claim in claims[:20]]),
        worker=max(0.0, living - empty) / max(1, workers),
    )
    assert ended > 0
    for worker in (one, *others):
        worker.keeper.records.client.close()
    return costs, memory


def _ended_bytes(client: redis.Redis, jobs: list[str]) -> float:
    """Return the mean bytes of what is kept of ended jobs for the whole of their retention."""
    total = 0
    for job in jobs:
        number = str(client.hget(f"polyreel:job:{job}", "number"))
        for key in (f"polyreel:job:{job}", f"polyreel:number:{number}"):
            used: Any = client.memory_usage(key, samples=0)  # Any: redis-py's loose type
            total += int(used or 0)
        total += 150  # its place in the owner's index
    return total / max(1, len(jobs))


async def _views(meter: Meter, url: str, jobs: int) -> Cost:
    """Measure what a process reads of the whole queue for its estimates, for each job that a worker has."""
    from polyreel.profiles import load_settings

    reader = connect_reader(url)
    waiting = Waiting(reader, Gate(), load_settings().settings.catalogue, Rule(), 1)
    reads, began = 3, time.process_time()
    before, empty = meter.look(), None
    for _ in range(reads):
        waiting._view = empty
        await waiting._current()
    spent, after = time.process_time() - began, meter.look()
    await reader.aclose()
    per = {name: (after[name] - before[name]) / reads for name in before}
    return Cost(per["cpu"] * 1e6, 0.0, spent / reads / max(1, jobs) * 1e6, per["bytes"], per["reads"])


def _http(meter: Meter, url: str, folder: Path, times: int, others: list[SimWorker]) -> dict[str, Cost]:
    """Measure an API process: a submit, a poll, and a look on behalf of who follows a job."""
    with serving(url, folder) as (port, pid):
        head = f"Host: bench\r\nAuthorization: Bearer {KEY}\r\n"
        body = json.dumps({"model": MODEL, "prompt": _PROMPT, "num_frames": 17, "height": 256, "width": 256})
        submit = f"POST /polyreel/v1/jobs HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        running = others[0].keeper.state.claims[0][0]
        # Its own jobs alone may be read by a key: the other workers' are another owner's.
        asyncio.run(_ask(port, submit, 20))
        mine = meter.client.zrange("polyreel:jobs:bench-key", -1, -1) or [running]
        poll = f"GET /polyreel/v1/jobs/{mine[0]!s} HTTP/1.1\r\n{head}\r\n".encode()
        asyncio.run(_ask(port, poll, 20))
        found = {}
        for name, text in (("submit", submit), ("poll", poll)):
            cpu = _cpu_s(pid)
            cost = meter.cost(partial(_asked, port, text), max(1, times // _ASKED))
            found[name] = replace(
                cost,
                redis_us=cost.redis_us / _ASKED,
                bytes=cost.bytes / _ASKED,
                trips=round(cost.trips / _ASKED, 2),
                disk_bytes=cost.disk_bytes / _ASKED,
                api_us=(_cpu_s(pid) - cpu) / (_ASKED * max(1, times // _ASKED)) * 1e6,
            )
        jobs = meter.client.zrange("polyreel:jobs:bench-key", -10, -1)
        cpu, before = _cpu_s(pid), meter.look()
        asyncio.run(_follow(port, head, [str(job) for job in jobs], 3.0))
        looks = 4.0 * 3.0 * len(jobs)
        after = meter.look()
        found["look"] = Cost(
            (after["cpu"] - before["cpu"]) / looks * 1e6,
            0.0,
            (_cpu_s(pid) - cpu) / looks * 1e6,
            (after["bytes"] - before["bytes"]) / looks,
            round((after["reads"] - before["reads"]) / looks, 2),
        )
        return found


@contextmanager
def serving(url: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Give port and process id of an API process on loopback."""
    from tests.conftest import free_port

    port = free_port()
    own = {name: value for name, value in os.environ.items() if not name.startswith("POLYREEL_")}
    own |= {"REDIS_URL": url, "POLYREEL_API_KEYS": f"bench-key:{KEY}", "POLYREEL_MAX_QUEUED": "10000000"}
    own |= {"POLYREEL_STATE_DIR": str(folder / "api"), "POLYREEL_LOG_LEVEL": "warning", "POLYREEL_MIN_FREE_MB": "0"}
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(command("serve", ["--port", str(port)]), env=own, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not asyncio.run(_answers(port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the API does not start:\n{(folder / 'api.log').read_text()}")
                time.sleep(0.1)
            try:
                yield port, process.pid
            except Refused as err:
                raise SystemExit(f"{err}\n{(folder / 'api.log').read_text()[-3000:]}") from err
        finally:
            process.terminate()
            process.wait(30)


def _asked(port: int, text: bytes, _n: int) -> None:
    asyncio.run(_ask(port, text, _ASKED))


async def _answers(port: int) -> bool:
    try:
        await _ask(port, b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n", 1)
    except OSError:
        return False
    return True


async def _ask(port: int, text: bytes, count: int) -> None:
    """Send a request so often, over several connections that are kept."""

    async def over_one(times: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(times):
            writer.write(text)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
                raise Refused(f"{head.decode()}{answer.decode()}")
        writer.close()

    share = max(1, count // _CONNECTIONS)
    await asyncio.gather(*(over_one(share) for _ in range(max(1, count // share))))


async def _follow(port: int, head: str, jobs: list[str], seconds: float) -> None:
    """Follow jobs for so long."""
    writers = []
    for job in jobs:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /polyreel/v1/jobs/{job}/events HTTP/1.1\r\n{head}\r\n".encode())
        writers.append(writer)
    await asyncio.sleep(seconds)
    for writer in writers:
        writer.close()


def _cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

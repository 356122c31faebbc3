"""Clients of every dialect that do not give up, and remember all that they were told.

A client sends its request until somebody acknowledges it (always under the same Idempotency-Key), polls until its job
has ended, and fetches the file. Answers that no client should get are noted as wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2

from tests.conftest import KEY, OTHER_KEY

DIALECTS = ("huggingface", "universal", "modelslab", "novita")

#: Answers that mean: come again. 504 is a synchronous wait that was given up; its job goes on.
COME_AGAIN = {429, 503, 504}

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Ask:
    """What one client wants.

    Args:
        name: unique in a test; its Idempotency-Key, and part of its prompt.
        dialect: one of `DIALECTS`.
        orders: of `tests.faults.paced`, e.g. "step_s=0.1".
        model: catalogue name; the universal dialect has only the first.
        steps: denoising steps.
        owner: "alice" or "bob".
        headers: further ones of the submit.
        is_keyed: send the name as Idempotency-Key; without it, a job whose waiting client goes away may be cancelled.
    """

    name: str
    dialect: str
    orders: str = ""
    model: str = "first"
    steps: int = 2
    owner: str = "alice"
    headers: dict[str, str] = field(default_factory=dict)
    is_keyed: bool = True

    @property
    def prompt(self) -> str:
        """The text that the model is given."""
        return f"clip {self.name} {self.orders}".strip()

    @property
    def key(self) -> str:
        """The API key."""
        return {"alice": KEY, "bob": OTHER_KEY}[self.owner]


@dataclass
class Kept:
    """What a client remembers.

    Attributes:
        job_id: "" until it was told.
        acknowledged_at: moment of the first answer that promised the job, 0.0 before.
        seen: (0 waiting, 1 at work, 2 ended; percent) at each change.
        end: "succeeded", "failed", "" before.
        reason: of a failure.
        link: to the file.
        content: of the file.
        submits: requests until the acknowledgement.
        submit_s, poll_s: seconds that answers took.
        wrong: what nobody should be told.
    """

    ask: Ask
    job_id: str = ""
    number: int = 0
    acknowledged_at: float = 0.0
    seen: list[tuple[int, int]] = field(default_factory=list)
    end: str = ""
    reason: str = ""
    link: str = ""
    content: bytes = b""
    submits: int = 0
    submit_s: list[float] = field(default_factory=list)
    poll_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of the file's content."""
        return hashlib.sha256(self.content).hexdigest()

    def acknowledged(self, job_id: str) -> None:
        """Note that somebody promised the job; the same one every time."""
        if self.job_id and job_id != self.job_id:
            self.wrong.append(f"was told of job {self.job_id}, then of {job_id}")
        self.job_id = job_id
        self.acknowledged_at = self.acknowledged_at or time.monotonic()

    def see(self, rank: int, progress: int) -> None:
        """Note a state."""
        if not self.seen or self.seen[-1] != (rank, progress):
            self.seen.append((rank, progress))


class Clients:
    """Sends requests to several API processes in turn, over one pool of connections.

    Args:
        bases: their addresses.
        pause_s: between two polls of one client, on average.
    """

    def __init__(self, bases: Sequence[str], *, pause_s: float = 0.3) -> None:
        self._bases = list(bases)
        self._turn = 0
        self._pause_s = pause_s
        self._http = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
            timeout=httpx2.Timeout(10, read=20, pool=None),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def base(self) -> str:
        """Return the address whose turn it is."""
        self._turn += 1
        return self._bases[self._turn % len(self._bases)]

    async def run(self, kept: Kept) -> None:
        """Do what a client does, to the end."""
        if kept.ask.dialect in ("huggingface", "universal"):
            await self.submit(kept)
            return
        await self.submit(kept)
        while not kept.end:
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.5))
            await self.poll(kept)
        if kept.end == "succeeded":
            kept.content = await self.fetch(kept)

    async def submit(self, kept: Kept) -> None:
        """Send the request until it is acknowledged; the synchronous dialects answer with the end."""
        while not kept.acknowledged_at:
            kept.submits += 1
            began = time.monotonic()
            answer = await self._send(_SUBMIT[kept.ask.dialect](kept.ask, self.base()))
            if answer is None or answer.status_code in COME_AGAIN:
                if answer is not None and "retry-after" not in answer.headers and answer.status_code != 504:
                    kept.wrong.append(f"{answer.status_code} without Retry-After")
                await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.5))
                continue
            kept.submit_s.append(time.monotonic() - began)
            await self._take(kept, answer)

    async def _take(self, kept: Kept, answer: httpx2.Response) -> None:
        """Read the answer to a submit."""
        dialect, text = kept.ask.dialect, answer.text if answer.status_code != 200 else ""
        if answer.status_code == 500 and dialect in ("huggingface", "universal") and "job_id" in text:
            kept.acknowledged(answer.json()["job_id"])
            kept.end, kept.reason = "failed", answer.json()["error"]
            kept.see(2, 100)
        elif answer.status_code != 200:
            kept.wrong.append(f"submit: {answer.status_code} {text[:300]}")
            kept.acknowledged_at, kept.end = time.monotonic(), "refused"
        elif dialect == "huggingface":
            kept.acknowledged(answer.headers["x-request-id"])
            kept.content, kept.end = answer.content, "succeeded"
            kept.see(2, 100)
        elif dialect == "universal":
            kept.link = answer.json()["outputs"]["gif_url"]
            found = _ID.search(kept.link)
            assert found, kept.link
            kept.acknowledged(found[0])
            kept.end = "succeeded"
            kept.see(2, 100)
            kept.content = await self.fetch(kept)
        elif dialect == "modelslab":
            said = answer.json()
            kept.number = said["id"]
            kept.acknowledged(said["meta"]["file_prefix"])
            kept.link = said["future_links"][0]
        else:
            kept.acknowledged(answer.json()["task_id"])
            kept.number = 1

    async def poll(self, kept: Kept) -> None:
        """Ask once how the job is getting on; no answer is none."""
        began = time.monotonic()
        answer = await self._send(_POLL[kept.ask.dialect](kept, self.base()))
        if answer is None or answer.status_code in COME_AGAIN:
            return
        kept.poll_s.append(time.monotonic() - began)
        if answer.status_code != 200:
            kept.wrong.append(f"poll: {answer.status_code} {answer.text[:300]}")
            return
        (_read_modelslab if kept.ask.dialect == "modelslab" else _read_novita)(kept, answer.json())

    async def fetch(self, kept: Kept) -> bytes:
        """Return the file behind the link; a link may be asked for again, so a server that is away only delays it."""
        path = kept.link.partition("/files/")[2]
        while True:
            answer = await self._send(partial(_get, url=f"{self.base()}/files/{path}"))
            if answer is not None and answer.status_code == 200:
                return answer.content
            if answer is not None and answer.status_code not in COME_AGAIN:
                kept.wrong.append(f"file: {answer.status_code} {answer.text[:300]}")
                return b""
            await asyncio.sleep(self._pause_s)

    async def _send(self, send: Callable[[httpx2.AsyncClient], Awaitable[httpx2.Response]]) -> httpx2.Response | None:
        try:
            return await send(self._http)
        except httpx2.TransportError:  # nobody there, or it went away in the middle
            return None


Send = Callable[[httpx2.AsyncClient], Awaitable[httpx2.Response]]


def _post(ask: Ask, url: str, body: dict[str, Any], read_s: float = 20, **headers: str) -> Send:
    keyed = {"Idempotency-Key": ask.name} if ask.is_keyed else {}
    sent = {"Authorization": f"Bearer {ask.key}", **keyed, **headers, **ask.headers}
    return lambda http: http.post(url, json=body, headers=sent, timeout=httpx2.Timeout(10, read=read_s, pool=None))


def _huggingface(ask: Ask, base: str) -> Send:
    body = {"inputs": ask.prompt, "parameters": {"num_inference_steps": ask.steps, "num_frames": 2}}
    return _post(ask, f"{base}/models/faults/{ask.model}", body, 300, **{"x-use-cache": "false"})


def _universal(ask: Ask, base: str) -> Send:
    inputs = {
        "prompt": ask.prompt, "num_frames": 2, "height": 64, "width": 64, "num_inference_steps": ask.steps,
        "return_base64": False,
    }  # fmt: skip
    return _post(ask, f"{base}/", {"inputs": inputs}, 300)


def _modelslab(ask: Ask, base: str) -> Send:
    body = {
        "key": ask.key, "prompt": ask.prompt, "model_id": ask.model, "num_frames": 2, "height": 64, "width": 64,
        "num_inference_steps": ask.steps, "instant_response": True, "output_type": "gif",
    }  # fmt: skip
    return _post(ask, f"{base}/api/v6/video/text2video", body)


def _novita(ask: Ask, base: str) -> Send:
    body = {
        "model_name": f"{ask.model}.safetensors", "height": 256, "width": 256, "steps": ask.steps,
        "prompts": [{"frames": 8, "prompt": ask.prompt}], "extra": {"response_video_type": "mp4"},
    }  # fmt: skip
    return _post(ask, f"{base}/v3/async/txt2video", body)


_SUBMIT: dict[str, Callable[[Ask, str], Send]] = {
    "huggingface": _huggingface, "universal": _universal, "modelslab": _modelslab, "novita": _novita,
}  # fmt: skip


def _get(http: httpx2.AsyncClient, url: str) -> Awaitable[httpx2.Response]:
    return http.get(url)


def _poll_modelslab(kept: Kept, base: str) -> Send:
    return lambda http: http.post(f"{base}/api/v6/video/fetch/{kept.number}", json={"key": kept.ask.key})


def _poll_novita(kept: Kept, base: str) -> Send:
    headers = {"Authorization": f"Bearer {kept.ask.key}"}
    url = f"{base}/v3/async/task-result"
    return lambda http: http.get(url, params={"task_id": kept.job_id}, headers=headers)


#: The synchronous dialects have no poll of their own; Novita's knows every job of its owner.
_POLL: dict[str, Callable[[Kept, str], Send]] = {
    "huggingface": _poll_novita, "universal": _poll_novita, "modelslab": _poll_modelslab, "novita": _poll_novita,
}  # fmt: skip


def _read_modelslab(kept: Kept, said: dict[str, Any]) -> None:
    kept.see({"processing": 0}.get(said["status"], 2), 0)
    if said["status"] == "success":
        if said["output"] != [kept.link]:
            kept.wrong.append(f"promised {kept.link}, gave {said['output']}")
        kept.end = "succeeded"
    elif said["status"] != "processing":
        kept.end, kept.reason = "failed", said["message"]


def _read_novita(kept: Kept, said: dict[str, Any]) -> None:
    task = said["task"]
    rank = {"TASK_STATUS_QUEUED": 0, "TASK_STATUS_PROCESSING": 1}.get(task["status"], 2)
    kept.see(rank, task["progress_percent"])
    if task["status"] == "TASK_STATUS_SUCCEED":
        kept.end = "succeeded"
        kept.link = kept.link or said["videos"][0]["video_url"]
    elif rank == 2:
        kept.end, kept.reason = "failed", task["reason"]


class Crowd:
    """Many clients at once, in a thread of their own.

    Args:
        bases: addresses of the API processes.
        asks: what they want.
        over_s: the time over which they come, evenly, seconds.
    """

    def __init__(self, bases: Sequence[str], asks: Sequence[Ask], *, over_s: float = 0.0, pause_s: float = 0.3) -> None:
        self.kept = [Kept(ask) for ask in asks]
        self._bases, self._over_s, self._pause_s = list(bases), over_s, pause_s
        self._give_up: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._in_thread, name="clients", daemon=True)

    def start(self) -> Crowd:
        """Let them come."""
        self._thread.start()
        return self

    @property
    def is_busy(self) -> bool:
        """True until all are done."""
        return self._thread.is_alive()

    def finish(self, timeout_s: float) -> list[Kept]:
        """Return what they remember; those that are not done after `timeout_s` go away."""
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self._loop and self._give_up:
            self._loop.call_soon_threadsafe(self._give_up.set)
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.kept

    def _in_thread(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as err:  # told to whoever waits for us
            self._failure = err

    async def _all(self) -> None:
        self._loop, self._give_up = asyncio.get_running_loop(), asyncio.Event()
        clients = Clients(self._bases, pause_s=self._pause_s)

        async def one(index: int, kept: Kept) -> None:
            await asyncio.sleep(self._over_s * index / max(1, len(self.kept)))
            await clients.run(kept)

        tasks = [asyncio.create_task(one(index, kept)) for index, kept in enumerate(self.kept)]
        done = asyncio.gather(*tasks)
        gone = asyncio.create_task(self._give_up.wait())
        try:
            await asyncio.wait([done, gone], return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                await done
        finally:
            for task in [*tasks, gone]:
                task.cancel()
            await asyncio.gather(*tasks, gone, done, return_exceptions=True)
            await clients.close()


def run_all(bases: Sequence[str], asks: Sequence[Ask], timeout_s: float = 90.0, *, pause_s: float = 0.1) -> list[Kept]:
    """Let clients come all at once; return what they remember when all are done."""
    return Crowd(bases, asks, pause_s=pause_s).start().finish(timeout_s)


def again(bases: Sequence[str], kept: Sequence[Kept]) -> None:
    """Let every client ask and fetch once more: an end never changes, and a link always gives the same file."""

    async def ask() -> None:
        clients = Clients(bases)

        async def one(was: Kept) -> None:
            now = Kept(was.ask, job_id=was.job_id, number=was.number, link=was.link)
            for _ in range(20):
                await clients.poll(now)
                if now.seen or now.wrong:
                    break
            if now.end != was.end:
                was.wrong.append(f"had {was.end}, and later {now.end or 'no end'}")
            if was.end == "succeeded" and hashlib.sha256(await clients.fetch(now)).hexdigest() != was.sha256:
                was.wrong.append("the link gave another file later")
            was.wrong += now.wrong

        await asyncio.gather(*(one(was) for was in kept if was.job_id))
        await clients.close()

    asyncio.run(ask())


def mixed(count: int, name: str, rng: random.Random, slowest_step_s: float = 0.0) -> list[Ask]:
    """Return requests over all dialects, models and owners, of different lengths."""
    return [
        Ask(
            f"{name}-{n}",
            DIALECTS[n % 4],
            f"step_s={rng.uniform(0, slowest_step_s):.3f}",
            model="first" if n % 4 == 1 else rng.choice(["first", "first", "second"]),
            steps=rng.randint(2, 8),
            owner=rng.choice(["alice", "bob"]),
        )
        for n in range(count)
    ]

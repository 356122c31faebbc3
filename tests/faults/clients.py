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
from collections.abc import Sequence
from functools import partial

import httpx2

from tests.faults.asks import Ask, Kept
from tests.faults.dialects import POLL, SUBMIT, Send, get, read_modelslab, read_novita

#: Answers that mean: come again. 504 is a synchronous wait that was given up; its job goes on.
COME_AGAIN = {429, 503, 504}

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
            answer = await self._send(SUBMIT[kept.ask.dialect](kept.ask, self.base()))
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
        answer = await self._send(POLL[kept.ask.dialect](kept, self.base()))
        if answer is None or answer.status_code in COME_AGAIN:
            return
        kept.poll_s.append(time.monotonic() - began)
        if answer.status_code != 200:
            kept.wrong.append(f"poll: {answer.status_code} {answer.text[:300]}")
            return
        (read_modelslab if kept.ask.dialect == "modelslab" else read_novita)(kept, answer.json())

    async def fetch(self, kept: Kept) -> bytes:
        """Return the file behind the link; a link may be asked for again, so a server that is away only delays it."""
        path = kept.link.partition("/files/")[2]
        while True:
            answer = await self._send(partial(get, url=f"{self.base()}/files/{path}"))
            if answer is not None and answer.status_code == 200:
                return answer.content
            if answer is not None and answer.status_code not in COME_AGAIN:
                kept.wrong.append(f"file: {answer.status_code} {answer.text[:300]}")
                return b""
            await asyncio.sleep(self._pause_s)

    async def _send(self, send: Send) -> httpx2.Response | None:
        try:
            return await send(self._http)
        except httpx2.TransportError:  # nobody there, or it went away in the middle
            return None


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

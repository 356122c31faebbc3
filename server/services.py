"""What the routes of every dialect share: settings, catalogue, queue, results, keys. One per API process."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isinf

import anyio
import redis.asyncio
import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from polyreel.admission import check_fits, needed_bytes
from polyreel.catalogue import NEUTRAL, Catalogue, Words
from polyreel.errors import (
    NotCancellable,
    QueueUnavailable,
    UnknownJob,
)
from polyreel.estimates import Estimate
from polyreel.formats import formats
from polyreel.job import new_job
from polyreel.keys import Caller, Scope
from polyreel.limits import Usage
from polyreel.links import LinkSigner, file_url
from polyreel.outbound import Outbound
from polyreel.policy import Judge
from polyreel.queue import Queue
from polyreel.records import StoredJob, hidden_from, job_key, parse
from polyreel.request import VideoRequest
from polyreel.settings import Settings
from polyreel.signing import WebhookSigner
from polyreel.storage import Storage
from polyreel.terms import Terms
from server.callers import Callers
from server.fetching import MAX_FETCHES, fetch_links
from server.gate import Gate, budget
from server.joining import Joining
from server.live_workers import LiveWorkers
from server.pictures import MAX_AT_ONCE, Picture, check_picture, is_link, read_picture
from server.published import Published
from server.replays import replayed
from server.storage_watch import StorageWatch, for_clients
from server.submit_log import log_submit, trace_of_request
from server.waiters import Waiters
from server.waiting import Waiting
from server.watching import Watches

log = structlog.get_logger()

#: A waiting route looks at the record after the shortest pause first, then after a twentieth of the time it has waited
#: already, and never later than the longest, seconds: nobody waits 5 % longer than needed, and a look costs little.
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.02, 0.25

#: Threads for content policies, their own: one that hangs holds up nothing but submits.
_MAX_JUDGED = 32

#: What the queue says of a job that cannot be cancelled any more, in a sentence.
_TOO_LATE = {
    "succeeded": "The job has succeeded already.",
    "failed": "The job has failed already.",
    "finishing": "The job's file is being made already; it will be ready in a moment.",
}


@dataclass(frozen=True)
class Services:
    """The API's side of the core. Nothing here blocks the event loop.

    Args:
        callers: tells whose key a request carries.
        queue: None until Redis is configured (`import server.app` needs no Redis).
        reader: asynchronous client for polls.
        waiters: who waits for which job.
        waiting: where jobs stand in the queue.
        live_workers: who runs them now.
        gate: what every call to Redis passes.
        outbound: what every call to a client's URL passes.
        joining: knows the secrets that all machines share.
        published: which stored files links lead to.
        storage_watch: whether results can be stored.
        judge: asks the content policy; None is no policy.
        watches: who follows which job.
        stopping: set when this process is told to stop; whoever waits for a job says so to its client then.
    """

    settings: Settings
    catalogue: Catalogue
    callers: Callers
    storage: Storage
    queue: Queue
    reader: redis.asyncio.Redis
    waiters: Waiters
    waiting: Waiting
    live_workers: LiveWorkers
    gate: Gate
    outbound: Outbound
    joining: Joining
    published: Published
    storage_watch: StorageWatch
    judge: Judge | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    watches: Watches = field(default_factory=Watches)
    _decoding: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAX_AT_ONCE))
    _fetching: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAX_FETCHES))
    _judging: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_MAX_JUDGED))

    @property
    def signer(self) -> LinkSigner:
        """What links are signed with; raises `QueueUnavailable` as `Joining.secrets`, as does the next one."""
        return self.joining.secrets.links

    @property
    def webhook_signer(self) -> WebhookSigner:
        """Knows each owner's webhook secrets."""
        return self.joining.secrets.webhooks

    async def caller(self, key: str | None, scope: Scope) -> Caller:
        """Return who sends a request with this key.

        Args:
            scope: what the request needs.

        Raises:
            MissingKey, InvalidKey: no key, or none of ours.
            NotAllowed: the key lacks the scope.
            QueueUnavailable: only Redis knows such keys, and it does not answer.
        """
        caller = await self.callers.find(key)
        caller.need(scope)
        return caller

    async def usage(self, caller: Caller) -> Usage:
        """Return what the caller's account has used today; its limits are `caller.limits`.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        return await self.gate.in_thread(self.queue.records.usage, caller.account or caller.owner)

    async def read_picture(self, field: str, text: str) -> Picture:
        """As `server.pictures.read_picture`, in a thread; only so many at a time that memory is bounded."""
        return await anyio.to_thread.run_sync(read_picture, field, text, limiter=self._decoding)

    async def fetch_picture(self, field: str, text: str) -> Picture:
        """As `fetch_pictures`, for one."""
        [picture] = await self.fetch_pictures([(field, text)])
        return picture

    async def fetch_pictures(self, wanted: Sequence[tuple[str, str]]) -> list[Picture]:
        """Return pictures that a client sends in base64, or names by links.

        Args:
            wanted: field, in the client's words, and text: as for `read_picture`, or an absolute URL.

        Raises:
            UnsafeAddress: a link leads where this server does not go for clients.
            NotFetched: nothing comes of a link.
            InvalidRequest: no picture, or none that is taken.
        """
        links = [(field, text) for field, text in wanted if is_link(text)]
        contents: Iterator[bytes] = iter(())
        if links:  # who sends none does not wait for those who do
            fetched = await anyio.to_thread.run_sync(fetch_links, self.outbound, links, limiter=self._fetching)
            contents = iter(fetched)
        return [
            await (self.check_picture(field, next(contents)) if is_link(text) else self.read_picture(field, text))
            for field, text in wanted
        ]

    def check_url(self, field: str, url: str) -> str:
        """As `Outbound.check_url`: return a webhook's URL as it will be called, or raise for one that never will be."""
        return self.outbound.check_url(field, url)

    async def check_picture(self, field: str, content: bytes) -> Picture:
        """As `read_picture`, for a file as it is: a raw body, a part of a form."""
        return await anyio.to_thread.run_sync(check_picture, field, content, limiter=self._decoding)

    async def submit(
        self,
        request: VideoRequest,
        *,
        dialect: str,
        caller: Caller,
        vendor: dict[str, object] | None = None,
        pictures: Sequence[Picture] = (),
        terms: Terms | None = None,
        base_url: str = "",
        webhook: str = "",
        keep_s: float = 0.0,
        words: Words = NEUTRAL,
    ) -> StoredJob:
        """Acknowledge a job: once this returns, it will run.

        Args:
            caller: from `caller`.
            pictures: what `request.images` names, stored when nothing else refuses the request. They stay where the
                queue fills up in that moment: another process may have been promised the same picture meanwhile.
            terms: from `server.submission.read_terms`.
            base_url, webhook, keep_s: see `VideoJob`; a webhook has passed `check_url`.
            words: see `Catalogue.admit`.

        Returns:
            The record; an earlier job's for an Idempotency-Key that came before with the same request.

        Raises:
            KeyReused: the Idempotency-Key stands for another request.
            StorageFull: there is no space for the result.
            StorageFailed: a picture could not be stored.
            NotAllowed, InvalidRequest: as `admit`, which is asked here, not in each dialect: all pass here, also those
                whose own documented ranges allow more.
            TooManyJobs, QueueUnavailable: nothing was acknowledged; `LimitReached` where the key's own limit says so.
        """
        terms = terms or Terms()
        earlier = await self.earlier(caller.owner, terms)
        if earlier is not None:
            return earlier
        request = await self.admit(request, dialect, caller, words)
        await self.storage_watch.need_space()
        extensions = tuple(formats()[output.format].extension for output in request.outputs)
        job = new_job(request, dialect=dialect, owner=caller.owner, extensions=extensions, vendor=dict(vendor or {}))
        own_s = await self._own_s(request)
        terms = replace(terms, limits=caller.limits, expected_s=own_s or 0.0)
        job = replace(
            job,
            saved=not isinf(self.settings.resume_after_s) and (own_s is None or own_s >= self.settings.resume_after_s),
            account=caller.account,
            base_url=base_url,
            webhook=webhook,
            keep_s=caller.limits.kept_s(keep_s),
            content_policy=self.judge.name if self.judge else "",
            trace=trace_of_request(),
        )
        if pictures:
            await self.gate.in_thread(self.queue.check, job, terms)
        with for_clients():
            for picture in pictures:
                await run_in_threadpool(picture.store, self.storage)
        stored = await self.gate.in_thread(self.queue.submit, job, terms)
        for picture in pictures:
            await run_in_threadpool(picture.restore, self.storage)
        if stored.job.id != job.id:  # another request with the same key was quicker
            replayed()
        else:
            log_submit(job, with_prompt=self.settings.log_prompts)
        return stored

    async def admit(self, request: VideoRequest, dialect: str, caller: Caller, words: Words = NEUTRAL) -> VideoRequest:
        """Return a request as it is to run, if it may.

        Args:
            words: see `Catalogue.admit`.

        Raises:
            NotAllowed: the key may not use this model.
            InvalidRequest: more than the model's entry allows, what it cannot do, or more than the largest device that
                serves it can hold; `ContentRefused` where the content policy says so.
            QueueUnavailable: Redis does not answer.
            PolicyUnavailable: the content policy does not.
        """
        called = self.catalogue.called(request.model, dialect)
        caller.need_model(request.model, called)
        request = self.catalogue.admit(request, dialect, words)
        await self._check_fits(request, called)
        if self.judge:  # last: it may cost more than all else together
            check = self.judge.check_request
            await anyio.to_thread.run_sync(check, request, caller.owner, limiter=self._judging)
        return request

    async def _own_s(self, request: VideoRequest) -> float | None:
        """Return how long a job would take by itself, None for unknown.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        try:
            return await self.waiting.own_s(request)
        except QueueUnavailable:
            raise
        except Exception as err:  # a job is not refused because its length is unknown
            log.warning("length of a job cannot be told", model=request.model, reason=repr(err))
            return None

    async def earlier(self, owner: str, terms: Terms) -> StoredJob | None:
        """Return the job that this Idempotency-Key has made, None when it has made none.

        Asked before anything else, though the submit itself decides: what has been acknowledged stays so, also when
        the queue is full by now, the worker that the job fits has gone, or the link to its picture leads nowhere: so a
        route that fetches one asks this before.
        """
        if not terms.idempotency_key:
            return None
        async with self.gate.asking():
            job_id, digest = await self.reader.hmget(terms.redis_key(owner), "job", "digest")
            if not job_id or digest != terms.digest:
                return None
            found = parse(await self.reader.hgetall(job_key(str(job_id))))
        if found is not None:
            replayed()
        return found

    async def _check_fits(self, request: VideoRequest, called: str) -> None:
        entry = self.catalogue[request.model]
        if not needed_bytes(entry, request):
            return
        device_bytes = await self.live_workers.largest_device(request.model)
        if device_bytes is not None:
            check_fits(entry, request, device_bytes, called)

    async def get(self, job_id: str, owner: str) -> StoredJob:
        """Return a record of this owner by uuid, or by its whole number.

        Raises:
            UnknownJob: there is none, or it is somebody else's: both read the same.
        """
        async with self.gate.asking():
            if job_id.isascii() and job_id.isdigit() and len(job_id) <= 19:
                job_id = str(await self.reader.get(f"polyreel:number:{job_id}") or "")
            stored = parse(await self.reader.hgetall(job_key(job_id))) if _is_uuid(job_id) else None
        if stored is None or hidden_from(stored, owner):
            raise UnknownJob("No job has this id.")
        return stored

    async def record(self, job_id: str) -> StoredJob | None:
        """Return a record whoever its owner is, None when there is none.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        async with self.gate.asking():
            return parse(await self.reader.hgetall(job_key(job_id)))

    async def unfinished(self, owner: str) -> int:
        """Return how many jobs of this owner have not ended.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        async with self.gate.asking():
            return int(await self.reader.hget("polyreel:open:owners", owner) or 0)

    async def cancel(self, job_id: str, owner: str) -> StoredJob:
        """End a job of this owner that has not begun to be stored; one that was cancelled before stays so.

        Returns:
            The record of the cancelled job.

        Raises:
            UnknownJob: there is none, or it is somebody else's.
            NotCancellable: it has succeeded or failed, or its file is being made; `reason` says which.
            QueueUnavailable: Redis does not answer; whether it is cancelled, nobody knows.
        """
        stored = await self.get(job_id, owner)
        word = await self.gate.in_thread(self.queue.cancel, stored.job.id)
        if word in _TOO_LATE:
            raise NotCancellable(_TOO_LATE[word], word)
        return await self.get(stored.job.id, owner)

    async def wait(self, job_id: str, owner: str, timeout_s: float) -> StoredJob:
        """Return the record as soon as the job has ended, or as it is after `timeout_s` seconds or when we stop."""
        started = time.monotonic()
        while True:
            with budget():  # each look may take what one answer may
                stored = await self.get(job_id, owner)
            waited_s = time.monotonic() - started
            if stored.job.status.is_terminal or waited_s >= timeout_s or self.stopping.is_set():
                return stored
            await asyncio.sleep(min(max(_SHORTEST_LOOK_S, waited_s / 20), _LONGEST_LOOK_S))

    async def estimate(self, stored: StoredJob) -> Estimate:
        """Return where a job stands and when it will be done, as far as that is known."""
        return await self.waiting.estimate(stored)

    async def eta_s(self, stored: StoredJob) -> int:
        """Return the whole seconds until a job ends for contracts that want a number: 0 when it has ended, a guess
        while it is unknown."""
        if stored.job.status.is_terminal:
            return 0
        found = await self.estimate(stored)
        return guess_s(found.position) if found.eta_s is None else max(1, round(found.eta_s))

    async def workers(self) -> list[dict[str, object]]:
        """Return what each live worker says of itself."""
        return await self.live_workers.said()

    def base_url(self, request: Request) -> str:
        """Return the absolute base of the links in answers, without a slash at the end."""
        return self.settings.public_url or f"{request.url.scheme}://{request.url.netloc}"

    def link(self, base_url: str, key: str, expires_at: float) -> str:
        """Return an absolute link to the file of a public key, existing or future, good until `expires_at`."""
        return file_url(self.signer, base_url, key, expires_at)

    async def read(self, key: str) -> bytes:
        """Return a stored file whole.

        Raises:
            StorageFailed: it is not there; `StorageAway` when nobody can say.
        """

        def read() -> bytes:
            with for_clients(), self.storage.open(key) as file:
                return file.read()

        return await run_in_threadpool(read)


def guess_s(position: int = 0) -> int:
    """Return the seconds that a contract is told which has no word for unknown: ten for each job."""
    return 10 * (position + 1)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def services(request: Request) -> Services:
    """Return the services of the app that serves `request`."""
    found: Services = request.app.state.services
    return found

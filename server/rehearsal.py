"""Jobs that only seem to run: what a vendor's test mode asks for, so that a receiver of webhooks can be tried out.

A rehearsal is recorded as any other job, ends as it is taken in, and shows a sample video of ours; no worker sees it.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from polyreel.catalogue import NEUTRAL, Words
from polyreel.errors import KeyReused, TooManyJobs
from polyreel.formats import formats
from polyreel.job import JobStatus, Output, VideoJob, attempt_key, new_job
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import OutputSpec, VideoRequest
from polyreel.terms import Terms
from server.replays import replayed
from server.services import Services
from server.storage_watch import for_clients
from server.submit_log import log_submit, trace_of_request

#: What a rehearsal that fails says.
MOCK_FAILURE = "This is the mock failure of the webhook's test mode; nothing was generated."

#: The sample: 8 frames of 64x64 at 8 fps.
_HEIGHT, _WIDTH, _NUM_FRAMES, _FPS = 64, 64, 8, 8.0


async def rehearse(
    shared: Services,
    request: VideoRequest,
    end: JobStatus,
    *,
    dialect: str,
    caller: Caller,
    vendor: dict[str, Any],
    terms: Terms,
    base_url: str,
    webhook: str,
    words: Words = NEUTRAL,
) -> StoredJob:
    """Record a job that has ended already; its webhook is told as any other's.

    What would be refused in earnest is refused here too, and it counts as a submit of its key.

    Args:
        request: what would have run. The record has the sample's format, and no pictures, as nothing looks at them.
        end: SUCCEEDED, with the sample as its video, or FAILED.
        vendor, base_url, webhook: see `VideoJob`. Any: JSON.
        words: see `Catalogue.admit`.

    Returns:
        The record; an earlier job's for an Idempotency-Key that came before with the same request.

    Raises:
        StorageFailed: the sample could not be stored.
        As `Services.submit`.
    """
    earlier = await shared.earlier(caller.owner, terms)
    if earlier is not None:
        return earlier
    request = await shared.admit(request, dialect, caller, words)
    request = replace(request, images=(), outputs=(OutputSpec("mp4", request.fps),))
    job = new_job(request, dialect=dialect, owner=caller.owner, extensions=(formats()["mp4"].extension,), vendor=vendor)
    job = replace(job, account=caller.account, base_url=base_url, webhook=webhook, trace=trace_of_request())
    if end is JobStatus.SUCCEEDED:
        await shared.storage_watch.need_space()
        output = await run_in_threadpool(_store_sample, shared, job)
        job = replace(job, outputs=(output,), progress=100)
    else:
        job = replace(job, error_code="mock_failure", error_message=MOCK_FAILURE)
    terms = replace(terms, limits=caller.limits, ends=end.value)
    try:
        taken = await shared.gate.in_thread(shared.queue.submit, job, terms)
    except (TooManyJobs, KeyReused):
        await _forget_sample(shared, job)
        raise
    if taken.job.id != job.id:  # another request with the same key was quicker
        replayed()
        await _forget_sample(shared, job)
    else:
        log_submit(job, with_prompt=shared.settings.log_prompts)
    return await shared.get(taken.job.id, caller.owner)


async def _forget_sample(shared: Services, job: VideoJob) -> None:
    for output in job.outputs:
        await run_in_threadpool(shared.storage.delete, output.key)


def _store_sample(shared: Services, job: VideoJob) -> Output:
    content = (files("server") / "sample.mp4").read_bytes()
    key = attempt_key(job.output_keys[0], 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        path.write_bytes(content)
        with for_clients():
            shared.storage.put(path, key)
    digest = hashlib.sha256(content).hexdigest()
    return Output(key, "mp4", "video/mp4", len(content), _HEIGHT, _WIDTH, _NUM_FRAMES, _FPS, digest)

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

from polyreel.formats import formats
from polyreel.job import JobStatus, Output, VideoJob, attempt_key, new_job
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from polyreel.terms import Terms
from server.services import Services

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
) -> StoredJob:
    """Record a job that has ended already; its webhook is told as any other's.

    Args:
        request: what would have run; its one output is an mp4.
        end: SUCCEEDED, with the sample as its video, or FAILED.
        vendor, base_url, webhook: see `VideoJob`. Any: JSON.

    Raises:
        StorageFailed: the sample could not be stored.
        As `Services.submit` for what the queue says of its key.
    """
    job = new_job(request, dialect=dialect, owner=caller.owner, extensions=(formats()["mp4"].extension,), vendor=vendor)
    job = replace(job, account=caller.account, base_url=base_url, webhook=webhook)
    if end is JobStatus.SUCCEEDED:
        output = await run_in_threadpool(_store_sample, shared, job)
        job = replace(job, outputs=(output,), progress=100)
    else:
        job = replace(job, error_code="mock_failure", error_message=MOCK_FAILURE)
    taken = await shared.gate.in_thread(shared.queue.submit, job, replace(terms, limits=caller.limits, ends=end.value))
    return await shared.get(taken.job.id, caller.owner)


def _store_sample(shared: Services, job: VideoJob) -> Output:
    content = (files("server") / "sample.mp4").read_bytes()
    key = attempt_key(job.output_keys[0], 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        path.write_bytes(content)
        shared.storage.put(path, key)
    digest = hashlib.sha256(content).hexdigest()
    return Output(key, "mp4", "video/mp4", len(content), _HEIGHT, _WIDTH, _NUM_FRAMES, _FPS, digest)

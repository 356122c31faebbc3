"""The life of one request: a `VideoJob`, its record in Redis, and the order of its states.

    queued → loading → running → encoding → uploading → succeeded | failed | cancelled

States only move forward, also over a second attempt; the rule is enforced where records are written
(`polyreel.records`), not by the good manners of callers.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from polyreel.request import VideoRequest


class JobStatus(StrEnum):
    """Where a job is. The order of the members is the order of the states."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    ENCODING = "encoding"
    UPLOADING = "uploading"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def rank(self) -> int:
        """Position on the way from 0; the three ends share the last one."""
        return min(list(JobStatus).index(self), 5)

    @property
    def is_terminal(self) -> bool:
        """True when nothing will change any more."""
        return self.rank == 5


@dataclass(frozen=True, slots=True)
class Output:
    """One stored file of a succeeded job.

    Args:
        key: in the storage; each attempt has its own.
        format: name of the format, e.g. "mp4".
        media_type: Content-Type.
        bytes: length of the file.
        height, width, num_frames, fps: of the picture.
        sha256: of the file, hexadecimal.
    """

    key: str
    format: str
    media_type: str
    bytes: int
    height: int
    width: int
    num_frames: int
    fps: float
    sha256: str


@dataclass(frozen=True, slots=True)
class VideoJob:
    """The record of one request; what every dialect's answers are made of.

    Args:
        id: uuid4 text; also the RQ job's id and Novita's task_id.
        dialect: name of the dialect in which it was submitted.
        owner: name of the API key's owner; nobody else sees the job.
        request: as it runs.
        output_keys: public keys of the files to come, in the order of `request.outputs`: what links name. Each attempt
            stores its own files elsewhere (`attempt_key`), and the record's `outputs` say which were published.
        vendor: what the dialect needs to answer in its own words later (ids, echoed fields); plain JSON.
        status: see `JobStatus`.
        progress: percent, 0..100, never decreasing; 100 only at success.
        stage: what the worker is doing within the status: "text_encoding", "denoising", "decoding" or "encoding".
        step, total_steps: denoising steps done and in all passes; 0 of 0 before the first.
        attempts: how many workers have taken it, at most `MAX_ATTEMPTS`.
        worker: name of the worker that has it, or "".
        created_at, started_at, ended_at: seconds since the epoch; 0.0 while it has not happened.
        timings: seconds per stage: "load", "text_encoding", "denoising", "decoding", "encode", "store"; "generate" is
            the sum of the three in the middle.
        receipt: how the video was made: seed, checkpoint and revision, dtype, device, attention, scheduler, caches,
            library versions; plain JSON, only after success.
        error_code, error_message: both "" unless failed; the message is written for the client.
        outputs: the files, only after success.
        lane: "interactive" or "bulk"; see `polyreel.terms`.
        batch_key: what jobs have in common that may share a pipeline call, "" for one that runs alone.
        saved: True for a long job: it runs alone and its state is saved on the way; see `resume_after_s`.
        resumed_from: denoising steps that the last attempt took over from an earlier one.
        not_resumable: why a long job starts over after a crash, "" when it does not or is not long.
        account: what its key's limits are counted by, see `polyreel.keys.Caller`.
        base_url: absolute base of its links as the submit came in; "" takes that of the request that asks.
        webhook: URL that is told of its end, "" for none.
        content_policy: name of the policy that allowed it at submit, "" for none; no worker without it runs the job.
        trace: where its submit belongs: the "request_id", and the "traceparent" where there are traces.
        keep_s: how long record and files are kept after the end, seconds; 0.0 is as long as the server keeps any.
    """

    id: str
    dialect: str
    owner: str
    request: VideoRequest
    output_keys: tuple[str, ...]
    vendor: dict[str, Any] = field(default_factory=dict)  # Any: JSON of the dialect's own choosing
    status: JobStatus = JobStatus.QUEUED
    progress: int = 0
    stage: str = ""
    step: int = 0
    total_steps: int = 0
    attempts: int = 0
    worker: str = ""
    created_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)  # Any: JSON
    error_code: str = ""
    error_message: str = ""
    outputs: tuple[Output, ...] = ()
    lane: str = "interactive"
    batch_key: str = ""
    saved: bool = False
    resumed_from: int = 0
    not_resumable: str = ""
    account: str = ""
    base_url: str = ""
    webhook: str = ""
    keep_s: float = 0.0
    content_policy: str = ""
    trace: dict[str, str] = field(default_factory=dict)

    @property
    def seconds_taken(self) -> float:
        """Seconds from the last start to the end, 0.0 until then."""
        return max(0.0, self.ended_at - self.started_at) if self.ended_at and self.started_at else 0.0

    @property
    def why_not_made(self) -> str:
        """What a client reads of an ended job that made nothing."""
        return self.error_message or (
            "The job was cancelled." if self.status is JobStatus.CANCELLED else "The job failed."
        )

    def kept_until(self, retention_s: float) -> float:
        """Return when record and files go, seconds since the epoch: what a link may promise at most.

        Of a job that has not ended, as if it ended where it began: what its link may promise before anybody knows.

        Args:
            retention_s: how long this server keeps any.
        """
        return (self.ended_at or self.created_at) + (min(self.keep_s, retention_s) if self.keep_s else retention_s)

    def to_record(self) -> dict[str, str]:
        """Return the fields of the Redis hash; every value is text."""
        values = asdict(self)
        return {name: values[name] if isinstance(values[name], str) else json.dumps(values[name]) for name in values}

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> VideoJob:
        """Read a Redis hash back; fields that this version does not know are left out."""
        values: dict[str, Any] = {}
        for f in fields(cls):
            if f.name in record:
                values[f.name] = record[f.name] if f.name in _TEXT else json.loads(record[f.name])
        values["request"] = VideoRequest.from_dict(values["request"])
        values["output_keys"] = tuple(values["output_keys"])
        values["status"] = JobStatus(values["status"])
        values["outputs"] = tuple(Output(**output) for output in values.get("outputs", ()))
        return cls(**values)


_TEXT = {
    "id", "dialect", "owner", "status", "stage", "worker", "error_code", "error_message",
    "lane", "batch_key", "not_resumable", "account", "base_url", "webhook", "content_policy",
}  # fmt: skip

#: Version of the records that this code writes and the newest that it reads: older ones lack `model` and `tag` (1), or
#: `flow_shift` in the request (2).
SCHEMA = 3

#: What a client reads whose job took too long.
TIMEOUT_MESSAGE = "The job ran longer than this server allows (job_timeout_s)."

#: A job whose worker died is run again, but a job that kills its workers is not run for ever.
MAX_ATTEMPTS = 3


def new_job(
    request: VideoRequest,
    *,
    dialect: str,
    owner: str,
    extensions: tuple[str, ...],
    vendor: dict[str, Any] | None = None,
) -> VideoJob:
    """Return a queued job with a fresh id and the storage keys of its files.

    Args:
        request: complete, as `VideoRequest` says.
        extensions: file name extensions of `request.outputs`, in their order, each once.
        vendor: see `VideoJob`.
    """
    job_id = str(uuid.uuid4())
    # The file is called after the job: ModelsLab's `file_prefix` is documented as the base name of its link.
    keys = tuple(f"out/{job_id}/{job_id}.{extension}" for extension in extensions)
    return VideoJob(
        id=job_id,
        dialect=dialect,
        owner=owner,
        request=request,
        output_keys=keys,
        vendor=vendor or {},
        created_at=time.time(),
    )


def attempt_key(key: str, fence: int) -> str:
    """Return where the attempt with this fence stores the file that clients know as `key`.

    A worker that was taken for dead and is not can then never write over what another one has published.
    """
    folder, _, name = key.rpartition("/")
    return f"{folder}/{fence}/{name}"


def with_vendor(job: VideoJob, **values: object) -> VideoJob:
    """Return `job` with more vendor values."""
    return replace(job, vendor={**job.vendor, **values})

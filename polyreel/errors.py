"""Every error that Polyreel raises on purpose, in one tree.

    PolyreelError
    ├── InvalidRequest          the client can fix it: names the field, what came, what is allowed
    │   ├── NotServedYet        understood, documented by the vendor, not built here yet
    │   ├── KeyReused           an Idempotency-Key came again with another request
    │   ├── UnsafeAddress       a URL leads where this server does not go for clients
    │   ├── UnusablePicture     a picture is none, is damaged, or is too large
    │   ├── NotFetched          nothing comes of a link in the request
    │   ├── ContentRefused      the server's content policy refuses the request or the video
    │   ├── RequestTooSlow      the body did not come in time
    │   └── RequestTooLarge     the body is over the limit
    ├── MissingKey              no API key came with the request
    ├── InvalidKey              a key came, and it is not one of ours
    ├── NotAllowed              the key is ours, and may not do this or use this model
    ├── UnknownModel            no catalogue entry has this public name
    ├── UnknownJob              no job with this id, or it belongs to somebody else
    ├── UnknownRoute            no such path in this dialect
    ├── MethodNotAllowed        the path exists, the method does not
    ├── TooManyJobs             the queue is full, for everybody or for one owner
    │   └── LimitReached        a key's own limit: requests a minute, or GPU seconds a day
    ├── NotCancellable          the job has ended, or its file is being made already
    ├── NotDeliverable          the job has no webhook, or has not ended
    ├── QueueUnavailable        Redis does not answer
    ├── PolicyUnavailable       the content policy raised, hangs or is missing: nothing passes
    ├── StillRunning            a synchronous caller waited as long as it may
    ├── GenerationFailed        the pipeline raised, or returned NaN
    │   ├── EncodingFailed      ffmpeg did not make the file
    │   ├── OutOfMemory         the device has too little memory for this job
    │   └── AdapterUnavailable  a LoRA or embedding is missing, broken, or made for another model
    ├── Cancelled               raised inside a step callback to stop a pipeline
    ├── OutboundFailed          what a client named did not answer, or not as it must
    ├── CheckpointUnavailable   weights are missing, broken, or not safetensors
    ├── StorageFailed           a file could not be written or read
    │   ├── StorageFull         there is no space left for results
    │   └── StorageAway         the backend does not answer now; the same may succeed later
    └── ConfigurationError      a setting is wrong; shown without a traceback, exit code 2

No HTTP status lives here: each dialect maps these classes to its own envelope in one table.
Messages are written for the person who has to act, and never contain a key or other secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal


class PolyreelError(Exception):
    """Base of all deliberate errors. `code` is a stable word for records, logs and metrics."""

    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(PolyreelError):
    """Raised when a request cannot become a job as it stands.

    Args:
        message: the whole sentence for the client.
        field: dotted path of the offending field in the client's own words, or None for the whole body.
    """

    code = "invalid_request"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotServedYet(InvalidRequest):
    """Raised for a documented feature that this version does not run; better than a silently different video."""

    code = "not_served_yet"


class KeyReused(InvalidRequest):
    """Raised when an Idempotency-Key was used before for a request that differs from this one."""

    code = "idempotency_key_reused"


class UnsafeAddress(InvalidRequest):
    """Raised for a URL that leads to an address, a port or a scheme that this server does not reach for clients."""

    code = "unsafe_address"


class UnusablePicture(InvalidRequest):
    """Raised for a file that was sent as a picture.

    Args:
        message, field: as for `InvalidRequest`.
        fault: "format" (no picture of a known format, or a damaged one), "pixels" or "bytes" (too many).
    """

    code = "unusable_picture"

    def __init__(self, message: str, field: str, fault: Literal["format", "pixels", "bytes"]) -> None:
        super().__init__(message, field)
        self.fault: Literal["format", "pixels", "bytes"] = fault


class NotFetched(InvalidRequest):
    """Raised when a picture cannot be fetched from the link that stands for it."""

    code = "not_fetched"


class ContentRefused(InvalidRequest):
    """Raised when the server's content policy refuses what is asked for, or what was made of it."""

    code = "content_refused"


class RequestTooSlow(InvalidRequest):
    """Raised when a body comes so slowly that its sender is not waited for."""

    code = "request_too_slow"


class RequestTooLarge(InvalidRequest):
    """Raised when a body is longer than the server reads."""

    code = "request_too_large"


class MissingKey(PolyreelError):
    """Raised when a request carries no API key."""

    code = "missing_key"


class InvalidKey(PolyreelError):
    """Raised when a request's API key is unknown."""

    code = "invalid_key"


class NotAllowed(PolyreelError):
    """Raised when a key lacks the scope for what it asks, or may not use the model."""

    code = "not_allowed"


class UnknownModel(PolyreelError):
    """Raised when no catalogue entry answers to a public name; `kind` is "Model", "LoRA" or "Embedding"."""

    code = "unknown_model"

    def __init__(self, name: str, served: Iterable[str], kind: str = "Model") -> None:
        self.name = name
        self.served = sorted(served)
        near = did_you_mean(name, self.served)
        super().__init__(f"{kind} {name[:200]} is not served here.{near} Served: {', '.join(self.served) or 'none'}.")


class UnknownJob(PolyreelError):
    """Raised when an id names no job of this owner; another owner's job reads exactly the same."""

    code = "unknown_job"


class UnknownRoute(PolyreelError):
    """Raised when no route has this path."""

    code = "unknown_route"


class MethodNotAllowed(PolyreelError):
    """Raised when the path exists and the method does not."""

    code = "method_not_allowed"


class TooManyJobs(PolyreelError):
    """Raised when the queue is full. `retry_after_s` is a whole number of seconds."""

    code = "too_many_jobs"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LimitReached(TooManyJobs):
    """Raised when a key has used up one of its own limits; the message names it and when it is free again."""

    code = "limit_reached"


class NotCancellable(PolyreelError):
    """Raised when it is too late to cancel a job; `reason` is "succeeded", "failed" or "finishing"."""

    code = "not_cancellable"

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotDeliverable(PolyreelError):
    """Raised when a webhook is to be delivered again that there is not, or not yet."""

    code = "not_deliverable"


class QueueUnavailable(PolyreelError):
    """Raised when Redis refuses, hangs or is full; nothing was acknowledged."""

    code = "queue_unavailable"


class PolicyUnavailable(PolyreelError):
    """Raised when the content policy does not answer, or is not the one that it must be; the same may pass later."""

    code = "content_policy_failed"


class StillRunning(PolyreelError):
    """Raised when a synchronous caller's time is up; the job `job_id` goes on."""

    code = "still_running"

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class GenerationFailed(PolyreelError):
    """Raised when a pipeline raised or returned something that is not a picture; the cause is chained."""

    code = "generation_failed"


class EncodingFailed(GenerationFailed):
    """Raised when ffmpeg ended with an error or did not write the file."""

    code = "encoding_failed"


class OutOfMemory(GenerationFailed):
    """Raised when the device's memory ran out at `stage`: "load", "text_encoding", "denoising" or "decoding"."""

    code = "gpu_out_of_memory"

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


class AdapterUnavailable(GenerationFailed):
    """Raised when a LoRA or embedding cannot be used; fails the one job that asked for it and names it."""

    code = "adapter_unavailable"


class Cancelled(PolyreelError):
    """Raised from a step callback to end a running pipeline at once."""

    code = "cancelled"


class OutboundFailed(PolyreelError):
    """Raised when a URL that a client gave cannot be reached, is too slow, or answers something that is of no use."""

    code = "outbound_failed"


class CheckpointUnavailable(PolyreelError):
    """Raised when a checkpoint cannot be loaded; the message names the command or setting that fixes it."""

    code = "checkpoint_unavailable"


class StorageFailed(PolyreelError):
    """Raised when a result could not be stored or read back."""

    code = "storage_failed"


class StorageFull(StorageFailed):
    """Raised when there is no space for a result: before GPU time is spent where that can be seen."""

    code = "storage_full"


class StorageAway(StorageFailed):
    """Raised when a storage refuses, hangs or answers with an error of its own; trying again later may help."""

    code = "storage_away"


class ConfigurationError(PolyreelError):
    """Raised at start for a wrong setting; shown to the operator as it is, without a traceback, exit code 2."""

    code = "configuration_error"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for the known word nearest to `word`, or "" when none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""

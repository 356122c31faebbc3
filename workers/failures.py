"""What went wrong with a job, told from its exception: out of memory, a lost device, and what the client is to read."""

from __future__ import annotations

from rq.timeouts import JobTimeoutException

from polyreel.errors import Cancelled, CheckpointUnavailable, EncodingFailed, OutOfMemory, PolyreelError, StorageAway
from polyreel.job import TIMEOUT_MESSAGE, VideoJob
from workers.memory import chain

#: How an allocation that failed is called, beside torch's own OutOfMemoryError: by the driver, by cuBLAS, by the CPU.
_NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: ")

#: Errors after which every further call to the device in this process fails too, in the driver's words.
#: Source: "To continue using CUDA, the process must be terminated and relaunched", CUDA Runtime API, cudaError.
_DEVICE_LOST = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "hardware stack error",
    "invalid program counter",
    "misaligned address",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected",
    "unspecified launch failure",
)

#: What the client is told where our own message is for the operator: it names files, or quotes ffmpeg.
_PUBLIC: dict[type[PolyreelError], str] = {
    EncodingFailed: "The frames could not be encoded as a file; the operator finds the reason in the worker's log.",
    CheckpointUnavailable: "The model {model} cannot run on this server; the operator finds the reason in the log.",
    StorageAway: "The video was made and could not be stored: the storage of the results did not answer in time.",
}


def as_out_of_memory(err: BaseException) -> OutOfMemory | None:
    """Return an error as what it is when an allocation failed somewhere below it, else None."""
    if isinstance(err, OutOfMemory):
        return err
    for cause in chain(err):
        by_name = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        if by_name or any(words in str(cause) for words in _NO_MEMORY):
            found = OutOfMemory(str(err), "load" if isinstance(err, CheckpointUnavailable) else "denoising")
            found.__cause__ = err
            return found
    return None


def is_timeout(err: BaseException) -> bool:
    """Return whether RQ's time limit of the job struck, whatever was done with its exception on the way up."""
    return any(isinstance(cause, JobTimeoutException) for cause in chain(err))


def is_models_own(err: BaseException) -> bool:
    """Return whether a model that did not load is itself to blame: no memory, limit, stop or device was."""
    stops = (Cancelled, SystemExit, KeyboardInterrupt)
    return not (
        as_out_of_memory(err)
        or is_timeout(err)
        or is_device_error(err)
        or any(isinstance(cause, stops) for cause in chain(err))
    )


def is_device_lost(err: BaseException) -> bool:
    """Return whether nothing will run on the device any more in this process."""
    return is_device_error(err) and any(words in str(cause) for cause in chain(err) for words in _DEVICE_LOST)


def is_device_error(err: BaseException) -> bool:
    """Return whether the device's driver or its libraries complained."""
    return any(
        type(cause).__name__ == "AcceleratorError" or (isinstance(cause, RuntimeError) and "CUDA error" in str(cause))
        for cause in chain(err)
    )


def public(job: VideoJob, err: BaseException) -> tuple[str, str]:
    """Return the code and message of a failure, fit for the client."""
    if is_timeout(err):
        return "timeout", TIMEOUT_MESSAGE
    for kind, message in _PUBLIC.items():
        if isinstance(err, kind):
            return err.code, message.format(model=job.request.model)
    if isinstance(err, PolyreelError):
        return err.code, err.message
    return "internal_error", f"The job failed inside the server; the operator finds job {job.id} in the log."

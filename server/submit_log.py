"""What a submit leaves behind for the operator: one line of the log, and where in the record it came from."""

from __future__ import annotations

import structlog

from polyreel import tracing
from polyreel.job import VideoJob

log = structlog.get_logger()


def trace_of_request() -> dict[str, str]:
    """Return `VideoJob.trace` of a job that the present request submits."""
    found = {
        tracing.REQUEST_ID: str(structlog.contextvars.get_contextvars().get("request_id", "")),
        tracing.PARENT: tracing.current_parent(),
    }
    return {name: value for name, value in found.items() if value}


def log_submit(job: VideoJob, *, with_prompt: bool) -> None:
    """Say that a job was taken in: the line that joins its id with the request's.

    Args:
        with_prompt: as `log_prompts` says; the log's own redaction takes it out where that is not set.
    """
    r = job.request
    log.info(
        "job submitted",
        job_id=job.id,
        dialect=job.dialect,
        model=r.model,
        owner=job.owner,
        num_frames=r.num_frames,
        height=r.height,
        width=r.width,
        steps=r.num_inference_steps,
        **({"prompt": " | ".join(span.prompt for span in r.prompts)} if with_prompt else {}),
    )

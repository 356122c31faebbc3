"""A job as its owner sees it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from polyreel.estimates import Estimate
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob

_Exact = ConfigDict(extra="forbid", protected_namespaces=())


class PromptAnswer(BaseModel):
    """A prompt and the frames that it governs."""

    model_config = _Exact
    prompt: str
    num_frames: int


class PictureAnswer(BaseModel):
    """Which frame shows a picture; the picture itself is not given back."""

    model_config = _Exact
    frame_index: int
    strength: float


class LoraAnswer(BaseModel):
    """A LoRA by its catalogue name."""

    model_config = _Exact
    name: str
    strength: float


class UpscaleAnswer(BaseModel):
    """The second pass."""

    model_config = _Exact
    height: int
    width: int
    strength: float
    guidance_scale: float
    num_inference_steps: int


class SpecAnswer(BaseModel):
    """A file that is to be made."""

    model_config = _Exact
    format: str
    fps: float
    quality: str


class RequestAnswer(BaseModel):
    """What runs, with every default filled in and the seed that was drawn."""

    model_config = _Exact
    prompts: list[PromptAnswer]
    negative_prompt: str
    num_frames: int
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float | None
    seed: int
    clip_skip: int | None
    images: list[PictureAnswer]
    loras: list[LoraAnswer]
    embeddings: list[str]
    closed_loop: bool
    upscale: UpscaleAnswer | None
    improved_sampling_seed: int | None
    outputs: list[SpecAnswer]


class OutputAnswer(BaseModel):
    """A finished file."""

    model_config = _Exact
    url: str
    format: str
    media_type: str
    bytes: int
    height: int
    width: int
    num_frames: int
    fps: float
    sha256: str


class ErrorAnswer(BaseModel):
    """Why a job failed."""

    model_config = _Exact
    code: str
    message: str


class JobAnswer(BaseModel):
    """A job, whichever dialect it was submitted in."""

    model_config = _Exact
    id: str
    number: int
    status: JobStatus
    model: str
    dialect: str
    lane: str
    stage: str
    progress: int
    step: int
    total_steps: int
    position: int | None
    eta_s: float | None
    attempts: int
    resumed_from: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    error: ErrorAnswer | None
    request: RequestAnswer
    outputs: list[OutputAnswer]
    timings: dict[str, float]
    receipt: dict[str, Any]


def to_wire(stored: StoredJob, links: list[str], found: Estimate, retention_s: float) -> dict[str, Any]:
    """Return what a record means. Any: JSON.

    Args:
        links: to the files of a succeeded job, in the order of its outputs.
        found: where it stands; asked of a job that waits or runs.
        retention_s: how long this server keeps ended jobs, seconds.
    """
    job = stored.job
    answer = JobAnswer(
        id=job.id,
        number=stored.number,
        status=job.status,
        model=job.request.model,
        dialect=job.dialect,
        lane=job.lane,
        stage=job.stage,
        progress=job.progress,
        step=job.step,
        total_steps=job.total_steps,
        position=place_of(stored, found),
        eta_s=None if found.eta_s is None else round(found.eta_s, 1),
        attempts=job.attempts,
        resumed_from=job.resumed_from,
        created_at=job.created_at,
        started_at=job.started_at or None,
        ended_at=job.ended_at or None,
        expires_at=job.kept_until(retention_s) if job.ended_at else None,
        error=ErrorAnswer(code=job.error_code, message=job.error_message) if job.status is JobStatus.FAILED else None,
        request=_request(job),
        outputs=[
            OutputAnswer(
                url=link,
                format=output.format,
                media_type=output.media_type,
                bytes=output.bytes,
                height=output.height,
                width=output.width,
                num_frames=output.num_frames,
                fps=output.fps,
                sha256=output.sha256,
            )
            for link, output in zip(links, job.outputs, strict=True)
        ],
        timings=job.timings,
        receipt=job.receipt,
    )
    return answer.model_dump(mode="json")


def place_of(stored: StoredJob, found: Estimate) -> int | None:
    """Return how many jobs are served before one that waits, None for one that does not."""
    return found.position if stored.claimable and not stored.job.status.is_terminal else None


def _request(job: VideoJob) -> RequestAnswer:
    r = job.request
    return RequestAnswer(
        prompts=[PromptAnswer(prompt=span.prompt, num_frames=span.num_frames) for span in r.prompts],
        negative_prompt=r.negative_prompt,
        num_frames=r.num_frames,
        height=r.height,
        width=r.width,
        fps=r.fps,
        num_inference_steps=r.num_inference_steps,
        guidance_scale=r.guidance_scale,
        flow_shift=r.flow_shift,
        seed=r.seed,
        clip_skip=r.clip_skip,
        images=[PictureAnswer(frame_index=image.frame_index, strength=image.strength) for image in r.images],
        loras=[LoraAnswer(name=lora.name, strength=lora.strength) for lora in r.loras],
        embeddings=list(r.embeddings),
        closed_loop=r.closed_loop,
        upscale=UpscaleAnswer.model_validate(r.upscale, from_attributes=True) if r.upscale else None,
        improved_sampling_seed=r.improved_sampling_seed,
        outputs=[SpecAnswer.model_validate(spec, from_attributes=True) for spec in r.outputs],
    )

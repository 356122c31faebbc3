"""Novita v3: `POST /v3/async/txt2video`, `GET /v3/async/task-result`, `GET /v3/model`, `GET /v3/user`.

Sources: novita.ai/docs "Text to Video", "Task Result API", "Query Model" and the error code page; where they are
silent, what Novita's own clients need in order to work. Every field, and what we decided, is in
`docs/compatibility/novita.md`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from polyreel.catalogue import Catalogue
from polyreel.errors import (
    InvalidKey,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    MissingKey,
    NotAllowed,
    NotServedYet,
    PolyreelError,
    QueueUnavailable,
    RequestTooLarge,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
)
from polyreel.formats import formats
from polyreel.job import JobStatus
from polyreel.records import StoredJob
from polyreel.request import AdapterUse, OutputSpec, PromptSpan, VideoRequest
from server.body import parse_object, read_body, validate
from server.credentials import bearer_or_raw
from server.dialects import Dialect, Example
from server.dialects.novita.listing import page
from server.services import services
from server.submission import read_terms
from server.wire import Integer, Number, check_length, check_prompt, check_range, choose_seed

_LONGEST_PROMPT = 1024  # characters, also of the negative one
_MOST_FRAMES = 128  # over all prompts


class NovitaSettings(BaseModel):
    """What Novita's pages leave open.

    Args:
        fps: of the delivered video, frames per second; AnimateDiff was trained at 8.
        guidance_scale: when the client gives none, 1..30.
        link_ttl_s: how long the links of one answer are good, whole seconds; each answer signs them afresh.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fps: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 8
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    link_ttl_s: Annotated[int, Field(ge=1)] = 3600


class Prompt(BaseModel):
    """One clip of the video."""

    frames: Integer
    prompt: str


class Lora(BaseModel):
    """A LoRA and how much of it; a null strength is refused as the page says "required"."""

    model_name: str
    strength: Number

    model_config = ConfigDict(protected_namespaces=())


class Embedding(BaseModel):
    """A textual inversion."""

    model_name: str

    model_config = ConfigDict(protected_namespaces=())


class TestMode(BaseModel):
    """Of a webhook: send a mock event instead of generating."""

    enabled: bool
    return_task_status: Literal["TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED"]


class Webhook(BaseModel):
    """Where to tell of the end."""

    url: str
    test_mode: TestMode | None = None


class Extra(BaseModel):
    """The optional extras; `enterprise_plan`, which the official client always sends, means nothing here."""

    response_video_type: Literal["mp4", "gif"] | None = None
    webhook: Webhook | None = None


class TextToVideo(BaseModel):
    """The request body; null means absent, unknown keys are ignored. Ranges are checked apart, for their messages.

    Lists stop at their first wrong item: only that is told, and a body has room for half a million of them.
    """

    model_name: str
    height: Integer
    width: Integer
    steps: Integer
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=16, fail_fast=True)]
    negative_prompt: str | None = None
    guidance_scale: Number | None = None
    seed: Integer | None = None
    loras: Annotated[list[Lora], Field(max_length=5, fail_fast=True)] | None = None
    embeddings: Annotated[list[Embedding], Field(max_length=5, fail_fast=True)] | None = None
    closed_loop: bool | None = None
    clip_skip: Integer | None = None
    extra: Extra | None = None

    model_config = ConfigDict(protected_namespaces=())


#: field: (least, most); null is not checked
_RANGES: dict[str, tuple[float, float]] = {
    "height": (256, 1024),
    "width": (256, 1024),
    "steps": (1, 50),
    "guidance_scale": (1, 30),
    "clip_skip": (1, 12),
}


def from_wire(wire: TextToVideo, catalogue: Catalogue, settings: NovitaSettings) -> VideoRequest:
    """Translate a body into the neutral request.

    Raises:
        InvalidRequest: names the field.
        UnknownModel: no such checkpoint, LoRA or embedding.
        NotServedYet: a webhook, several prompts or a loop for a model that cannot do them.
    """
    for field, (least, most) in _RANGES.items():
        if getattr(wire, field) is not None:
            check_range(field, getattr(wire, field), least, most)
    prompts = _prompts(wire.prompts)
    check_length("negative_prompt", wire.negative_prompt, _LONGEST_PROMPT)
    seed = choose_seed("seed", wire.seed)
    extra = wire.extra or Extra()
    model = catalogue.resolve("novita", wire.model_name)
    if extra.webhook is not None:
        _check_url("extra.webhook.url", extra.webhook.url)
        raise NotServedYet("extra.webhook is not served yet; leave it out and poll task-result", "extra.webhook")
    return VideoRequest(
        model=model,
        prompts=prompts,
        negative_prompt=wire.negative_prompt or "",
        height=wire.height,
        width=wire.width,
        fps=settings.fps,
        num_inference_steps=wire.steps,
        guidance_scale=settings.guidance_scale if wire.guidance_scale is None else wire.guidance_scale,
        seed=seed,
        clip_skip=wire.clip_skip,
        loras=_loras(wire.loras or [], catalogue, model),
        embeddings=_embeddings(wire.embeddings or [], catalogue, model),
        closed_loop=bool(wire.closed_loop),
        outputs=(OutputSpec(extra.response_video_type or "mp4", settings.fps),),
    )


def _loras(loras: list[Lora], catalogue: Catalogue, model: str) -> tuple[AdapterUse, ...]:
    uses: dict[str, AdapterUse] = {}
    for i, lora in enumerate(loras):
        check_range(f"loras.{i}.strength", lora.strength, 0, 1)
        name = catalogue.resolve_lora("novita", lora.model_name, model)
        if name in uses:
            raise InvalidRequest(f"loras.{i}.model_name: {lora.model_name[:200]} comes twice; send it once", "loras")
        uses[name] = AdapterUse(name, lora.strength)
    return tuple(uses.values())


def _embeddings(embeddings: list[Embedding], catalogue: Catalogue, model: str) -> tuple[str, ...]:
    names = [catalogue.resolve_embedding("novita", embedding.model_name, model) for embedding in embeddings]
    return tuple(dict.fromkeys(names))


def _prompts(clips: list[Prompt]) -> tuple[PromptSpan, ...]:
    for i, clip in enumerate(clips):
        check_range(f"prompts.{i}.frames", clip.frames, 8, 64)
        check_prompt(f"prompts.{i}.prompt", clip.prompt)
        check_length(f"prompts.{i}.prompt", clip.prompt, _LONGEST_PROMPT)
    frames = sum(clip.frames for clip in clips)
    if frames > _MOST_FRAMES:
        raise InvalidRequest(
            f"prompts: the frames of all prompts must add up to {_MOST_FRAMES} or less, got {frames}", "prompts"
        )
    return tuple(PromptSpan(clip.prompt, clip.frames) for clip in clips)


def _check_url(field: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_web = False
    if not is_web:
        raise InvalidRequest(f"{field} must be an absolute http or https URL", field)


#: What is not here is being worked on: Novita has no words for the stages in between, nor for a cancelled task.
_STATUS = {
    JobStatus.QUEUED: "TASK_STATUS_QUEUED",
    JobStatus.SUCCEEDED: "TASK_STATUS_SUCCEED",
    JobStatus.FAILED: "TASK_STATUS_FAILED",
    JobStatus.CANCELLED: "TASK_STATUS_FAILED",
}


def to_wire(stored: StoredJob, links: list[str], ttl_s: int, eta_s: int) -> dict[str, Any]:
    """Return the task result that a record means. Any: JSON.

    Novita's official client raises on a fraction, a null list, an empty time and a missing `extra`, so every key is
    always there with its own type.

    Args:
        links: to the videos of a succeeded job, in the order of `_videos`.
        ttl_s: how long the links are good.
        eta_s: whole seconds, 0 at the end.
    """
    job = stored.job
    status = _STATUS.get(job.status, "TASK_STATUS_PROCESSING")
    reason = ""
    if status == "TASK_STATUS_FAILED":
        reason = job.error_message or f"The job was {job.status}."
    return {
        "extra": {
            "seed": str(job.request.seed),
            "enable_nsfw_detection": False,
            "debug_info": {
                "request_info": "",
                "submit_time_ms": _ms(job.created_at),
                "execute_time_ms": _ms(job.started_at),
                "complete_time_ms": _ms(job.ended_at),
            },
        },
        "task": {
            "task_id": job.id,
            "task_type": "TXT_TO_VIDEO",
            "status": status,
            "reason": reason,
            "eta": eta_s,
            "progress_percent": job.progress,
        },
        "images": [],
        "videos": [
            {"video_url": link, "video_url_ttl": str(ttl_s), "video_type": video_type}
            for link, (_, video_type) in zip(links, _videos(stored), strict=True)
        ],
        "audios": [],
    }


def _videos(stored: StoredJob) -> list[tuple[str, str]]:
    """Return (public key, format) of each video; a job of another dialect may also have made archives and pictures."""
    job = stored.job
    if not job.outputs:
        return []
    known = formats()
    return [
        (key, output.format)
        for key, output in zip(job.output_keys, job.outputs, strict=True)
        if known[output.format].kind == "video"
    ]


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


class _ResultUnavailable(QueueUnavailable):
    """Raised when Redis does not answer a poll, which Novita calls otherwise than a refused submit."""


#: error: (HTTP status, reason); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str], ...] = (
    (MissingKey, 401, "MISSING_API_KEY"),
    (InvalidKey, 403, "INVALID_API_KEY"),
    (NotAllowed, 403, "API_NOT_ALLOWED"),
    (UnknownJob, 404, "TASK_NOT_FOUND"),
    (UnknownRoute, 404, "API_NOT_FOUND"),
    # HTTP's own status under the nearest documented reason: there is no such API with this method.
    (MethodNotAllowed, 405, "API_NOT_FOUND"),
    (RequestTooLarge, 413, "INVALID_REQUEST_BODY"),
    (KeyReused, 422, "INVALID_REQUEST_BODY"),
    (InvalidRequest, 400, "INVALID_REQUEST_BODY"),
    (UnknownModel, 400, "INVALID_REQUEST_BODY"),
    (TooManyJobs, 429, "RATE_LIMIT_EXCEEDED"),
    (_ResultUnavailable, 503, "GET_RESULT_FAILED"),
    (QueueUnavailable, 503, "CREATE_TASK_FAILED"),
    (PolyreelError, 500, "INTERNAL_SERVER_ERROR"),
)


def render_error(err: PolyreelError, settings: NovitaSettings) -> Response:
    """Return the vendor's flat error body; `code` is the HTTP status."""
    status, reason = next((status, reason) for kind, status, reason in _ERRORS if isinstance(err, kind))
    headers = {}
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    body = {"code": status, "reason": reason, "message": err.message, "metadata": {}}
    return JSONResponse(body, status, headers)


router = APIRouter(prefix="/v3")


@router.post("/async/txt2video")
async def txt2video(request: Request) -> Response:
    """Submit; answers at once with the task's id. 200, as both official clients take any other status for an error."""
    shared = services(request)
    caller = await shared.caller(bearer_or_raw(request), "submit")
    body = await read_body(request, shared.settings.max_body_bytes)
    video = from_wire(validate(TextToVideo, await parse_object(body)), shared.catalogue, _settings(request))
    terms = await read_terms(request, "novita", body)
    stored = await shared.submit(video, dialect="novita", caller=caller, terms=terms)
    return JSONResponse({"task_id": stored.job.id})


@router.get("/async/task-result")
async def task_result(request: Request, task_id: str = "") -> Response:
    """Answer how a task is getting on; 200 also for a failed one."""
    shared = services(request)
    caller = await shared.caller(bearer_or_raw(request), "read")
    if not task_id:
        raise InvalidRequest("task_id is required", "task_id")
    try:
        stored = await shared.get(task_id, caller.owner)
        eta_s = await shared.eta_s(stored)
    except QueueUnavailable as err:
        raise _ResultUnavailable(err.message) from err
    now = time.time()
    ttl_s = _settings(request).link_ttl_s
    if stored.job.ended_at:  # the file goes with the record, and no link promises more than that
        ttl_s = max(0, min(ttl_s, int(stored.job.ended_at + shared.settings.retention_s - now)))
    links = [shared.link(shared.base_url(request), key, now + ttl_s) for key, _ in _videos(stored)]
    return JSONResponse(to_wire(stored, links, ttl_s, eta_s))


@router.get("/model")
async def models(request: Request) -> Response:
    """List the checkpoints, LoRAs and embeddings that txt2video takes, filtered and in pages."""
    shared = services(request)
    await shared.caller(bearer_or_raw(request), "read")
    return JSONResponse(page(request, shared.catalogue))


@router.get("/user")
async def user(request: Request) -> Response:
    """Answer a client that asks for its account: nothing is billed here."""
    await services(request).caller(bearer_or_raw(request), "read")
    return JSONResponse({"allow_features": [], "credit_balance": 0, "free_trial": {}})


def _settings(request: Request) -> NovitaSettings:
    found: NovitaSettings = request.app.state.dialect_settings["novita"]
    return found


DIALECT = Dialect(
    name="novita",
    prefixes=("/v3/",),
    router=router,
    render_error=render_error,
    settings=NovitaSettings,
    example=Example(
        title="four prompts in one mp4 (shortened from Novita's own: 4x8 frames, 256 px, 8 steps)",
        path="/v3/async/txt2video",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={
            "model_name": "darkSushiMixMix_225D_64380.safetensors",
            "height": 256,
            "width": 256,
            "steps": 8,
            "seed": -1,
            "prompts": [
                {"frames": 8, "prompt": "In the wintry dusk, a little girl holds matches tightly."},
                {"frames": 8, "prompt": "A little girl, barefoot on the frosty pavement, seeks solace."},
                {
                    "frames": 8,
                    "prompt": "A little girl with each match experiences a fleeting dance of warmth and hope.",
                },
                {"frames": 8, "prompt": "In the quiet night, a little girl's silent story unfolds."},
            ],
            "negative_prompt": (
                "nsfw, ng_deepnegative_v1_75t, badhandv4, (worst quality:2), (low quality:2), (normal quality:2), "
                "lowres, ((monochrome)), ((grayscale)), watermark"
            ),
        },
    ),
)

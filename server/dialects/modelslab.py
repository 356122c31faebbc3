"""ModelsLab v6: `POST /api/v6/video/text2video` and `POST /api/v6/video/fetch/{id}`.

Sources: docs.modelslab.com "Text to Video" (OpenAPI) and the older page of the same endpoint, which differ; the error
and webhook pages. What we decided between them, and every field, is in `docs/compatibility/modelslab.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import (
    ConfigurationError,
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
    did_you_mean,
)
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob
from polyreel.request import OutputSpec, PromptSpan, Upscale, VideoRequest
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects import Dialect, Example
from server.services import Services, guess_s, services
from server.submission import read_terms
from server.wire import Integer, Number, check_length, check_prompt, check_range, choose_seed

#: `temp: true` keeps the file for this long, seconds.
_TEMP_S = 24 * 3600

#: How long an answer waits for the estimate in it while Redis hangs, seconds.
_ESTIMATE_S = 1.0


class ModelsLabSettings(BaseModel):
    """Where the vendor's documents, clients and live service disagree, the operator chooses.

    Args:
        default_output_type: when the client names none; the OpenAPI schema says gif.
        out_of_range: "error" answers 400 as documented; "clamp" takes the nearest allowed value (the official
            Python SDK sends 30 frames by default, over the documented 25).
        error_http: "documented" status codes, or "200" for all, which old clients expect.
        hold_s: how long a submit waits for the video before it answers "processing", seconds.
        default_model: what runs when `model_id` is absent or unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    default_output_type: Literal["mp4", "gif"] = "gif"
    out_of_range: Literal["error", "clamp"] = "error"
    error_http: Literal["documented", "200"] = "documented"
    hold_s: float = 20.0
    default_model: str = "wan2.2"


class TextToVideo(BaseModel):
    """The request body; null means absent, unknown keys are ignored. Ranges are checked apart: they may be clamped."""

    key: str | None = None
    prompt: str | None = None
    model_id: str | None = None
    negative_prompt: str | None = None
    seed: Integer | None = None
    height: Integer | None = None
    width: Integer | None = None
    num_frames: Integer | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Number | None = None
    clip_skip: Integer | None = None
    upscale_height: Integer | None = None
    upscale_width: Integer | None = None
    upscale_strength: Number | None = None
    upscale_guidance_scale: Number | None = None
    upscale_num_inference_steps: Integer | None = None
    use_improved_sampling: bool | None = None
    improved_sampling_seed: Integer | None = None
    fps: Integer | None = None
    output_type: Literal["mp4", "gif"] | None = None
    instant_response: bool | None = None
    temp: bool | None = None
    webhook: str | None = None
    track_id: str | Integer | None = None

    model_config = ConfigDict(protected_namespaces=())


#: field: (least, most, value when absent)
_RANGES: dict[str, tuple[float, float, float | None]] = {
    "height": (MIN_SIDE, 512, 512),
    "width": (MIN_SIDE, 512, 512),
    "num_frames": (1, 25, 25),
    "num_inference_steps": (1, 50, 20),
    "guidance_scale": (0, 8, 7),
    "clip_skip": (0, 2, None),
    "upscale_height": (MIN_SIDE, 1024, None),
    "upscale_width": (MIN_SIDE, 1024, None),
    "upscale_strength": (0, 1, 0.6),
    # The schema says 0..8 with a default of 12, and the older page's own example sends 12: 20 lets both through.
    "upscale_guidance_scale": (0, 20, 12),
    "upscale_num_inference_steps": (1, 50, 20),
    "fps": (1, 16, 7),
}


def check(catalogue: Catalogue, settings: ModelsLabSettings) -> None:
    """Stop the start when the model that unknown names fall back to is not served.

    Raises:
        ConfigurationError: names the setting and what is served.
    """
    served = catalogue.public_names("modelslab")
    if served and catalogue.find("modelslab", settings.default_model) is None:
        raise ConfigurationError(
            f"dialects.modelslab.default_model: {settings.default_model!r} is not served."
            f"{did_you_mean(settings.default_model, served)} Served under ModelsLab's names: {', '.join(served)}."
        )


def _in_range(wire: TextToVideo, out_of_range: str) -> dict[str, Any]:
    """Return the ranged fields with their defaults filled in. Any: ints and floats as the client sent them."""
    values: dict[str, Any] = {}
    for field, (least, most, default) in _RANGES.items():
        value = getattr(wire, field)
        if value is None:
            value = default
        elif out_of_range == "clamp":
            value = min(max(value, least), most)
        else:
            check_range(field, value, least, most, " (setting dialects.modelslab.out_of_range: clamp would adjust it)")
        values[field] = int(value) if value is not None and value == int(value) else value
    return values


def from_wire(
    wire: TextToVideo, catalogue: Catalogue, settings: ModelsLabSettings
) -> tuple[VideoRequest, dict[str, Any]]:
    """Translate a body into the neutral request, and the `meta` object that echoes what really runs.

    Raises:
        InvalidRequest: names the field.
        NotServedYet: a webhook.
    """
    prompt = check_prompt("prompt", wire.prompt)
    values = _in_range(wire, settings.out_of_range)
    if wire.webhook:
        raise NotServedYet("webhook is not served yet; leave it out and poll fetch_result", "webhook")
    known = catalogue.find("modelslab", wire.model_id) if wire.model_id else None
    public_name = wire.model_id if wire.model_id and known else settings.default_model
    model = known or catalogue.resolve("modelslab", settings.default_model)
    upscale = _upscale(values)
    improved_sampling_seed = choose_seed(
        "improved_sampling_seed", 42 if wire.improved_sampling_seed is None else wire.improved_sampling_seed
    )
    # Like clip_skip, it is echoed and has no effect on models that have no such sampling.
    improves = bool(wire.use_improved_sampling) and "improved_sampling" in catalogue[model].tasks
    request = VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, values["num_frames"]),),
        negative_prompt=check_length("negative_prompt", wire.negative_prompt),
        height=values["height"],
        width=values["width"],
        fps=values["fps"],
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        seed=choose_seed("seed", wire.seed),
        clip_skip=values["clip_skip"],
        upscale=upscale,
        improved_sampling_seed=improved_sampling_seed if improves else None,
        outputs=(OutputSpec(wire.output_type or settings.default_output_type, values["fps"]),),
    )
    meta = {
        "prompt": prompt,
        "negative_prompt": wire.negative_prompt,
        "model_id": public_name,
        **values,
        "upscale_height": upscale.height if upscale else None,
        "upscale_width": upscale.width if upscale else None,
        "seed": request.seed,
        "output_type": request.outputs[0].format,
        "use_improved_sampling": _yes_no(wire.use_improved_sampling),
        "improved_sampling_seed": improved_sampling_seed,
        "instant_response": _yes_no(wire.instant_response),
        "temp": _yes_no(wire.temp),
        "track_id": wire.track_id,
        "webhook": None,
    }
    return request, meta


def _upscale(values: Mapping[str, Any]) -> Upscale | None:
    """Return the second pass: none when no size was sent; with one side, the other keeps the aspect.

    Raises:
        InvalidRequest: the kept aspect leads over the documented 1024 pixels.
    """
    height, width = values["upscale_height"], values["upscale_width"]
    if height is None and width is None:
        return None
    if height is None:
        height = _kept_side("upscale_height", width * values["height"] / values["width"])
    if width is None:
        width = _kept_side("upscale_width", height * values["width"] / values["height"])
    return Upscale(
        height=height,
        width=width,
        strength=values["upscale_strength"],
        guidance_scale=values["upscale_guidance_scale"],
        num_inference_steps=values["upscale_num_inference_steps"],
    )


def _kept_side(field: str, pixels: float) -> int:
    least, most, _ = _RANGES[field]
    check_range(field, round(pixels), least, most, ", as the aspect of the video asks; send both sides")
    return round(pixels)


def _yes_no(value: bool | None) -> str:
    return "yes" if value else "no"


def to_wire(stored: StoredJob, link: str, fetch_link: str, eta_s: int) -> dict[str, Any]:
    """Return the answer that a record means, the same at submit and at fetch. Any: JSON.

    A failed job is `failed`, never `error`: the documented polling loop stops only on the former.

    Args:
        link: to the one output, existing or future.
        fetch_link: where the client asks next.
        eta_s: whole seconds; several clients refuse a fraction.
    """
    job = stored.job
    if job.status is JobStatus.SUCCEEDED:
        return {
            "status": "success",
            "generationTime": round(job.seconds_taken, 2),
            "id": stored.number,
            "output": [link],
            "proxy_links": [link],
            "meta": _meta(job),
        }
    if job.status.is_terminal:
        message = job.error_message or "The job was cancelled."
        return {"status": "failed", "id": stored.number, "message": message, "output": []}
    return {
        "status": "processing",
        "tip": "Your video is processing in background, you can get this video using fetch API",
        "eta": eta_s,
        "message": "Try to fetch request after seconds estimated",
        "fetch_result": fetch_link,
        "id": stored.number,
        "output": [],
        "meta": _meta(job),
        "future_links": [link],
    }


def _meta(job: VideoJob) -> dict[str, Any]:
    meta = job.vendor.get("meta")  # absent for a job that was made in another dialect
    if meta is not None:
        return {**meta, "file_prefix": job.id}
    r = job.request
    return {
        "prompt": r.prompts[0].prompt,
        "negative_prompt": r.negative_prompt,
        "model_id": r.model,
        "width": r.width,
        "height": r.height,
        "num_frames": r.num_frames,
        "num_inference_steps": r.num_inference_steps,
        "guidance_scale": r.guidance_scale,
        "fps": r.fps,
        "seed": r.seed,
        "output_type": r.outputs[0].format,
        "file_prefix": job.id,
    }


#: error: (HTTP status, text instead of the error's own); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str | None], ...] = (
    (MissingKey, 401, "API key required"),
    (InvalidKey, 401, "Invalid API key"),
    (NotAllowed, 403, None),
    (UnknownJob, 404, "Request not found"),
    (UnknownRoute, 404, None),
    (MethodNotAllowed, 405, None),
    (RequestTooLarge, 413, None),
    (KeyReused, 422, None),
    (InvalidRequest, 400, None),
    (UnknownModel, 400, None),
    (TooManyJobs, 429, None),
    (QueueUnavailable, 503, "Service temporarily unavailable. Please try again later."),
    (PolyreelError, 500, "Internal server error. Please try again."),
)


def render_error(err: PolyreelError, settings: ModelsLabSettings) -> Response:
    """Return the vendor's error body: `{"status": "error", "message": …}`."""
    status, text = next((status, text) for kind, status, text in _ERRORS if isinstance(err, kind))
    body: dict[str, Any] = {"status": "error", "message": text or err.message}
    if isinstance(err, UnknownJob):
        # The recorded answer says "failed", and the documented loop ends only on that word.
        body |= {"status": "failed", "id": "", "output": []}
    headers = {}
    if isinstance(err, TooManyJobs):
        body["retry_after"] = err.retry_after_s
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(body, status if settings.error_http == "documented" else 200, headers)


router = APIRouter(prefix="/api/v6/video")


@router.post("/text2video")
async def text2video(request: Request) -> Response:
    """Submit; answers with the video if it is ready within `hold_s`, unless `instant_response` is set."""
    shared, settings = services(request), _settings(request)
    raw = await read_body(request, shared.settings.max_body_bytes)
    body = await parse_object(raw)
    caller = await shared.caller(_key(request, body), "submit")
    wire = validate(TextToVideo, body)
    video, meta = from_wire(wire, shared.catalogue, settings)
    # Links are fixed at submit and the same in every answer, so their base must not follow later Host headers.
    vendor = {"meta": meta, "temp": bool(wire.temp)}
    terms = await read_terms(request, "modelslab", raw)
    stored = await shared.submit(
        video,
        dialect="modelslab",
        caller=caller,
        vendor=vendor,
        terms=terms,
        base_url=shared.base_url(request),
        keep_s=_TEMP_S if wire.temp else 0.0,
    )
    if not wire.instant_response:
        stored = await _hold(shared, stored, caller.owner, settings.hold_s)
    answer = await _answer(shared, request, stored)
    if answer["status"] == "success":
        # One client reads these two on every submit answer, also on instant success.
        answer |= {"eta": 0, "future_links": answer["output"]}
    return JSONResponse(answer)


@router.post("/fetch/{job_id}")
async def fetch(request: Request, job_id: str) -> Response:
    """Answer how a job is getting on; 200 also for a failed one."""
    shared = services(request)
    raw = await read_body(request, shared.settings.max_body_bytes)
    body = await parse_object(raw) if raw.strip() else {}
    caller = await shared.caller(_key(request, body), "read")
    return JSONResponse(await _answer(shared, request, await shared.get(job_id, caller.owner)))


async def _hold(shared: Services, stored: StoredJob, owner: str, hold_s: float) -> StoredJob:
    """Return the record once its job has ended or the time is up; as submitted when Redis goes away meanwhile.

    Never raises: a client that does not learn the id of its job submits it again, and the video is made twice.
    """
    try:
        return await shared.wait(stored.job.id, owner, hold_s)
    except (QueueUnavailable, UnknownJob):  # unknown: a Redis that came back without the record
        return stored


async def _answer(shared: Services, request: Request, stored: StoredJob) -> dict[str, Any]:
    job = stored.job
    base_url = job.base_url or job.vendor.get("base_url") or shared.base_url(request)
    kept_s = min(shared.settings.retention_s, _TEMP_S) if job.vendor.get("temp") else shared.settings.retention_s
    link = shared.link(base_url, job.output_keys[0], job.created_at + kept_s)
    fetch_link = f"{base_url}/api/v6/video/fetch/{stored.number}"
    return to_wire(stored, link, fetch_link, await _eta_s(shared, stored))


async def _eta_s(shared: Services, stored: StoredJob) -> int:
    """Return the estimated whole seconds until a job ends, a blind guess while Redis is away: the id matters more."""
    try:
        async with asyncio.timeout(_ESTIMATE_S):
            return await shared.eta_s(stored)
    except (QueueUnavailable, TimeoutError):
        return guess_s()


def _key(request: Request, body: dict[str, Any]) -> str | None:
    """The key stands in the body; the JavaScript SDK sends a bearer header instead, the CLI a header `key`."""
    in_body = body.get("key")
    if isinstance(in_body, str) and in_body:
        return in_body
    return bearer(request) or request.headers.get("key")


def _settings(request: Request) -> ModelsLabSettings:
    found: ModelsLabSettings = request.app.state.dialect_settings["modelslab"]
    return found


DIALECT = Dialect(
    name="modelslab",
    prefixes=("/api/",),
    router=router,
    render_error=render_error,
    settings=ModelsLabSettings,
    check=check,
    example=Example(
        title="answers with a link to an mp4",
        path="/api/v6/video/text2video",
        headers={"Content-Type": "application/json"},
        body={
            "key": "{key}",
            "prompt": "A majestic space station orbiting Earth, with the sun rising behind it, cinematic, 4K",
            "negative_prompt": "low quality, blurry, static",
            "model_id": "wan2.2",
            "height": 512,
            "width": 512,
            "num_frames": 25,
            "num_inference_steps": 20,
            "guidance_scale": 7,
            "output_type": "mp4",
            "webhook": None,
            "track_id": None,
        },
    ),
)

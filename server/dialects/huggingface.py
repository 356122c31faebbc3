"""Hugging Face Inference: `POST /models/{model}` answers with the video's bytes.

Sources: the task page "Text to Video" (huggingface.co/docs/inference-providers), the clients huggingface_hub and
@huggingface/inference, and the routes of huggingface/api-inference-community. What they leave open, and every field,
is in `docs/compatibility/huggingface.md`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import (
    GenerationFailed,
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
    StillRunning,
    StorageFailed,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
)
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import OutputSpec, PromptSpan, VideoRequest
from polyreel.terms import Terms
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects import Dialect, Example
from server.result_cache import ResultCache, digest
from server.services import services
from server.submission import read_terms
from server.synchronous import (
    HOLD_S,
    JobFailed,
    ServerStopping,
    compute_type,
    held_refusals,
    is_loaded,
    wait_for_video,
)
from server.waiters import Waiter
from server.wire import Integer, Number, Prompts, check_length, check_limits, check_prompt, check_range, choose_seed

_TASK = "text-to-video"
_MOST_FPS = 120
_MOST_GUIDANCE = 100


class HuggingFaceSettings(BaseModel):
    """What the documents and today's clients see differently.

    Args:
        wait_for_model: hold a request while its model loads. False answers 503 as documented, unless the client
            sends `x-wait-for-model: true`; the JavaScript client repeats a 503 without a pause and without an end.
        wait_s: longest time that a request is held, seconds; Node's fetch gives up after 300.
        cache: which requests are answered from earlier ones: "all" as documented, "seeded" only those with a seed.
        cancel_when_client_leaves: end a job when its client hangs up and nobody else waits for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    wait_for_model: bool = True
    wait_s: float = 290.0
    cache: Literal["all", "seeded", "off"] = "all"
    cancel_when_client_leaves: bool = True


class Size(BaseModel):
    """The size of image-to-video's page, taken for text too."""

    width: Integer
    height: Integer


class Parameters(BaseModel):
    """The documented parameters; width, height, fps and target_size are ours. Unknown keys are ignored."""

    num_frames: Integer | None = None
    guidance_scale: Number | None = None
    negative_prompt: Prompts | None = None
    num_inference_steps: Integer | None = None
    seed: Integer | None = None
    width: Integer | None = None
    height: Integer | None = None
    fps: Number | None = None
    target_size: Size | None = None


class Options(BaseModel):
    """The older form of the headers `x-use-cache` and `x-wait-for-model`."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None


class TextToVideo(BaseModel):
    """The request body; null means absent."""

    inputs: str | None = None
    parameters: Parameters | None = None
    options: Options | None = None


def from_wire(wire: TextToVideo, model: str, catalogue: Catalogue) -> VideoRequest:
    """Translate a body into the neutral request; what is not given comes from the catalogue entry.

    Args:
        model: catalogue name of the model in the path.

    Raises:
        InvalidRequest: names the field.
    """
    prompt = check_prompt("inputs", wire.inputs)
    given, defaults = wire.parameters or Parameters(), catalogue[model].defaults
    size = given.target_size or given
    num_frames = defaults.num_frames if given.num_frames is None else given.num_frames
    steps = defaults.num_inference_steps if given.num_inference_steps is None else given.num_inference_steps
    height = defaults.height if size.height is None else size.height
    width = defaults.width if size.width is None else size.width
    fps = defaults.fps if given.fps is None else given.fps
    guidance_scale = defaults.guidance_scale if given.guidance_scale is None else given.guidance_scale
    of_size = "parameters.target_size" if given.target_size else "parameters"
    check_limits(
        catalogue[model].limits,
        MIN_SIDE,
        num_frames=("parameters.num_frames", num_frames),
        height=(f"{of_size}.height", height),
        width=(f"{of_size}.width", width),
        num_inference_steps=("parameters.num_inference_steps", steps),
    )
    check_range("parameters.guidance_scale", guidance_scale, 0, _MOST_GUIDANCE)
    check_range("parameters.fps", fps, 1, _MOST_FPS)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, num_frames),),
        negative_prompt=check_length("parameters.negative_prompt", given.negative_prompt),
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=choose_seed("parameters.seed", given.seed),
        outputs=(OutputSpec("mp4", fps),),
    )


def to_wire(stored: StoredJob, compute_type: str) -> dict[str, str]:
    """Return the headers of the answer whose body is the video's bytes.

    Args:
        compute_type: "cpu", "gpu", "cache" (then nothing was computed), or "" when nobody knows any more.
    """
    job = stored.job
    seconds = 0.0 if compute_type == "cache" else job.seconds_taken
    headers = {
        "Content-Type": job.outputs[0].media_type,
        "x-compute-time": f"{seconds:.3f}",
        "x-compute-characters": str(len(job.request.prompts[0].prompt)),
        "x-request-id": job.id,
    }
    return headers | ({"x-compute-type": compute_type} if compute_type else {})


class ModelLoading(PolyreelError):
    """Raised when the client is to come back: no live worker has the model loaded yet."""

    def __init__(self, name: str, estimated_s: int, job_id: str) -> None:
        super().__init__(f"Model {name} is currently loading")
        self.estimated_s = estimated_s
        self.job_id = job_id


#: error: (HTTP status, text instead of the error's own); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str | None], ...] = (
    (MissingKey, 401, "Invalid credentials in Authorization header"),
    (InvalidKey, 401, "Invalid credentials in Authorization header"),
    (NotAllowed, 403, None),
    (UnknownModel, 404, None),
    (UnknownJob, 404, None),
    (UnknownRoute, 404, None),
    (MethodNotAllowed, 405, None),
    (RequestTooLarge, 413, None),
    (KeyReused, 422, None),
    (InvalidRequest, 400, None),
    (TooManyJobs, 429, None),
    (ModelLoading, 503, None),
    (QueueUnavailable, 503, None),
    (StillRunning, 504, None),
    (GenerationFailed, 500, None),
    (StorageFailed, 500, "The video's file could not be read."),
    (PolyreelError, 500, None),
)


def render_error(err: PolyreelError, settings: HuggingFaceSettings) -> Response:
    """Return `{"error": text}`: the clients show a string and nothing else. Details stand under other keys."""
    status, text = next((status, text) for kind, status, text in _ERRORS if isinstance(err, kind))
    body: dict[str, Any] = {"error": text or err.message}  # Any: JSON
    headers = {}
    if isinstance(err, InvalidRequest) and err.field:
        body["field"] = err.field
    if isinstance(err, JobFailed | StillRunning | ServerStopping | ModelLoading):
        body["job_id"] = err.job_id
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif isinstance(err, ModelLoading):
        body["estimated_time"] = float(err.estimated_s)
        headers["Retry-After"] = str(err.estimated_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(body, status, headers)


router = APIRouter()


@router.post("/models/{rest:path}")
@router.post("/hf-inference/models/{rest:path}")
async def by_model(request: Request, rest: str) -> Response:
    """`/models/{model}`, or `/models/{model}/pipeline/{task}` as newer clients build it."""
    name, _, task = rest.strip("/").partition("/pipeline/")
    return await _answer(request, name, task or _TASK)


@router.post("/pipeline/{task}/{name:path}")
@router.post("/hf-inference/pipeline/{task}/{name:path}")
async def by_task(request: Request, task: str, name: str) -> Response:
    """`/pipeline/{task}/{model}`, as older clients build it."""
    return await _answer(request, name.strip("/"), task)


@router.get("/models/{rest:path}")
@router.get("/hf-inference/models/{rest:path}")
async def about(request: Request, rest: str) -> Response:
    """Say that a model is served; huggingface_hub asks at `/info`."""
    shared = services(request)
    await shared.caller(bearer(request), "read")
    name = rest.strip("/").removesuffix("/info")
    model = shared.catalogue.resolve("huggingface", name)
    return JSONResponse({"model_id": name, "pipeline_tag": _TASK, "family": shared.catalogue[model].family})


async def _answer(request: Request, name: str, task: str) -> Response:
    """Make the video and answer with its bytes."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    model = shared.catalogue.resolve("huggingface", name)
    if task == "image-to-video":
        raise _image_to_video()
    if task != _TASK:
        raise UnknownRoute(f"Model {name} does not serve the task {task[:60]}; it serves {_TASK}.")
    body = await read_body(request, shared.settings.max_body_bytes)
    wire = await _read(body)
    video = from_wire(wire, model, shared.catalogue)
    terms = await read_terms(request, "huggingface", body)
    async with held_refusals():
        return await _generate(request, caller, name, wire, video, terms)


async def _read(body: bytes) -> TextToVideo:
    """Return the wire body; its Content-Type is not asked, as the community's own server does not.

    Raises:
        InvalidRequest: names the field.
        NotServedYet: an image.
    """
    if body.startswith(_IMAGES):
        raise _image_to_video()
    value = await parse_object(body)
    inputs = value.get("inputs")
    if isinstance(inputs, dict):
        raise InvalidRequest(
            "inputs must be a string here; a request whose inputs are an object goes to POST /", "inputs"
        )
    if isinstance(inputs, str) and inputs.startswith(_IMAGE_TEXTS):
        raise _image_to_video()
    return validate(TextToVideo, value)


#: How PNG, JPEG, GIF and WebP begin, raw and in base64.
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF")
_IMAGE_TEXTS = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")


def _image_to_video() -> NotServedYet:
    return NotServedYet("image-to-video is not served yet; send a text prompt as inputs", "inputs")


async def _generate(
    request: Request, caller: Caller, name: str, wire: TextToVideo, video: VideoRequest, terms: Terms
) -> Response:
    """Find or start the job of this request, wait for it, and answer.

    While the model loads and the client is not to wait, the job is queued and promised: that loads the model, and
    the same request sent again gets this job's video, cached or not. So a client that retries always succeeds.
    """
    shared, settings, owner = services(request), _settings(request), caller.owner
    cache, options = ResultCache(shared, owner), wire.options or Options()
    is_seeded = wire.parameters is not None and wire.parameters.seed not in (None, -1)
    key = digest(shared, owner, video, is_seeded=is_seeded, is_exact=terms.exact)

    async def submit() -> StoredJob:
        return await shared.submit(video, dialect="huggingface", caller=caller, terms=terms)

    # An Idempotency-Key says by itself which job answers: a cached one could not be told from another request's.
    promised = None if terms.idempotency_key else await cache.promised(key)
    is_cached = not terms.idempotency_key and _is_cached(request, options, settings, is_seeded)
    while True:
        if promised is not None:
            stored = promised
        elif is_cached:
            stored = await cache.get_or_submit(key, submit)
        else:
            stored = await submit()
        waiter = Waiter(shared.waiters, stored.job.id)
        # Whoever waited for a shared job may leave it, and so cancel it, before this request is counted. One that its
        # owner has cancelled stays cancelled.
        if stored.job.status.is_terminal or await waiter.stay() or not is_cached:
            break
        if promised is not None:  # it was left all the same; this is a request like any other now
            await cache.forget_promise(key)
            promised = None
    if terms.idempotency_key:
        await shared.waiters.promise(stored.job.id)
    is_hit = promised is None and stored.job.status.is_terminal
    may_wait = settings.wait_for_model or options.wait_for_model or _flag(request, "x-wait-for-model")
    if not may_wait and not stored.job.status.is_terminal and not await is_loaded(shared, video.model):
        await cache.promise(key, stored)
        await asyncio.sleep(HOLD_S)
        raise ModelLoading(name, max(1, await shared.eta_s(stored)), stored.job.id)
    try:
        stored = await wait_for_video(
            shared,
            request,
            stored,
            owner,
            settings.wait_s,
            cancel_when_client_leaves=settings.cancel_when_client_leaves and not terms.idempotency_key,
            waiter=waiter,
        )
    except JobFailed:
        await cache.forget_promise(key)
        raise
    content = await shared.read(stored.job.outputs[0].key)
    if promised is not None:
        await cache.forget_promise(key)
    return Response(content, headers=to_wire(stored, "cache" if is_hit else await compute_type(shared, stored.job)))


def _is_cached(request: Request, options: Options, settings: HuggingFaceSettings, is_seeded: bool) -> bool:
    if options.use_cache is False or _flag(request, "x-use-cache") is False:
        return False
    return settings.cache == "all" or (settings.cache == "seeded" and is_seeded)


def _flag(request: Request, header: str) -> bool | None:
    """Return a boolean header, None when it is absent or neither true nor false."""
    return {"true": True, "1": True, "false": False, "0": False}.get(request.headers.get(header, "").strip().lower())


def _settings(request: Request) -> HuggingFaceSettings:
    found: HuggingFaceSettings = request.app.state.dialect_settings["huggingface"]
    return found


DIALECT = Dialect(
    name="huggingface",
    prefixes=("/models/", "/hf-inference/", "/pipeline/"),
    router=router,
    render_error=render_error,
    settings=HuggingFaceSettings,
    example=Example(
        title="answers with the mp4 itself",
        path="/models/Lightricks/LTX-Video",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={"inputs": "An astronaut riding a horse on the moon"},
        saves_to="huggingface.mp4",
    ),
)

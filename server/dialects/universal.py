"""Hugging Face universal handler: `POST /` answers with gif, webm or zip in base64.

Sources: the model card "Video Generation Endpoint API (Universal Handler)", and huggingface-inference-toolkit, in which
such a handler runs (its route `/predict`, its text for missing inputs, its `Ok`). What the card leaves open, and every
field, is in `docs/compatibility/universal.md`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from polyreel.catalogue import Catalogue
from polyreel.entries import MIN_SIDE
from polyreel.errors import (
    ConfigurationError,
    GenerationFailed,
    InvalidKey,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    MissingKey,
    NotAllowed,
    PolyreelError,
    QueueUnavailable,
    RequestTooLarge,
    StillRunning,
    StorageFailed,
    TooManyJobs,
    UnknownRoute,
)
from polyreel.job import VideoJob
from polyreel.records import StoredJob
from polyreel.request import ImageCondition, OutputSpec, PromptSpan, VideoRequest
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects import Dialect, Example
from server.pictures import MAX_BODY_BYTES, Picture
from server.services import Services, services
from server.submission import read_terms
from server.synchronous import JobFailed, ServerStopping, held_refusals, wait_for_video
from server.wire import Integer, Number, Prompts, check_length, check_limits, check_prompt, check_range, choose_seed

_FORMATS = ("gif", "webm", "zip")
_MULTIPLE = 32  # of height and width, pixels
_MOST_GUIDANCE = 100

#: A GIF frame lasts at least one centisecond; no other format of this endpoint is asked for more.
_MOST_FPS = 100

#: Read from a file at a time, bytes; a multiple of 3, so that the base64 of the pieces is the base64 of the whole.
_PIECE = 3 * 256 * 1024


class UniversalSettings(BaseModel):
    """The endpoint has one model and no name for it in its requests.

    Args:
        endpoint_model: which of this dialect's public names answers; None takes the catalogue's first.
        wait_s: longest time that a request is held, seconds; Node's fetch gives up after 300.
        cancel_when_client_leaves: end a job when its client hangs up and nobody else waits for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    endpoint_model: str | None = None
    wait_s: float = 290.0
    cancel_when_client_leaves: bool = True


class Gif(BaseModel):
    """Options of the gif alone."""

    fps: Integer | None = None


class Webm(BaseModel):
    """Options of the webm alone."""

    fps: Integer | None = None
    quality: Literal["fast", "good", "best"] | None = None


class Inputs(BaseModel):
    """The card's fields; null means absent, unknown keys are ignored."""

    prompt: str | None = None
    image: str | None = None
    negative_prompt: Prompts | None = None
    num_frames: Integer | None = None
    fps: Integer | None = None
    height: Integer | None = None
    width: Integer | None = None
    seed: Integer | None = None
    num_inference_steps: Integer | None = None
    guidance_scale: Number | None = None
    outputs: Annotated[list[str], Field(fail_fast=True)] | None = None  # only the first wrong item is told
    return_base64: bool | None = None
    gif: Gif | None = None
    webm: Webm | None = None


class UniversalBody(BaseModel):
    """The request body."""

    inputs: Inputs


#: The card's defaults.
_DEFAULTS: dict[str, Any] = {  # Any: each field's own type
    "num_frames": 32,
    "fps": 12,
    "height": 512,
    "width": 512,
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
}


def from_wire(wire: UniversalBody, model: str, catalogue: Catalogue) -> VideoRequest:
    """Translate a body into the neutral request, but for its picture, which is to be stored first.

    Args:
        model: catalogue name of the endpoint's model; it limits the request.

    Raises:
        InvalidRequest: names the field.
    """
    given = wire.inputs
    prompt = check_prompt("inputs.prompt", given.prompt)
    values = {
        field: default if getattr(given, field) is None else getattr(given, field)
        for field, default in _DEFAULTS.items()
    }
    check_limits(
        catalogue[model].limits,
        MIN_SIDE,
        **{
            field: (f"inputs.{field}", values[field])
            for field in ("num_frames", "height", "width", "num_inference_steps")
        },
    )
    for side in ("height", "width"):
        _check_multiple(f"inputs.{side}", values[side])
    check_range("inputs.guidance_scale", values["guidance_scale"], 0, _MOST_GUIDANCE)
    check_range("inputs.fps", values["fps"], 1, _MOST_FPS)
    return VideoRequest(
        model=model,
        prompts=(PromptSpan(prompt, values["num_frames"]),),
        negative_prompt=check_length("inputs.negative_prompt", given.negative_prompt),
        height=values["height"],
        width=values["width"],
        fps=values["fps"],
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        seed=choose_seed("inputs.seed", given.seed),
        outputs=_outputs(given, values["fps"]),
    )


def _check_multiple(field: str, pixels: int) -> None:
    if pixels % _MULTIPLE:
        nearest = round(pixels / _MULTIPLE) * _MULTIPLE
        raise InvalidRequest(f"{field} must be divisible by {_MULTIPLE}, got {pixels}; nearest: {nearest}", field)


def _outputs(given: Inputs, fps: int) -> tuple[OutputSpec, ...]:
    """Return the files to make, each once, in the order in which they were named."""
    names = list(dict.fromkeys(["gif"] if given.outputs is None else given.outputs))
    if not names:
        raise InvalidRequest(
            'inputs.outputs must name at least one of "gif", "webm", "zip", got an empty list', "inputs.outputs"
        )
    for name in names:
        if name not in _FORMATS:
            raise InvalidRequest(
                f'inputs.outputs must hold only "gif", "webm", "zip", got {json.dumps(name[:40])}', "inputs.outputs"
            )
    gif, webm = given.gif or Gif(), given.webm or Webm()
    own_fps = {"gif": gif.fps, "webm": webm.fps}
    for name, value in own_fps.items():
        if value is not None:
            check_range(f"inputs.{name}.fps", value, 1, _MOST_FPS)
    quality = webm.quality or "good"
    return tuple(OutputSpec(name, own_fps.get(name) or fps, quality if name == "webm" else "good") for name in names)


def to_wire(stored: StoredJob, outputs: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer to a finished job. Any: JSON.

    Args:
        outputs: by key, "gif_base64" to the text of the file or "gif_url" to its link.
    """
    return {
        "ok": True,
        "outputs": dict(outputs),
        "diagnostics": {"timing_ms": _timing_ms(stored.job), "mode": "i2v" if stored.job.request.images else "t2v"},
    }


def _timing_ms(job: VideoJob) -> dict[str, float]:
    seconds = {
        "queue": job.started_at - job.created_at,
        **{stage: job.timings.get(stage, 0.0) for stage in ("load", "generate", "encode", "store")},
        "total": job.ended_at - job.created_at,
    }
    return {stage: round(max(0.0, value) * 1000, 1) for stage, value in seconds.items()}


#: error: (HTTP status, text instead of the error's own); the first match of the class wins
_ERRORS: tuple[tuple[type[PolyreelError], int, str | None], ...] = (
    (MissingKey, 401, "Invalid credentials in Authorization header"),
    (InvalidKey, 401, "Invalid credentials in Authorization header"),
    (NotAllowed, 403, None),
    (UnknownRoute, 404, None),
    (MethodNotAllowed, 405, None),
    (RequestTooLarge, 413, None),
    (KeyReused, 422, None),
    (InvalidRequest, 400, None),
    (TooManyJobs, 429, None),
    (QueueUnavailable, 503, None),
    (StillRunning, 504, None),
    (GenerationFailed, 500, None),
    (StorageFailed, 500, "A result file could not be read."),
    (PolyreelError, 500, None),
)


def render_error(err: PolyreelError, settings: UniversalSettings) -> Response:
    """Return `{"ok": false, "error": text}`, which the card's clients and those of the toolkit understand."""
    status, text = next((status, text) for kind, status, text in _ERRORS if isinstance(err, kind))
    body: dict[str, Any] = {"ok": False, "error": text or err.message}  # Any: JSON
    headers = {}
    if isinstance(err, InvalidRequest) and err.field:
        body["field"] = err.field
    if isinstance(err, JobFailed | StillRunning | ServerStopping):
        body["job_id"] = err.job_id
    if isinstance(err, TooManyJobs):
        headers["Retry-After"] = str(err.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(body, status, headers)


router = APIRouter()


@router.post("/")
@router.post("/predict")
async def generate(request: Request) -> Response:
    """Make the video in every format asked for and answer with the files, or with links to them."""
    shared, settings = services(request), _settings(request)
    caller = await shared.caller(bearer(request), "submit")
    body = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    wire = _read(await parse_object(body))
    terms = await read_terms(request, "universal", body)
    video = from_wire(wire, _model(shared.catalogue, settings), shared.catalogue)
    pictures: tuple[Picture, ...] = ()
    if wire.inputs.image is not None:
        pictures = (await shared.read_picture("inputs.image", wire.inputs.image),)
        video = replace(video, images=tuple(ImageCondition(picture.key) for picture in pictures))
    async with held_refusals():
        stored = await shared.submit(video, dialect="universal", caller=caller, pictures=pictures, terms=terms)
        if terms.idempotency_key:  # whoever sends one may come back for its job
            await shared.waiters.promise(stored.job.id)
        stored = await wait_for_video(
            shared,
            request,
            stored,
            caller.owner,
            settings.wait_s,
            cancel_when_client_leaves=settings.cancel_when_client_leaves and not terms.idempotency_key,
        )
    if wire.inputs.return_base64 is False:
        return JSONResponse(to_wire(stored, _links(shared, request, stored.job)))
    files = await run_in_threadpool(_open, shared, stored.job)
    return StreamingResponse(_pieces(stored, files), media_type="application/json")


@router.api_route("/", methods=["GET", "HEAD"])
async def alive() -> Response:
    """Answer the endpoint's health probe, which sends no key."""
    return PlainTextResponse("Ok")


def _read(value: dict[str, Any]) -> UniversalBody:
    if "inputs" not in value:
        keys = json.dumps([key[:40] for key in list(value)[:20]])
        raise InvalidRequest(f"Body needs to provide a inputs key, received: {keys}", "inputs")
    if isinstance(value["inputs"], str):
        raise InvalidRequest(
            'inputs must be an object with a "prompt"; inputs that are a text go to POST /models/{model}',
            "inputs",
        )
    return validate(UniversalBody, value)


def check(catalogue: Catalogue, settings: UniversalSettings) -> None:
    """Stop the start when the endpoint is to run a model that is not served.

    Raises:
        ConfigurationError: names the setting and what is served.
    """
    if catalogue.public_names("universal"):
        _model(catalogue, settings)


def _model(catalogue: Catalogue, settings: UniversalSettings) -> str:
    """Return the catalogue name of the endpoint's model.

    Raises:
        ConfigurationError: the setting names no model of this dialect.
    """
    served = catalogue.public_names("universal")
    name = settings.endpoint_model or next(iter(served), "")
    found = catalogue.find("universal", name)
    if found is None:
        raise ConfigurationError(
            f"dialects.universal.endpoint_model: {name!r} is not a model of this endpoint. "
            f"The catalogue's universal names: {', '.join(served) or 'none'}."
        )
    return found


def _links(shared: Services, request: Request, job: VideoJob) -> dict[str, str]:
    base_url, expires_at = shared.base_url(request), job.created_at + shared.settings.retention_s
    return {
        f"{output.format}_url": shared.link(base_url, key, expires_at)
        for key, output in zip(job.output_keys, job.outputs, strict=True)
    }


def _open(shared: Services, job: VideoJob) -> dict[str, BinaryIO]:
    """Open every file before the answer begins: after its first byte, an error could not be told any more."""
    return {f"{output.format}_base64": shared.storage.open(output.key) for output in job.outputs}


def _pieces(stored: StoredJob, files: Mapping[str, BinaryIO]) -> Iterator[bytes]:
    """Yield the answer with the files in it, piece by piece: a zip of raw frames may be larger than the memory.

    Starlette runs a plain iterator in a thread, so the event loop does not wait for the encoding.
    """
    here = "the file's base64"  # nothing else in the answer is a text of anybody's choosing
    between = json.dumps(to_wire(stored, dict.fromkeys(files, here))).split(here)
    for before, file in zip(between, files.values(), strict=False):
        yield before.encode()
        with file:
            while piece := file.read(_PIECE):
                yield base64.b64encode(piece)
    yield between[-1].encode()


def _settings(request: Request) -> UniversalSettings:
    found: UniversalSettings = request.app.state.dialect_settings["universal"]
    return found


DIALECT = Dialect(
    name="universal",
    prefixes=("/", "/predict"),
    router=router,
    render_error=render_error,
    settings=UniversalSettings,
    check=check,
    example=Example(
        title="answers with a gif in base64",
        path="/",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={
            "inputs": {
                "prompt": "a cyberpunk street in rain, neon lights",
                "num_frames": 24,
                "outputs": ["gif"],
            }
        },
    ),
)

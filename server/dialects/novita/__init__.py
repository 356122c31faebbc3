"""Novita v3: submits under `/v3/async`, `GET /v3/async/task-result`, `GET /v3/model`, `GET /v3/user`.

Sources: novita.ai/docs; where it is silent, what Novita's own clients need in order to work. Every field, and what we
decided, is in `docs/compatibility/novita.md`. Each submit has a module with its wire model and what a body means; here
are the routes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from polyreel.catalogue import Catalogue
from polyreel.errors import InvalidRequest, QueueUnavailable
from polyreel.keys import Caller
from polyreel.records import StoredJob
from polyreel.request import VideoRequest
from server.body import parse_object, read_body, validate
from server.credentials import bearer_or_raw
from server.dialects import Dialect, Example
from server.dialects.novita import img2video, provider, txt2video, wan
from server.dialects.novita.errors import Problem, ResultUnavailable, render_error
from server.dialects.novita.listing import ModelList, page
from server.dialects.novita.results import TaskResult, result, webhook
from server.dialects.novita.settings import NovitaSettings, check, model_of, settings_of
from server.dialects.novita.submits import FirstFrame, Submit, TaskId
from server.openapi import documents
from server.pictures import MAX_BODY_BYTES
from server.services import Services, services
from server.snippets import WireCall, Wish
from server.synchronous import wait_for_video

router = APIRouter(prefix="/v3")

_KEYS = ("bearer", "authorization")


class User(BaseModel):
    """An account that owes nothing."""

    allow_features: list[str] = []
    credit_balance: int = 0
    free_trial: dict[str, Any] = {}  # Any: JSON; empty


def _documents(body: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    return documents(body=body, answer=answer, errors=Problem, keys=_KEYS)


def _submit(body: type[BaseModel]) -> dict[str, Any]:
    return _documents(body, TaskId)


@router.post("/async/txt2video", **_submit(txt2video.TextToVideo))
async def submit_txt2video(request: Request) -> Response:
    """Submit; answers at once with the task's id."""
    shared, caller = await _caller(request, "submit")
    raw = await read_body(request, shared.settings.max_body_bytes)
    wire = validate(txt2video.TextToVideo, await parse_object(raw))
    video = txt2video.from_wire(wire, shared.catalogue, settings_of(request))
    submit = Submit(request, caller, raw, "TXT_TO_VIDEO", wire.extra, words={"image": "model_name"})
    return await submit.acknowledge(video)


@router.post("/async/wan-t2v", **_submit(wan.WanTextToVideo))
async def submit_wan_t2v(request: Request) -> Response:
    """Submit a text for Wan."""
    shared, caller = await _caller(request, "submit")
    raw = await read_body(request, shared.settings.max_body_bytes)
    wire = validate(wan.WanTextToVideo, await parse_object(raw))
    settings = settings_of(request)
    model = model_of("wan-t2v", shared.catalogue, settings)
    video = wan.from_wire(wire, model, shared.catalogue, settings)
    return await Submit(request, caller, raw, "WAN_TXT_TO_VIDEO", wire.extra).acknowledge(video)


@router.post("/async/wan-i2v", **_submit(wan.WanImageToVideo))
async def submit_wan_i2v(request: Request) -> Response:
    """Submit a picture, by its link, and a text for Wan; the video keeps the picture's aspect."""
    shared, caller = await _caller(request, "submit")
    raw = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    wire = validate(wan.WanImageToVideo, await parse_object(raw))
    settings = settings_of(request)
    model = model_of("wan-i2v", shared.catalogue, settings)
    video = wan.from_wire(wire, model, shared.catalogue, settings)
    fit = partial(wan.with_aspect_of, most=shared.catalogue[model].limits.side)
    first_frame = FirstFrame("image_url", wire.image_url, fit)
    return await Submit(request, caller, raw, "WAN_IMG_TO_VIDEO", wire.extra).acknowledge(video, first_frame)


@router.post("/async/img2video", **_submit(img2video.ImageToVideo))
async def submit_img2video(request: Request) -> Response:
    """Submit a picture in base64 to be animated without a prompt."""
    shared, caller = await _caller(request, "submit")
    raw = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    wire = validate(img2video.ImageToVideo, await parse_object(raw))
    model = model_of("img2video", shared.catalogue, settings_of(request))
    video = img2video.from_wire(wire, model, shared.catalogue)
    fit = partial(img2video.with_size_of, mode=wire.image_file_resize_mode)
    first_frame = FirstFrame("image_file", wire.image_file, fit, img2video.strength(wire))
    return await Submit(request, caller, raw, "IMG_TO_VIDEO", wire.extra).acknowledge(video, first_frame)


@router.post("/async/{name:provider_model}", **_submit(provider.ProviderBody))
async def submit_for_provider(request: Request, name: str) -> Response:
    """Submit to a model by its name, as Hugging Face's JavaScript client does with the provider "novita"."""
    shared = services(request)
    model = provider.model_named(shared.catalogue, name)  # first: what is no API is unknown also without a key
    submit, video = await _for_provider(request, model)
    return await submit.acknowledge(video)


@router.post("/hf/{name:path}", **_documents(provider.ProviderBody, provider.ProviderAnswer))
async def wait_for_provider(request: Request, name: str) -> Response:
    """Make a video and answer with its link, as Hugging Face's Python client expects of the provider "novita"."""
    shared, settings = services(request), settings_of(request)
    is_wan = name == "wan-t2v"
    model = model_of(name, shared.catalogue, settings) if is_wan else provider.model_named(shared.catalogue, name)
    submit, video = await _for_provider(request, model)
    stored, owner = await submit.make(video), submit.caller.owner
    try:
        stored = await wait_for_video(
            shared, request, stored, owner, settings.hf_wait_s, cancel_when_client_leaves=False
        )
    except QueueUnavailable as err:  # the task is made, and goes on
        raise ResultUnavailable(err.message) from err
    answer = _result(request, shared, stored)
    return JSONResponse({"video": {"video_url": answer["videos"][0]["video_url"]}})


async def _for_provider(request: Request, model: str) -> tuple[Submit, VideoRequest]:
    shared, caller = await _caller(request, "submit")
    raw = await read_body(request, shared.settings.max_body_bytes)
    wire = validate(provider.ProviderBody, await parse_object(raw))
    video = provider.from_wire(wire, model, shared.catalogue)
    return Submit(request, caller, raw, "TXT_TO_VIDEO", words={"image": "prompt"}), video


@router.get(
    "/async/task-result",
    **documents(
        answer=TaskResult,
        errors=Problem,
        keys=_KEYS,
        parameters=({"name": "task_id", "in": "query", "required": True, "schema": {"type": "string"}},),
    ),
)
async def task_result(request: Request) -> Response:
    """Answer how a task is getting on; 200 also for a failed one."""
    shared, caller = await _caller(request, "read")
    task_id = request.query_params.get("task_id")
    if not task_id:
        raise InvalidRequest("task_id is required", "task_id")
    try:
        stored = await shared.get(task_id, caller.owner)
        eta_s = await shared.eta_s(stored)
    except QueueUnavailable as err:
        raise ResultUnavailable(err.message) from err
    return JSONResponse(_result(request, shared, stored, eta_s))


@router.get("/model", **documents(answer=ModelList, errors=Problem, keys=_KEYS))
async def models(request: Request) -> Response:
    """List the checkpoints, LoRAs and embeddings that txt2video takes, filtered and in pages."""
    shared, _ = await _caller(request, "read")
    return JSONResponse(page(request, shared.catalogue))


@router.get("/user", **documents(answer=User, errors=Problem, keys=_KEYS))
async def user(request: Request) -> Response:
    """Answer a client that asks for its account: nothing is billed here."""
    await _caller(request, "read")
    return JSONResponse(User().model_dump())


async def _caller(request: Request, scope: Any) -> tuple[Services, Caller]:
    """Return the services, and who calls; Any: a `Scope`."""
    shared = services(request)
    return shared, await shared.caller(bearer_or_raw(request), scope)


def _result(request: Request, shared: Services, stored: StoredJob, eta_s: int = 0) -> dict[str, Any]:
    def link(key: str, expires_at: float) -> str:
        return shared.link(shared.base_url(request), key, expires_at)

    return result(stored, link, shared.settings.retention_s, settings_of(request), eta_s=eta_s)


def snippet(wish: Wish, catalogue: Catalogue, settings: NovitaSettings) -> WireCall:
    """Say a request in these words: as txt2video for models with a name of Novita's, else by their name in the path.

    `wan-t2v` and `wan-i2v` fix frames and sizes, and `img2video` takes no prompt: none of them says what was asked.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    if catalogue[wish.request.model].names.get("novita"):
        return txt2video.snippet(wish, catalogue, settings)
    return provider.snippet(wish, catalogue)


DIALECT = Dialect(
    name="novita",
    prefixes=("/v3/",),
    router=router,
    render_error=render_error,
    settings=NovitaSettings,
    snippet=snippet,
    title="Novita v3",
    about="Submits under `/v3/async` answer with a task's id; `task-result` tells the rest.",
    check=check,
    webhook=webhook,
    example=Example(
        title="two prompts in one mp4",
        path="/v3/async/txt2video",
        headers={"Authorization": "Bearer {key}", "Content-Type": "application/json"},
        body={
            "model_name": "wan2.2",
            "height": 256,
            "width": 256,
            "steps": 20,
            "seed": -1,
            "prompts": [
                {"frames": 17, "prompt": "a red circle moving right on a black background"},
                {"frames": 16, "prompt": "a blue circle moving right on a black background"},
            ],
        },
    ),
)

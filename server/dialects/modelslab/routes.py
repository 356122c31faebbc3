"""The routes. v6, the enterprise server and v7's "video fusion" have paths of their own for the same calls.

There are none for `restart_server`, `update_server`, `clear_cache` and `clear_queue`: that is an operator's business
here, and no client's key may end other people's jobs.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from polyreel.errors import InvalidRequest, QueueUnavailable, UnknownJob
from polyreel.keys import Caller
from polyreel.leases import models_of
from polyreel.records import OPEN, StoredJob
from polyreel.request import ImageCondition, VideoRequest
from server.body import parse_object, read_body, validate
from server.credentials import bearer, the_only
from server.dialects.modelslab import image_to_video, text_to_video
from server.dialects.modelslab.answers import (
    TEMP_S,
    RequestCount,
    SystemDetails,
    VideoAnswer,
    links_end_at,
    output_keys,
    to_wire,
)
from server.dialects.modelslab.fields import Fields
from server.dialects.modelslab.image_to_video import ImageToVideo
from server.dialects.modelslab.refusals import ErrorAnswer, PictureNotFetched, Unreadable
from server.dialects.modelslab.settings import ModelsLabSettings
from server.dialects.modelslab.text_to_video import TextToVideo
from server.openapi import Schema, documents
from server.pictures import MAX_BODY_BYTES, Picture, is_link
from server.services import Services, guess_s, services
from server.submission import read_terms

#: How long an answer waits for the estimate in it while Redis hangs, seconds.
_ESTIMATE_S = 1.0

#: How refusals name fields, see `Catalogue.admit`.
_WORDS = {"upscale": "upscale_height, upscale_width"}

_V6, _ENTERPRISE, _V7 = "/v6/video", "/v1/enterprise/video", "/v7/video-fusion"


class Key(BaseModel):
    """The body of the calls that read."""

    key: str | None = None


def _documents(body: Schema, answer: Schema) -> dict[str, Any]:
    return documents(body=body, answer=answer, errors=ErrorAnswer, keys=("bearer", "key"))


_TEXT, _IMAGE = _documents(TextToVideo, VideoAnswer), _documents(ImageToVideo, VideoAnswer)
_FETCH, _DETAILS = _documents(Key, VideoAnswer), _documents(Key, SystemDetails)

router = APIRouter(prefix="/api")


@router.post(f"{_V6}/text2video", **_TEXT)
@router.post(f"{_ENTERPRISE}/text2video", **_TEXT)
@router.post(f"{_V7}/text-to-video", **_TEXT)
async def text2video(request: Request) -> Response:
    """Submit; answers with the video if it is ready within `hold_s`, unless `instant_response` is set."""
    shared = services(request)
    raw, body = await _read(request, shared.settings.max_body_bytes)
    caller = await shared.caller(_key(request, body), "submit")
    wire = validate(TextToVideo, body)
    video, meta = text_to_video.from_wire(wire, shared.catalogue, _settings(request))
    return await _submit(request, caller, raw, wire, video, meta)


@router.post(f"{_V6}/img2video", **_IMAGE)
@router.post(f"{_ENTERPRISE}/img2video", **_IMAGE)
@router.post(f"{_V7}/image-to-video", **_IMAGE)
async def img2video(request: Request) -> Response:
    """As text2video, from a picture for the first frame."""
    shared = services(request)
    raw, body = await _read(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    caller = await shared.caller(_key(request, body), "submit")
    wire = validate(ImageToVideo, body)
    video, meta = image_to_video.from_wire(wire, shared.catalogue, _settings(request))
    return await _submit(request, caller, raw, wire, video, meta, init_image=wire.init_image or "")


@router.post(f"{_V6}/fetch/{{job_id}}", **_FETCH)
@router.post(f"{_ENTERPRISE}/fetch/{{job_id}}", **_FETCH)
@router.post(f"{_V7}/fetch/{{job_id}}", **_FETCH)
async def fetch(request: Request, job_id: str) -> Response:
    """Answer how a job is getting on; 200 also for a failed one."""
    shared = services(request)
    caller = await _reader(request)
    return JSONResponse(await _answer(shared, request, await shared.get(job_id, caller.owner)))


@router.post("/v6/processing/request_count", **_documents(Key, RequestCount))
@router.get("/v6/processing/request_count", **_documents(None, RequestCount))  # with a body too, as the page shows it
async def request_count(request: Request) -> Response:
    """Answer how many of the caller's jobs have not ended, in whichever dialect they were submitted."""
    caller = await _reader(request)
    count = await services(request).unfinished(caller.owner)
    return JSONResponse(RequestCount(processing_count=count).model_dump())


@router.post(f"{_V6}/system_details", **_DETAILS)  # where the old SDK asks
@router.post(f"{_ENTERPRISE}/system_details", **_DETAILS)
async def system_details(request: Request) -> Response:
    """Answer how many models are loaded, and how long the queue is."""
    shared = services(request)
    await _reader(request)
    loaded = {model for about in await shared.workers() for model in models_of(about)}
    async with shared.gate.asking():
        newest = await shared.reader.zrevrange(OPEN, 0, 0)
    last = await shared.record(str(newest[0])) if newest else None
    queue_time = await _eta_s(shared, last) if last else 0
    return JSONResponse(SystemDetails(model_count=len(loaded), queue_time=queue_time).model_dump())


async def _read(request: Request, max_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """Return the body as it came and as JSON, {} for none. Any: a wire model checks the values.

    Raises:
        Unreadable: it is no JSON object.
        RequestTooLarge: more than `max_bytes`.
    """
    raw = await read_body(request, max_bytes)
    try:
        return raw, await parse_object(raw) if raw.strip() else {}
    except InvalidRequest as err:
        raise Unreadable(err.message) from err


async def _reader(request: Request) -> Caller:
    """Return who asks, by the body or the headers."""
    shared = services(request)
    _, body = await _read(request, shared.settings.max_body_bytes)
    return await shared.caller(_key(request, body), "read")


def _key(request: Request, body: dict[str, Any]) -> str | None:
    """The key stands in the body; the JavaScript SDK sends a bearer header instead, the CLI a header `key`."""
    in_body = body.get("key")
    return the_only(in_body if isinstance(in_body, str) else None, bearer(request), *request.headers.getlist("key"))


async def _submit(
    request: Request,
    caller: Caller,
    raw: bytes,
    wire: Fields,
    video: VideoRequest,
    meta: dict[str, Any],
    init_image: str = "",
) -> Response:
    """Submit and answer. What costs most comes last: the picture is fetched when nothing else is wrong."""
    shared = services(request)
    webhook = shared.check_url("webhook", wire.webhook) if wire.webhook else ""
    terms = await read_terms(request, "modelslab", raw)
    pictures: tuple[Picture, ...] = ()
    # A repetition is answered with its job, also when the link to its picture leads nowhere by now.
    if init_image and not await shared.earlier(caller.owner, terms):
        pictures = (await _picture(shared, init_image),)
        video = replace(video, images=tuple(ImageCondition(picture.key) for picture in pictures))
    stored = await shared.submit(
        video,
        dialect="modelslab",
        caller=caller,
        vendor={"meta": meta},
        pictures=pictures,
        terms=terms,
        # Links are fixed at submit and the same in every answer, so their base must not follow later Host headers.
        base_url=shared.base_url(request),
        webhook=webhook,
        keep_s=TEMP_S if wire.temp else 0.0,
        words=_WORDS | {"image": "init_image" if init_image else "model_id"},
    )
    if not wire.instant_response:
        stored = await _hold(shared, stored, caller.owner, _settings(request).hold_s)
    answer = await _answer(shared, request, stored)
    if answer["status"] == "success":
        # phidata reads these two on every submit answer, also on instant success. The CLI, which speaks v7, would
        # download what both lists name twice.
        answer |= {"eta": 0} if _is_v7(request) else {"eta": 0, "future_links": answer["output"]}
    return JSONResponse(answer)


async def _picture(shared: Services, init_image: str) -> Picture:
    try:
        return await shared.fetch_picture("init_image", init_image)
    except InvalidRequest as err:
        if is_link(init_image):
            raise PictureNotFetched(err.message, err.field) from err
        raise


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
    base_url = job.base_url or job.vendor.get("base_url") or shared.base_url(request)  # 0.1 kept it in `vendor`
    expires_at = links_end_at(job, shared.settings.retention_s)
    links = [shared.link(base_url, key, expires_at) for key in output_keys(job)]
    return to_wire(stored, links, base_url + _fetch_path(request, stored.number), await _eta_s(shared, stored))


def _fetch_path(request: Request, number: int) -> str:
    """Return where the client asks next: beside where it asked now."""
    path = request.url.path
    folder = path.partition("/fetch/")[0] if "/fetch/" in path else path.rpartition("/")[0]
    return f"{folder}/fetch/{number}"


async def _eta_s(shared: Services, stored: StoredJob) -> int:
    """Return the estimated whole seconds until a job ends, a blind guess while Redis is away: the id matters more."""
    try:
        async with asyncio.timeout(_ESTIMATE_S):
            return await shared.eta_s(stored)
    except (QueueUnavailable, TimeoutError):
        return guess_s()


def _is_v7(request: Request) -> bool:
    return request.url.path.startswith(f"/api{_V7}/")


def _settings(request: Request) -> ModelsLabSettings:
    """Return the operator's settings; on v7 videos are mp4, as its CLI calls every file it saves."""
    found: ModelsLabSettings = request.app.state.dialect_settings["modelslab"]
    return found.model_copy(update={"default_output_type": "mp4"}) if _is_v7(request) else found

"""The routes of `/v1/videos`: create, retrieve, list, delete, download and remix."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from polyreel.errors import InvalidRequest, NotServedYet, StorageAway, StorageFailed, UnknownModel
from polyreel.job import JobStatus, VideoJob
from polyreel.records import StoredJob
from polyreel.request import ImageCondition, PromptSpan, VideoRequest
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects.openai.creation import (
    NEEDS_PROMPT,
    VARIANTS,
    CreateVideo,
    ImageReference,
    OpenAISettings,
    Prompt,
    from_wire,
    outputs,
    served,
)
from server.dialects.openai.errors import ErrorBody, NoContent
from server.dialects.openai.video import DeletedVideo, Video, VideoList, to_wire
from server.files import file_response
from server.forms import Form, is_form, parse_form
from server.listing import jobs_of
from server.openapi import Schema, documents, schema_of
from server.pictures import MAX_BODY_BYTES, Picture
from server.removal import remove
from server.services import Services, services
from server.submission import read_terms
from server.wire import Integer, check_prompt, check_range

#: Videos on a page of the list.
_PAGE, _LONGEST_PAGE = 20, 100

#: A client that polls by itself is told to come back after a tenth of what is left, seconds.
_LEAST_POLL_S, _MOST_POLL_S = 0.25, 5.0

#: For how long a link to the storage's own server is good, seconds; only clients that follow at once see one.
_DOWNLOAD_S = 3600

_JSON_OR_FORM = ("application/json", "multipart/form-data")

#: The queries, as OpenAPI describes them.
_LISTING = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": _LONGEST_PAGE}},
    {"name": "after", "in": "query", "schema": {"type": "string"}},
    {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
)
_VARIANT = ({"name": "variant", "in": "query", "schema": {"enum": list(VARIANTS)}},)

#: What else `/content` answers with: thumbnails and spritesheets.
_PICTURES: dict[str, Schema] = {"image/webp": None, "image/jpeg": None}


def _form_of(model: type[BaseModel], *files: str) -> dict[str, Schema]:
    """Return what a form of the same fields is in OpenAPI; some of them may be files in it."""
    schema = schema_of(model, "validation")
    binary = {name: {"type": "string", "format": "binary"} for name in files}
    return {"multipart/form-data": {**schema, "properties": {**schema["properties"], **binary}}}


_FORM = _form_of(CreateVideo, "input_reference")


class RemixVideo(BaseModel):
    """The body of a remix."""

    model_config = NEEDS_PROMPT
    prompt: Prompt = None


class Page(BaseModel):
    """The query of the list; null means absent."""

    limit: Integer | None = None
    after: str | None = None
    order: Literal["asc", "desc"] | None = None


router = APIRouter()


@router.post("/videos", **documents(body=CreateVideo, other_bodies=_FORM, answer=Video, errors=ErrorBody))
async def create(request: Request) -> Response:
    """Submit; answers at once with the video object."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    form, canonical = await _read(request, shared)
    file = form.files.get("input_reference")
    if file is not None and form.fields.pop("input_reference", None) is not None:
        raise InvalidRequest("input_reference comes twice; send it once", "input_reference")
    wire = validate(CreateVideo, form.fields)
    video = from_wire(wire, shared.catalogue, _settings(request))
    terms = await read_terms(request, "openai", canonical)
    pictures: tuple[Picture, ...] = ()
    # A repetition is answered with its job, also when the link to its picture leads nowhere by now.
    if not await shared.earlier(caller.owner, terms):
        pictures = await _pictures(shared, file, wire.input_reference)
        video = replace(video, images=tuple(ImageCondition(picture.key) for picture in pictures))
    stored = await shared.submit(
        video,
        dialect="openai",
        caller=caller,
        vendor={"model": wire.model} if wire.model else {},
        pictures=pictures,
        terms=terms,
        words={"image": "input_reference"},
    )
    return _answer(shared, stored)


@router.get("/videos", **documents(answer=VideoList, errors=ErrorBody, parameters=_LISTING))
async def list_videos(request: Request) -> Response:
    """List the owner's videos, newest first, also those that were made in another dialect."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    query = validate(Page, dict(request.query_params))
    limit = _PAGE if query.limit is None else query.limit
    check_range("limit", limit, 1, _LONGEST_PAGE)
    page = await jobs_of(shared, caller.owner, limit, query.after or "", query.order == "asc")
    data = [to_wire(stored, shared.catalogue, shared.settings.retention_s) for stored in page.jobs]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return JSONResponse({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": page.has_more})


@router.post("/videos/edits", include_in_schema=False)
@router.post("/videos/extensions", include_in_schema=False)
@router.post("/videos/characters", include_in_schema=False)
async def from_a_video(request: Request) -> Response:
    """Refuse what would start from a finished video's pixels: no family here reads one."""
    await services(request).caller(bearer(request), "submit")
    raise NotServedYet(
        "Edits, extensions and characters are not served here; create a new video, with a picture as input_reference "
        "where it is to go on from one, or a remix"
    )


@router.get("/videos/{video_id}", **documents(answer=Video, errors=ErrorBody))
async def retrieve(request: Request, video_id: str) -> Response:
    """Answer how a video is getting on; 200 also for a failed one."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    stored = await shared.get(video_id, caller.owner)
    answer = _answer(shared, stored)
    if not stored.job.status.is_terminal:
        answer.headers["openai-poll-after-ms"] = str(_poll_after_ms((await shared.estimate(stored)).eta_s))
    return answer


@router.delete("/videos/{video_id}", **documents(answer=DeletedVideo, errors=ErrorBody))
async def delete(request: Request, video_id: str) -> Response:
    """Delete a video with its files; one that is not finished is cancelled first."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    removal = await remove(shared, video_id, caller.owner)
    if not removal.is_deleted:  # cancelled: now it has ended, and "deleted" is to be true
        await remove(shared, removal.stored.job.id, caller.owner)
    return JSONResponse(DeletedVideo(id=video_id, deleted=True).model_dump())


@router.head("/videos/{video_id}/content", include_in_schema=False)
@router.get(
    "/videos/{video_id}/content",
    **documents(answer_media="video/mp4", other_answers=_PICTURES, errors=ErrorBody, parameters=_VARIANT),
)
async def content(request: Request, video_id: str) -> Response:
    """Answer with the bytes of the video, its thumbnail (WebP) or its spritesheet (JPEG); ranges work."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    variant = request.query_params.get("variant", "video")
    if variant not in VARIANTS:
        raise InvalidRequest(f"variant must be one of {', '.join(VARIANTS)}, got {variant[:40]!r}", "variant")
    job = (await shared.get(video_id, caller.owner)).job
    key = _stored_key(job, variant)
    expires_at = min(time.time() + _DOWNLOAD_S, job.kept_until(shared.settings.retention_s))
    try:
        return await run_in_threadpool(file_response, request, shared.storage, key, expires_at)
    except StorageAway:
        raise
    except StorageFailed:
        raise NoContent("The file of this video is not there any more.") from None


@router.post(
    "/videos/{video_id}/remix",
    **documents(body=RemixVideo, body_media=_JSON_OR_FORM, answer=Video, errors=ErrorBody),
)
async def remix(request: Request, video_id: str) -> Response:
    """Make a completed video again with another prompt: the same model, settings, picture and seed."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    form, canonical = await _read(request, shared)
    prompt = check_prompt("prompt", validate(RemixVideo, form.fields).prompt)
    terms = await read_terms(request, "openai", canonical)
    stored = await shared.earlier(caller.owner, terms)
    if stored is None:  # whose source may have gone since
        source = (await shared.get(video_id, caller.owner)).job
        if source.status is not JobStatus.SUCCEEDED:
            raise InvalidRequest("Only a completed video can be remixed; this one is not", "video_id")
        if source.request.model not in shared.catalogue.models:
            raise UnknownModel(source.request.model, served(shared.catalogue))
        stored = await shared.submit(
            remixed(source.request, prompt),
            dialect="openai",
            caller=caller,
            vendor={"remixed_from": source.id, **{name: source.vendor[name] for name in _named(source)}},
            pictures=await _pictures_of(shared, source.request),
            terms=terms,
        )
    return _answer(shared, stored)


def remixed(request: VideoRequest, prompt: str) -> VideoRequest:
    """Return the request of a finished video with one new prompt for its whole length, and this dialect's files."""
    return replace(request, prompts=(PromptSpan(prompt, request.num_frames),), outputs=outputs(request.fps))


def _named(job: VideoJob) -> list[str]:
    """Return ["model"] where the client of this dialect has named one, which is then echoed."""
    return ["model"] if job.dialect == "openai" and "model" in job.vendor else []


async def _read(request: Request, shared: Services) -> tuple[Form, bytes]:
    """Return the fields and files of a body, and bytes that are equal for equal requests.

    A form is one only where the header says so, since its boundary stands there; anything else is read as JSON.
    """
    body = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    if not is_form(request):
        return Form(fields=await parse_object(body)), body
    form = await parse_form(request, body)
    return form, form.canonical()


async def _pictures(shared: Services, file: bytes | None, reference: ImageReference | None) -> tuple[Picture, ...]:
    """Return the picture that a request brings, or ()."""
    if file is not None:
        return (await shared.check_picture("input_reference", file),)
    if reference is None:
        return ()
    if reference.file_id is not None:
        raise NotServedYet(
            "input_reference.file_id: this server has no Files API; send the picture as a file, or its link or data "
            "URL as input_reference.image_url",
            "input_reference.file_id",
        )
    if reference.image_url is None:
        raise InvalidRequest("input_reference must be a file, or an object with an image_url", "input_reference")
    return (await shared.fetch_picture("input_reference.image_url", reference.image_url),)


async def _pictures_of(shared: Services, request: VideoRequest) -> tuple[Picture, ...]:
    """Return the pictures of a finished video again, so that they are kept as long as the new one."""
    try:
        contents = {image.key: await shared.read(image.key) for image in request.images}
    except StorageAway:
        raise
    except StorageFailed:
        raise InvalidRequest(
            "The picture that this video began from is not kept any more; create a new video"
        ) from None
    return tuple([await shared.check_picture("input_reference", content) for content in contents.values()])


def _stored_key(job: VideoJob, variant: str) -> str:
    """Return the key in the storage of a variant.

    Raises:
        NoContent: the video is not ready, or it never had such a file.
    """
    if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        raise NoContent("This video failed; it has no content.")
    if job.status is not JobStatus.SUCCEEDED:
        raise NoContent("Video is not ready yet, use GET /v1/videos/{video_id} to check status.")
    by_format = {output.format: output.key for output in job.outputs}
    found = by_format.get(VARIANTS[variant])
    if found is None:
        made = ", ".join(by_format)
        raise NoContent(f"This video has no {variant}: it was made through another API, as {made}.")
    return found


def _poll_after_ms(eta_s: float | None) -> int:
    wait_s = 1.0 if eta_s is None else min(max(eta_s / 10, _LEAST_POLL_S), _MOST_POLL_S)
    return round(wait_s * 1000)


def _answer(shared: Services, stored: StoredJob) -> Response:
    return JSONResponse(to_wire(stored, shared.catalogue, shared.settings.retention_s))


def _settings(request: Request) -> OpenAISettings:
    # Any: checked at start against this very model.
    found: Any = request.app.state.dialect_settings["openai"]
    assert isinstance(found, OpenAISettings)  # noqa: S101
    return found

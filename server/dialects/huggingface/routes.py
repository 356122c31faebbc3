"""The routes that make a video: by model, or by task and model, as clients of different age build their paths."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from polyreel.entries import ServedModel
from polyreel.errors import InvalidRequest, UnknownRoute
from polyreel.request import ImageCondition
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects import answer_as
from server.dialects.huggingface.errors import ErrorBody
from server.dialects.huggingface.inputs import is_json, is_picture_file, is_picture_text
from server.dialects.huggingface.request import SCALE_UP_TIMEOUT, Body, from_wire
from server.dialects.huggingface.run import Asked, run
from server.openapi import documents
from server.pictures import MAX_BODY_BYTES, Picture
from server.services import Services, services
from server.submission import read_terms
from server.synchronous import held_refusals

TEXT_TO_VIDEO, IMAGE_TO_VIDEO = "text-to-video", "image-to-video"

router = APIRouter()


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    """Return an OpenAPI parameter object. Any: JSON."""
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


_FILE = {"type": "string", "format": "binary"}

_GENERATES = documents(
    body=Body,
    other_bodies=dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _FILE),
    answer_media="video/mp4",
    other_answers={"application/json": {"type": "object", "description": "where `inputs` are an object: as `POST /`"}},
    errors=ErrorBody,
    parameters=(
        _header("x-use-cache", {"type": "boolean", "default": True}, "false: a new run"),
        _header("x-wait-for-model", {"type": "boolean"}, "true: be held while the model loads, instead of a 503"),
        _header(SCALE_UP_TIMEOUT, {"type": "number", "minimum": 0}, "be held for so many seconds, 290 at most"),
    ),
)


@router.post("/models/{rest:path}", **_GENERATES)
@router.post("/hf-inference/models/{rest:path}", **_GENERATES)
async def by_model(request: Request, rest: str) -> Response:
    """`/models/{model}`, or `/models/{model}/pipeline/{task}` as newer clients build it."""
    name, _, task = rest.strip("/").partition("/pipeline/")
    return await _answer(request, name, task)


@router.post("/pipeline/{task}/{name:path}", **_GENERATES)
@router.post("/hf-inference/pipeline/{task}/{name:path}", **_GENERATES)
async def by_task(request: Request, task: str, name: str) -> Response:
    """`/pipeline/{task}/{model}`, as older clients build it."""
    return await _answer(request, name.strip("/"), task)


async def _answer(request: Request, name: str, task: str) -> Response:
    """Make the video and answer with its bytes.

    Args:
        name: of the model, as the client calls it.
        task: "" where the path names none.
    """
    shared, came_at = services(request), time.monotonic()
    caller = await shared.caller(bearer(request), "submit")
    model = shared.catalogue.resolve("huggingface", name)
    if task not in ("", TEXT_TO_VIDEO, IMAGE_TO_VIDEO):
        raise UnknownRoute(
            f"Model {name} does not serve the task {task[:60]}; it serves {TEXT_TO_VIDEO} and {IMAGE_TO_VIDEO}."
        )
    is_picture = task == IMAGE_TO_VIDEO or _takes_pictures_alone(shared.catalogue[model])
    body = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    picture: str | bytes | None = None
    if not is_json(body) and (is_picture or is_picture_file(body, request.headers.get("content-type", ""))):
        wire, picture = Body(), body
    else:
        value = await parse_object(body, strict=False)  # shells put `base64 FILE` into texts, in lines
        if isinstance(value.get("inputs"), dict):
            return await answer_as("universal", request, caller, body, value, model)
        wire = validate(Body, value)
        if wire.inputs is not None and (is_picture or is_picture_text(wire.inputs)):
            picture = wire.inputs
    video = from_wire(wire, model, shared.catalogue, has_picture=picture is not None)
    terms = await read_terms(request, "huggingface", body)
    pictures: tuple[Picture, ...] = ()
    async with held_refusals():
        earlier = await shared.earlier(caller.owner, terms)
        if earlier is not None:  # a link that is dead by now does not undo what was acknowledged
            video = replace(video, images=earlier.job.request.images)
        elif picture is not None:
            pictures = (await _read_picture(shared, picture),)
            video = replace(video, images=tuple(ImageCondition(picture.key) for picture in pictures))
        return await run(request, caller, Asked(name, wire, video, pictures, terms, came_at))


def _takes_pictures_alone(entry: ServedModel) -> bool:
    return "i2v" in entry.tasks and "t2v" not in entry.tasks


async def _read_picture(shared: Services, picture: str | bytes) -> Picture:
    """Return a picture that came as a text or as the body itself.

    Raises:
        InvalidRequest: it is none that can be used.
    """
    if isinstance(picture, bytes):
        return await shared.check_picture("inputs", picture)
    if not picture.strip():
        raise InvalidRequest("inputs must not be blank", "inputs")
    return await shared.fetch_picture("inputs", picture)

"""The routes: `POST /`, where an Inference Endpoint listens, and the toolkit's own `/predict`."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from polyreel.errors import InvalidRequest
from polyreel.keys import Caller
from polyreel.request import ImageCondition
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects.universal.answer import Answer, links, open_files, pieces, to_wire
from server.dialects.universal.errors import ErrorBody
from server.dialects.universal.request import WORDS, UniversalBody, from_wire
from server.dialects.universal.settings import endpoint_model, settings_of
from server.openapi import documents
from server.pictures import MAX_BODY_BYTES, Picture
from server.services import services
from server.submission import read_terms
from server.synchronous import asked_wait_s, held_refusals, wait_for_video

#: Seconds for which a client of an Inference Endpoint asks to be held while that starts.
_SCALE_UP_TIMEOUT = "x-scale-up-timeout"

router = APIRouter()

_GENERATES = documents(
    body=UniversalBody,
    answer=Answer,
    errors=ErrorBody,
    parameters=(
        {
            "name": _SCALE_UP_TIMEOUT,
            "in": "header",
            "required": False,
            "schema": {"type": "number", "minimum": 0},
            "description": "be held for so many seconds, 290 at most",
        },
    ),
)


@router.post("/", **_GENERATES)
@router.post("/predict", **_GENERATES)
async def generate(request: Request) -> Response:
    """Make the video in every format asked for and answer with the files, or with links to them."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    body = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    # Not strict: the card's own example puts `base64 FILE` into a text, and on Linux that has lines.
    value = await parse_object(body, strict=False)
    return await answer(request, caller, body, value, endpoint_model(shared.catalogue, settings_of(request)))


async def answer(request: Request, caller: Caller, body: bytes, value: dict[str, Any], model: str) -> Response:
    """Answer one request, also one that came to a path that names its model.

    Args:
        body: as it came.
        value: the same, parsed. Any: JSON.
        model: catalogue name.
    """
    shared, settings, came_at = services(request), settings_of(request), time.monotonic()
    wire = _read(value)
    terms = await read_terms(request, "universal", body)
    wait_s = asked_wait_s(request, _SCALE_UP_TIMEOUT, settings.wait_s)
    video = from_wire(wire, model, shared.catalogue)
    pictures: tuple[Picture, ...] = ()
    async with held_refusals():
        # A repetition is answered with its job, also when the link to its picture leads nowhere by now.
        if wire.inputs.image is not None and not await shared.earlier(caller.owner, terms):
            pictures = (await shared.fetch_picture("inputs.image", wire.inputs.image),)
            video = replace(video, images=tuple(ImageCondition(picture.key) for picture in pictures))
        stored = await shared.submit(
            video, dialect="universal", caller=caller, pictures=pictures, terms=terms, words=WORDS
        )
        if terms.idempotency_key:  # whoever sends one may come back for its job
            await shared.waiters.promise(stored.job.id)
        stored = await wait_for_video(
            shared,
            request,
            stored,
            caller.owner,
            wait_s,
            since=came_at,
            cancel_when_client_leaves=settings.cancel_when_client_leaves and not terms.idempotency_key,
        )
    headers = {"x-request-id": stored.job.id}
    if wire.inputs.return_base64 is False:
        return JSONResponse(to_wire(stored, links(shared, shared.base_url(request), stored.job)), headers=headers)
    files = await run_in_threadpool(open_files, shared, stored.job)
    return StreamingResponse(pieces(stored, files), media_type="application/json", headers=headers)


@router.get("/", **documents(answer={"const": "Ok"}, answer_media="text/plain", keys=()))
@router.head("/", include_in_schema=False)
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

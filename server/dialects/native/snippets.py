"""`POST /snippets`: a submit's body as a call of every dialect, to copy. Nothing is made, fetched or stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from polyreel.catalogue import OWN
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects import Dialect, dialects
from server.dialects.native.fields import NewJob
from server.dialects.native.problems import MEDIA, Problem
from server.dialects.native.video import Wanted, from_wire, wanted_pictures, with_pictures
from server.openapi import documents
from server.pictures import MAX_BODY_BYTES, is_link
from server.services import services
from server.snippets import Blank, Wish, curl_of, filled, python_of, snippet_of

_Exact = ConfigDict(extra="forbid")

#: Names of the files that calls read in the place of pictures that were sent as base64, by field.
_FILES = {"image": "image.png", "last_image": "last_image.png"}

router = APIRouter()


class SnippetAnswer(BaseModel):
    """A call of one dialect; in `headers` and `body`, `{key}` and `{image.png}` are to be filled in.

    Where the dialect has no words for the request, `reason` names the field, and the rest is empty.
    """

    model_config = _Exact
    dialect: str
    title: str
    reason: str
    differences: list[str]
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    curl: str
    python: str


class SnippetsAnswer(BaseModel):
    """The call of each dialect, our own first."""

    model_config = _Exact
    snippets: list[SnippetAnswer]


@router.post("/snippets", **documents(body=NewJob, answer=SnippetsAnswer, errors=Problem, error_media=MEDIA))
async def list_snippets(request: Request) -> Response:
    """Tell how each dialect says a submit. A submit that would be refused is refused here too."""
    shared = services(request)
    await shared.caller(bearer(request), "read")
    body = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    wire = validate(NewJob, await parse_object(body))
    video = from_wire(wire, shared.catalogue)
    wanted = wanted_pictures(wire, video.num_frames)
    video = with_pictures(video, wanted, [""] * len(wanted))
    shared.catalogue.admit(video, OWN, {"images": "keyframes"})
    wish = Wish(
        video,
        tuple(_picture(picture) for picture in wanted),
        is_seeded=wire.seed not in (None, -1),
        webhook=wire.webhook,
        keep_s=wire.keep_s,
    )
    base_url = shared.base_url(request)
    own_first = sorted(dialects().values(), key=lambda dialect: (dialect.name != OWN, dialect.name))
    answers = [_answer(dialect, wish, request, base_url) for dialect in own_first if dialect.snippet]
    return JSONResponse(SnippetsAnswer(snippets=answers).model_dump(mode="json"))


def _picture(wanted: Wanted) -> str | Blank:
    if is_link(wanted.text):
        return wanted.text
    return Blank(_FILES.get(wanted.field) or f"frame-{wanted.frame_index}.png")


def _answer(dialect: Dialect, wish: Wish, request: Request, base_url: str) -> SnippetAnswer:
    assert dialect.snippet is not None  # noqa: S101 whoever calls has looked
    settings, title = request.app.state.dialect_settings[dialect.name], dialect.title or dialect.name
    found = snippet_of(dialect.snippet, title, wish, services(request).catalogue, settings)
    call = found.call
    return SnippetAnswer(
        dialect=dialect.name,
        title=title,
        reason=found.reason,
        differences=list(found.differences),
        method=call.method if call else "",
        path=call.path if call else "",
        headers=filled(call.headers) if call else {},
        body=filled(call.body) if call else {},
        curl=curl_of(call, base_url) if call else "",
        python=python_of(call, base_url) if call else "",
    )

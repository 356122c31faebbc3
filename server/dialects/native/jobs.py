"""Jobs of every dialect: made here, and listed, read, cancelled and deleted by their owner."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from polyreel.errors import InvalidRequest
from polyreel.job import JobStatus
from polyreel.previews import MEDIA_TYPE, parse_preview, preview_key
from polyreel.records import StoredJob
from server.body import parse_object, read_body, validate
from server.credentials import bearer
from server.dialects import Link
from server.dialects.native.answer import JobAnswer, to_wire
from server.dialects.native.fields import NewJob
from server.dialects.native.problems import MEDIA, NoPreview, Problem
from server.dialects.native.video import check_keep, from_wire, wanted_pictures, with_pictures
from server.listing import jobs_of
from server.openapi import documents
from server.pictures import MAX_BODY_BYTES
from server.removal import remove
from server.services import Services, services
from server.submission import read_terms
from server.wire import check_range

#: Of a listing: jobs on a page unless the client says otherwise, and at most.
_PAGE, _LARGEST_PAGE = 20, 100

_STATUSES = tuple(status.value for status in JobStatus)

router = APIRouter()


class JobsAnswer(BaseModel):
    """A page of jobs; `next` is what `after` is to be for the page that follows, null on the last."""

    model_config = ConfigDict(extra="forbid")
    jobs: list[JobAnswer]
    has_more: bool
    next: str | None


class RemovalAnswer(BaseModel):
    """What became of a job: deleted, or cancelled and still there."""

    model_config = ConfigDict(extra="forbid")
    id: str
    number: int
    deleted: bool
    status: JobStatus


def _query(name: str, about: str, **schema: Any) -> dict[str, Any]:
    """Return an OpenAPI parameter object. Any: JSON schema."""
    return {"name": name, "in": "query", "required": False, "description": about, "schema": schema}


_LISTING = (
    _query("limit", "jobs on a page", type="integer", minimum=1, maximum=_LARGEST_PAGE, default=_PAGE),
    _query("after", "id or number of the job before the page", type="string"),
    _query("order", "newest first, or oldest first", type="string", enum=["desc", "asc"], default="desc"),
    _query("status", "one or several, joined by commas", type="string"),
    _query("model", "any name of a model", type="string"),
)


@router.post("/jobs", **documents(body=NewJob, answer=JobAnswer, errors=Problem, error_media=MEDIA, status=202))
async def submit_job(request: Request) -> Response:
    """Make a video; answers at once with the job, which `Location` leads to."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    body = await read_body(request, max(shared.settings.max_body_bytes, MAX_BODY_BYTES))
    wire = validate(NewJob, await parse_object(body))
    terms = await read_terms(request, "native", body)
    video = from_wire(wire, shared.catalogue)
    keep_s = check_keep(wire.keep_s, shared.settings.retention_s)
    webhook = "" if wire.webhook is None else shared.check_url("webhook", wire.webhook)
    wanted = wanted_pictures(wire, video.num_frames)
    stored = await shared.earlier(caller.owner, terms)
    if stored is None:  # a link that is dead by now does not undo what was acknowledged
        pictures = await shared.fetch_pictures([(picture.field, picture.text) for picture in wanted])
        stored = await shared.submit(
            with_pictures(video, wanted, [picture.key for picture in pictures]),
            dialect="native",
            caller=caller,
            pictures=pictures,
            terms=terms,
            base_url=shared.base_url(request),
            webhook=webhook,
            keep_s=keep_s,
            words={"images": "keyframes"},
        )
    location = f"{shared.base_url(request)}/polyreel/v1/jobs/{stored.job.id}"
    return JSONResponse(await answer_of(shared, request, stored), 202, {"Location": location})


@router.get("/jobs", **documents(answer=JobsAnswer, errors=Problem, error_media=MEDIA, parameters=_LISTING))
async def list_jobs(request: Request) -> Response:
    """List this owner's jobs of all dialects, newest first."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    query = request.query_params
    limit = _limit(query.get("limit"))
    order = _word("order", query.get("order") or "desc", ("desc", "asc"))
    statuses = [_word("status", word.strip(), _STATUSES) for word in query.get("status", "").split(",") if word.strip()]
    model = shared.catalogue.resolve_any(query["model"]) if query.get("model") else ""
    page = await jobs_of(
        shared,
        caller.owner,
        limit,
        query.get("after", ""),
        order == "asc",
        statuses=frozenset(statuses),
        model=model,
    )
    jobs = [await answer_of(shared, request, stored) for stored in page.jobs]
    following = None if page.next is None else str(page.next)
    return JSONResponse({"jobs": jobs, "has_more": page.has_more, "next": following})


@router.get("/jobs/{job_id}", **documents(answer=JobAnswer, errors=Problem, error_media=MEDIA))
async def get_job(request: Request, job_id: str) -> Response:
    """Answer how a job is getting on."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    return JSONResponse(await answer_of(shared, request, await shared.get(job_id, caller.owner)))


@router.post("/jobs/{job_id}/cancel", **documents(answer=JobAnswer, errors=Problem, error_media=MEDIA))
async def cancel_job(request: Request, job_id: str) -> Response:
    """End a job that waits or runs; again is no error, too late is 409."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    return JSONResponse(await answer_of(shared, request, await shared.cancel(job_id, caller.owner)))


@router.delete("/jobs/{job_id}", **documents(answer=RemovalAnswer, errors=Problem, error_media=MEDIA))
async def delete_job(request: Request, job_id: str) -> Response:
    """Cancel a job that is unfinished; delete one that has ended, with its prompt and its files."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "submit")
    removal = await remove(shared, job_id, caller.owner)
    stored = removal.stored
    return JSONResponse(
        {
            "id": stored.job.id,
            "number": stored.number,
            "deleted": removal.is_deleted,
            "status": stored.job.status.value,
        }
    )


@router.get("/jobs/{job_id}/preview", **documents(answer_media=MEDIA_TYPE, errors=Problem, error_media=MEDIA))
async def get_preview(request: Request, job_id: str) -> Response:
    """Show what an unfinished video looks like; 404 while its worker has sent no picture."""
    shared = services(request)
    caller = await shared.caller(bearer(request), "read")
    stored = await shared.get(job_id, caller.owner)
    async with shared.gate.asking():
        preview = parse_preview(await shared.reader.get(preview_key(stored.job.id)))
    if preview is None:
        raise NoPreview
    return Response(preview.jpeg, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


async def answer_of(shared: Services, request: Request, stored: StoredJob) -> dict[str, Any]:
    """Return a job as it is told to its owner. Any: JSON.

    Raises:
        QueueUnavailable: where it stands is not known, because Redis does not answer.
    """
    base_url, retention_s = shared.base_url(request), shared.settings.retention_s

    def link(key: str, expires_at: float) -> str:
        return shared.link(base_url, key, expires_at)

    return to_wire(stored, links_of(stored, link, retention_s), await shared.estimate(stored), retention_s)


def links_of(stored: StoredJob, link: Link, retention_s: float) -> list[str]:
    """Return links to a job's files, good as long as the job is kept."""
    job = stored.job
    return [link(key, job.kept_until(retention_s)) for key, _ in zip(job.output_keys, job.outputs, strict=False)]


def _limit(text: str | None) -> int:
    if not text:
        return _PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise InvalidRequest(f"limit must be an integer, got {text[:40]!r}", "limit")
    check_range("limit", int(text), 1, _LARGEST_PAGE)
    return int(text)


def _word(field: str, word: str, known: tuple[str, ...]) -> str:
    if word not in known:
        raise InvalidRequest(f"{field} must be one of {', '.join(known)}, got {word[:40]!r}", field)
    return word

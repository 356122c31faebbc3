"""`GET /files/{key}`: serves the file of a job to whoever holds its signed link. HEAD and Range work as players expect.

A link names the job's file; which attempt made it, the record says (`server.published`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from polyreel.errors import QueueUnavailable, StorageAway, StorageFailed
from polyreel.formats import media_type_of
from polyreel.storage import Storage
from polyreel.storage.local import LocalStorage
from server.openapi import documents
from server.services import services
from server.storage_watch import for_clients

router = APIRouter()

_CHUNK = 256 * 1024


class NoFile(BaseModel):
    """Why there is no file."""

    error: str


_LINK = tuple(
    {"name": name, "in": "query", "required": True, "schema": {"type": "string"}, "description": about}
    for name, about in (("exp", "seconds since the epoch until which the link is good"), ("sig", "signature"))
)


@router.api_route(
    "/files/{key:path}",
    methods=["GET", "HEAD"],
    **documents(
        answer_media="*/*",
        errors=NoFile,
        keys=(),
        parameters=_LINK,
        also={206: "A range of the file", 304: "The file is the one that the client has", 307: "Where the file lies"},
    ),
)
async def get_file(request: Request, key: str) -> Response:
    """Serve a file, or lead to where the storage does.

    403 for a link that is altered or has expired, 404 while the file does not exist (yet), 503 when the storage is
    away, or Redis is and this process has not served the file before.
    """
    shared, query = services(request), request.query_params
    exp, sig = query.get("exp", ""), query.get("sig", "")
    if not shared.signer.is_valid(key, exp, sig):
        return JSONResponse({"error": "This link is not valid, or has expired."}, status_code=403)
    try:
        stored_key = await shared.published.storage_key(key, shared.record)
        return await run_in_threadpool(file_response, request, shared.storage, stored_key, float(exp))
    except (QueueUnavailable, StorageAway) as err:
        return JSONResponse({"error": err.message}, status_code=503, headers={"Retry-After": "5"})
    except StorageFailed:
        return JSONResponse({"error": "The file is not there yet, or not any more."}, status_code=404)


def file_response(request: Request, storage: Storage, key: str, expires_at: float) -> Response:
    """Return the answer with a stored file, or one that leads to where the storage serves it; blocks.

    Args:
        key: in the storage.
        expires_at: until when a link to the storage is good, seconds since the epoch.

    Raises:
        StorageFailed: no such file; where the storage serves it by itself, it says so there.
        StorageAway: nobody can say.
    """
    with for_clients():
        # HEAD is answered here: a bucket signs its links for GET alone. For GET the bucket is asked nothing.
        elsewhere = None if request.method == "HEAD" else storage.url(key, expires_at)
        if elsewhere is not None:
            return RedirectResponse(elsewhere, 307, headers={"Cache-Control": "no-store"})
        headers = {
            "Content-Disposition": "inline",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, max-age=3600",
        }
        size = storage.size(key)
        if size is None:
            raise StorageFailed("No such file.")
        if isinstance(storage, LocalStorage):
            return _local(request, storage.path(key), media_type_of(key), headers)
        headers["Content-Length"] = str(size)
        content = iter(()) if request.method == "HEAD" else _chunks(storage.open(key))
        return StreamingResponse(content, media_type=media_type_of(key), headers=headers)


def _local(request: Request, path: Path, media_type: str, headers: dict[str, str]) -> Response:
    """Return a file of this machine, whole or in ranges, or that the client's copy is still good (RFC 9110, 13.1)."""
    try:
        found = FileResponse(path, media_type=media_type, headers=headers, stat_result=path.stat())
    except OSError:  # removed since it was looked for
        raise StorageFailed("No such file.") from None
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if "*" in known or found.headers["ETag"] in known:
        kept = {name: found.headers[name] for name in ("ETag", "Last-Modified", "Cache-Control")}
        return Response(status_code=304, headers=kept)
    return found


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk

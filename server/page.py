"""The web page at `/`, the API reference at `/docs`, and the files of both under `/static`.

Everything is served from memory, works without any other host, and runs no inline script: the content security policy
would refuse it. `GET /` is the universal dialect's probe too: only who asks for HTML is given the page.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from polyreel.errors import UnknownRoute
from polyreel.settings import Settings

#: Where the files lie; what is in the folder is served, and nothing else.
FOLDER = Path(__file__).parent / "static"

#: On every answer of this module.
_HEADERS = {
    # Names carry no version, and modules import each other: browsers ask each time, and are told 304.
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "Referrer-Policy": "no-referrer",  # links are signed in their queries
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that know no frame-ancestors
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the page, as it is served."""

    content: bytes
    media_type: str
    etag: str


@cache
def static_files() -> dict[str, StaticFile]:
    """Return every file by its path below `/static/`, in POSIX form."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            # The registry of the machine may call scripts otherwise, and nosniff takes it at its word.
            media_type = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0]
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(FOLDER).as_posix()] = StaticFile(content, media_type or "text/plain", etag)
    return found


def policy(settings: Settings) -> str:
    """Return the content security policy of the page: this server, and where a bucket's links lead to."""
    media = " ".join(["'self'", *bucket_origins(settings)])
    return "; ".join(
        [
            "default-src 'self'",
            "script-src 'self'",
            "style-src 'self'",
            f"img-src {media} blob: data:",  # previews come in events, as data URLs
            f"media-src {media}",
            "connect-src 'self'",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def bucket_origins(settings: Settings) -> list[str]:
    """Return the origins to which links to results are redirected, [] where this server sends them itself."""
    if not (settings.storage or "").startswith("s3://"):
        return []
    endpoint = settings.s3.public_endpoint or settings.s3.endpoint
    if endpoint is None:  # AWS: bucket.s3.region.amazonaws.com, or s3.region.amazonaws.com/bucket
        return ["https://*.amazonaws.com"]
    url = urlsplit(endpoint)
    origin = f"{url.scheme}://{url.netloc}"
    return [origin] if settings.s3.path_style else [origin, f"{url.scheme}://*.{url.netloc}"]


class _ForBrowsers(Route):
    """A route for requests that ask for HTML; all others pass on to the next one with the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as every route does, where the client takes HTML and is asked for nothing else."""
        match, child = super().matches(scope)
        accept = next((value for name, value in scope.get("headers", ()) if name == b"accept"), b"")
        if match is not Match.FULL or b"text/html" not in accept.lower():
            return Match.NONE, {}
        return match, child


def add_page(app: FastAPI, settings: Settings) -> None:
    """Add the routes; before the dialects, of which one has `GET /` too."""
    files, csp = static_files(), policy(settings)  # read now, and not by the first request

    def answer(request: Request, path: str) -> Response:
        file = files.get(path)
        if file is None:
            raise UnknownRoute(f"There is nothing at {request.method} {request.url.path[:200]}.")
        headers = {**_HEADERS, "Content-Security-Policy": csp, "ETag": file.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
        if "*" in known or file.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    async def page(request: Request) -> Response:
        # A cache between must not answer a probe with the page.
        response = answer(request, "index.html")
        response.headers["Vary"] = "Accept"
        return response

    async def reference(request: Request) -> Response:
        return answer(request, "docs.html")

    async def static(request: Request) -> Response:
        return answer(request, request.path_params["path"])

    app.router.routes.append(_ForBrowsers("/", page, methods=["GET"], include_in_schema=False))
    app.add_route("/docs", reference, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_route("/static/{path:path}", static, methods=["GET", "HEAD"], include_in_schema=False)

"""A Hugging Face Hub of our own, on loopback: as much of it as `huggingface_hub` and `polyreel pull` talk to.

The real one is not ours and not there in a test. What is imitated: the model and tree API with git and LFS hashes,
pages of a listing, `resolve` with its redirect to a storage host on another origin, ranges, and the error codes for
what is gated, private or missing. Every request is kept, with its range and whether it carried a token.

Source: https://huggingface.co/docs/hub/api; answers of huggingface.co as huggingface_hub 2.4 reads them.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

#: Files with these endings are in LFS on the hub.
_LARGE = (".safetensors", ".bin", ".ckpt", ".model")

_PAGE = 7  # files per page of a listing; 1,000 on the real one


@dataclass
class Repository:
    """One repository.

    Args:
        files: content by path, the same at every commit but for `changed`.
        commits: by branch or tag.
        changed: content that differs, by commit and path.
        gated: only `Hub.token` may read its files; everybody may list them.
        private: only `Hub.token` may see it.
        announced: sizes to claim instead of the real ones, by path.
        damaged: paths whose bytes are not the ones announced.
        cut: bytes after which an answer breaks off, once, by path.
        held: bytes after which an answer waits for ever, by path.
        ignores_ranges: every answer is the whole file.
    """

    files: dict[str, bytes]
    commits: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    changed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    announced: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    ignores_ranges: bool = False

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit that a revision means and its files, None when there is no such revision."""
        commit = self.commits.get(revision, revision)
        if commit not in self.commits.values():
            return None
        return commit, {**self.files, **self.changed.get(commit, {})}


@dataclass(frozen=True)
class Asked:
    """One request that the hub got."""

    host: str  # "hub" or "storage"
    method: str
    path: str  # of the file for a download, of the URL for the rest
    range: str
    has_token: bool


@dataclass
class Hub:
    """The hub and its storage host."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_the-right-token"
    asked: list[Asked] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)  # bytes by path
    down: bool = False
    url: str = ""
    storage_url: str = ""

    def downloads(self) -> list[str]:
        """Return the paths of the files whose bytes were asked for, in order."""
        return [asked.path for asked in self.asked if asked.host == "storage" or "/resolve/" in asked.path]

    def app(self) -> Starlette:
        """Return the hub's own API."""
        return Starlette(
            routes=[
                Route("/api/models/{owner}/{name}", self._info),
                Route("/api/models/{owner}/{name}/revision/{revision}", self._info),
                Route("/api/models/{owner}/{name}/tree/{revision}", self._tree),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self._resolve),
            ]
        )

    def storage(self) -> Starlette:
        """Return the host on which large files are kept."""
        return Starlette(routes=[Route("/{owner}/{name}/{commit}/{path:path}", self._stored)])

    def _note(self, host: str, request: Request, path: str) -> None:
        headers = request.headers
        self.asked.append(Asked(host, request.method, path, headers.get("range", ""), "authorization" in headers))

    def _find(self, request: Request, *, content: bool) -> tuple[Repository, str, dict[str, bytes]] | Response:
        if self.down:
            return Response(status_code=503)
        bearer = request.headers.get("authorization", "")
        if bearer and bearer != f"Bearer {self.token}":
            message = "Invalid credentials in Authorization header"
            return Response(status_code=401, headers={"X-Error-Message": message})
        repository = self.repositories.get("{owner}/{name}".format(**request.path_params))
        if repository is None or (repository.private and not bearer):
            return Response(status_code=404 if bearer else 401, headers={"X-Error-Code": "RepoNotFound"})
        if content and repository.gated and not bearer:
            return Response(status_code=401, headers={"X-Error-Code": "GatedRepo"})
        found = repository.at(request.path_params.get("revision", "main"))
        if found is None:
            return Response(status_code=404, headers={"X-Error-Code": "RevisionNotFound"})
        return repository, *found

    async def _info(self, request: Request) -> Response:
        self._note("hub", request, request.url.path)
        found = self._find(request, content=False)
        if isinstance(found, Response):
            return found
        _, commit, files = found
        name = "{owner}/{name}".format(**request.path_params)
        return JSONResponse({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    async def _tree(self, request: Request) -> Response:
        self._note("hub", request, request.url.path)
        found = self._find(request, content=False)
        if isinstance(found, Response):
            return found
        repository, _, files = found
        first = int(request.query_params.get("cursor", 0))
        page = list(files.items())[first : first + _PAGE]
        more = f'<{request.url.include_query_params(cursor=first + _PAGE)}>; rel="next"'
        headers = {"Link": more} if first + _PAGE < len(files) else {}
        return JSONResponse([_listed(repository, path, content) for path, content in page], headers=headers)

    async def _resolve(self, request: Request) -> Response:
        path = request.path_params["path"]
        self._note("hub", request, request.url.path)
        found = self._find(request, content=True)
        if isinstance(found, Response):
            return found
        repository, commit, files = found
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            return Response(status_code=404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        entry = _listed(repository, path, files[path])
        if "lfs" not in entry:
            return self._bytes(request, repository, path, files[path], {**headers, "ETag": f'"{entry["oid"]}"'})
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(entry["size"])}
        headers["Location"] = "{}/{owner}/{name}/{}/{}".format(
            self.storage_url, commit, path, owner=request.path_params["owner"], name=request.path_params["name"]
        )
        return Response(status_code=302, headers=headers)

    async def _stored(self, request: Request) -> Response:
        path = request.path_params["path"]
        self._note("storage", request, path)
        repository = self.repositories["{owner}/{name}".format(**request.path_params)]
        found = repository.at(request.path_params["commit"])
        assert found is not None
        return self._bytes(request, repository, path, found[1][path], {})

    def _bytes(
        self, request: Request, repository: Repository, path: str, content: bytes, headers: dict[str, str]
    ) -> Response:
        if path in repository.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        wanted = "" if repository.ignores_ranges else request.headers.get("range", "")
        first = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        rest = content[first:]
        headers |= {"Content-Length": str(len(rest))}
        if wanted:
            headers |= {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        return StreamingResponse(self._stream(repository, path, rest), 206 if wanted else 200, headers)

    async def _stream(self, repository: Repository, path: str, rest: bytes) -> AsyncIterator[bytes]:
        import anyio

        held, cut = repository.held.get(path), repository.cut.pop(path, None)
        end = min(len(rest), *(stop for stop in (held, cut, len(rest)) if stop is not None))
        for start in range(0, end, 4096):
            piece = rest[start : min(start + 4096, end)]
            self.served[path] = self.served.get(path, 0) + len(piece)
            yield piece
        while path in repository.held:  # noqa: ASYNC110 (a test in another thread takes it away)
            await anyio.sleep(0.05)
        if end < len(rest):
            raise ConnectionError("cut")  # uvicorn closes the connection in the middle of the body


def _listed(repository: Repository, path: str, content: bytes) -> dict[str, Any]:  # Any: JSON
    """Return a file as the tree API lists it."""
    length = repository.announced.get(path, len(content))
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": length,
        "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if path.endswith(_LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": length, "pointerSize": 134}
    return entry


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty hub on two ports of loopback until the block ends."""
    hub = Hub()
    with _served(hub.app()) as hub.url, _served(hub.storage()) as hub.storage_url:
        yield hub
        for repository in hub.repositories.values():
            repository.held.clear()


@contextmanager
def _served(app: Starlette) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()

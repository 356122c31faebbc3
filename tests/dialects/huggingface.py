"""Calls of the Hugging Face dialect, and a worker beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx2

from polyreel.job import VideoJob
from tests.conftest import Api

LTX, WAN = "/models/Lightricks/LTX-Video", "/models/Wan-AI/Wan2.1-T2V-1.3B"


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(
    api: Api, *, path: str = LTX, headers: dict[str, str] | None = None, content: bytes = b"", **body: Any
) -> httpx2.Response:
    """Send JSON, or `content` as it is; nobody finishes its job."""
    sent: dict[str, Any] = {"content": content} if content else {"json": {"inputs": "a cat"} | body}
    with anyio.fail_after(20):
        return await api.http.post(path, headers=auth(api.key) | (headers or {}), **sent)


async def play(api: Api, end: Callable[[str], Any], jobs: int = 1) -> None:
    """End the next jobs as a worker would."""
    for _ in range(jobs):
        while not api.records.open_ids():  # noqa: ASYNC110 the job arrives in Redis, which sets no event
            await anyio.sleep(0.01)
        end(api.records.open_ids()[0])


async def generate(
    api: Api, video: bytes = b"mp4 bytes", submitted: list[VideoJob] | None = None, **request: Any
) -> httpx2.Response:
    """Send a request while a worker makes its video; `submitted` learns which job that was."""

    def end(job_id: str) -> None:
        if submitted is not None:
            submitted.append(api.newest().job)
        api.finish(job_id, video)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, api, end)
        answer = await ask(api, **request)
        tasks.cancel_scope.cancel()  # a refused request makes no job
    return answer


def beat(api: Api, *loaded: str, name: str = "test-worker", device: str = "cpu") -> None:
    """Say what a live worker says of itself."""
    api.leases.beat(name, {"device": device, "models": ["ltx-tiny"], "loaded": list(loaded), "unavailable": {}})

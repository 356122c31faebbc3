"""The answer: files in base64, or links to them, and how long everything took."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel

from polyreel.job import VideoJob
from polyreel.records import StoredJob
from server.services import Services
from server.storage_watch import for_clients

#: Read from a file at a time, bytes; a multiple of 3, so that the base64 of the pieces is the base64 of the whole.
_PIECE = 3 * 256 * 1024


class Diagnostics(BaseModel):
    """How the video was made.

    Args:
        timing_ms: milliseconds by stage: "queue", "load", "generate", "encode", "store" and "total".
    """

    timing_ms: dict[str, float]
    mode: Literal["t2v", "i2v"]


class Answer(BaseModel):
    """The whole answer, for the document; `pieces` writes it.

    Args:
        outputs: by key, "gif_base64" to the text of the file or "gif_url" to its link.
    """

    ok: Literal[True]
    outputs: dict[str, str]
    diagnostics: Diagnostics


def to_wire(stored: StoredJob, outputs: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer to a finished job. Any: JSON.

    Args:
        outputs: by key, "gif_base64" to the text of the file or "gif_url" to its link.
    """
    return {
        "ok": True,
        "outputs": dict(outputs),
        "diagnostics": {"timing_ms": _timing_ms(stored.job), "mode": "i2v" if stored.job.request.images else "t2v"},
    }


def _timing_ms(job: VideoJob) -> dict[str, float]:
    seconds = {
        "queue": job.started_at - job.created_at,
        **{stage: job.timings.get(stage, 0.0) for stage in ("load", "generate", "encode", "store")},
        "total": job.ended_at - job.created_at,
    }
    return {stage: round(max(0.0, value) * 1000, 1) for stage, value in seconds.items()}


def links(shared: Services, base_url: str, job: VideoJob) -> dict[str, str]:
    """Return a link to each file by key, good as long as its job is kept."""
    expires_at = job.created_at + shared.settings.retention_s
    return {
        f"{output.format}_url": shared.link(base_url, key, expires_at)
        for key, output in zip(job.output_keys, job.outputs, strict=True)
    }


def open_files(shared: Services, job: VideoJob) -> dict[str, BinaryIO]:
    """Open every file before the answer begins: after its first byte, an error could not be told any more."""
    with for_clients():
        return {f"{output.format}_base64": shared.storage.open(output.key) for output in job.outputs}


def pieces(stored: StoredJob, files: Mapping[str, BinaryIO]) -> Iterator[bytes]:
    """Yield the answer with the files in it, piece by piece: a zip of raw frames may be larger than the memory.

    Starlette runs a plain iterator in a thread, so the event loop does not wait for the encoding.
    """
    here = "the file's base64"  # nothing else in the answer is a text of anybody's choosing
    between = json.dumps(to_wire(stored, dict.fromkeys(files, here))).split(here)
    for before, file in zip(between, files.values(), strict=False):
        yield before.encode()
        with file:
            while piece := file.read(_PIECE):
                yield base64.b64encode(piece)
    yield between[-1].encode()

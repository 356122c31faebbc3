"""Golden files: `tests/golden/{dialect}/*.json`, one request of a vendor's page, client or option each.

name     what the row shows
source   where the request comes from
wire     the body, as it is sent
neutral  the `VideoRequest` that it means; a seed of null stands for a drawn one
answer   what the vendor's answer to the finished job holds (other keys may be there too)
error    instead of the last two: the message of the refusal

Files under `errors/` are whole calls and whole answers, see `Refusal`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyreel.job import JobStatus, Output, VideoJob
from polyreel.records import StoredJob
from polyreel.request import VideoRequest

_ROOT = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Row:
    """One golden file; Any: JSON."""

    name: str
    source: str
    wire: dict[str, Any]
    neutral: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        return self.name


def golden(dialect: str, *, refused: bool = False) -> list[Row]:
    """Return the rows of a dialect that are accepted, or those that are refused."""
    rows = [Row(**json.loads(file.read_text())) for file in sorted((_ROOT / dialect).glob("*.json"))]
    assert rows, f"no golden files for {dialect}"
    return [row for row in rows if bool(row.error) is refused]


@dataclass(frozen=True)
class Refusal:
    """One golden file of a documented error; Any: JSON.

    `{key}` stands for the API key in headers, `{job_id}` for the job's id in the answer.

    Args:
        given: what is so at the server, in words that the dialect's tests know; "" for nothing special.
        wire: `method`, `path`, `headers` (null leaves one out) and `body` (JSON) or `content` (text).
        status, headers: of the answer; other headers may be there too.
        answer: its whole body.
    """

    name: str
    source: str
    wire: dict[str, Any]
    status: int
    answer: dict[str, Any]
    given: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.name}"


def refusals(dialect: str) -> list[Refusal]:
    """Return a dialect's documented errors."""
    rows = [Refusal(**json.loads(file.read_text())) for file in sorted((_ROOT / dialect / "errors").glob("*.json"))]
    assert rows, f"no golden errors for {dialect}"
    return rows


def without_drawn_seed(request: VideoRequest, neutral: dict[str, Any]) -> VideoRequest:
    """Return `request` with a drawn seed put to None, where the row expects a drawn one."""
    if neutral["seed"] is not None:
        return request
    assert 0 <= request.seed < 2**32
    return replace(request, seed=None)  # type: ignore[arg-type]


def finished(request: VideoRequest, job_id: str, *, number: int = 147, took_s: float = 8.49) -> StoredJob:
    """Return the record of a succeeded job."""
    outputs = tuple(
        Output(f"out/{job_id}/{job_id}.{spec.format}", spec.format, "video/mp4", 1, 1, 1, 1, spec.fps, "0" * 64)
        for spec in request.outputs
    )
    job = VideoJob(
        id=job_id,
        dialect="any",
        owner="alice",
        request=request,
        output_keys=tuple(output.key for output in outputs),
        status=JobStatus.SUCCEEDED,
        progress=100,
        created_at=1_700_000_000.0,
        started_at=1_700_000_001.5,
        ended_at=1_700_000_001.5 + took_s,
        outputs=outputs,
    )
    return StoredJob(job, number, 1, False)

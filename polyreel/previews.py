"""Small pictures of videos in the making: written by a worker while it denoises, read by the API.

    polyreel:preview:{job id}  the newest one, JSON: {"step": n, "jpeg": base64}

A preview is as private as its job: whoever reads one has read the record of the job first, as its owner. It goes with
the end of the job (`finish` in lua/common.lua), and none is written of a job that has ended or belongs to another
worker by now.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

import redis

from polyreel.leases import Claim
from polyreel.scripts import arguments, script

#: How long a preview stays that no newer one replaces, seconds: a step of a large offloaded model takes minutes.
TTL_S = 600

#: What `Preview.jpeg` is.
MEDIA_TYPE = "image/jpeg"


@dataclass(frozen=True, slots=True)
class Preview:
    """One picture.

    Args:
        jpeg: a frame of the middle of the video, in the video's proportions, no side longer than 160 px, about 10 kB at
            most; sides may be as short as 16 px, so it is to be shown enlarged.
        step: denoising steps that were done, over all passes.
    """

    jpeg: bytes
    step: int


def preview_key(job_id: str) -> str:
    """Return the key of a job's preview; `parse_preview` reads what is there."""
    return f"polyreel:preview:{job_id}"


def parse_preview(text: object) -> Preview | None:
    """Read what `Previews` wrote; None for nothing, and for what cannot be read."""
    if not text:
        return None
    try:
        said = json.loads(str(text))
        return Preview(base64.b64decode(said["jpeg"], validate=True), int(said["step"]))
    except (KeyError, TypeError, ValueError):
        return None


class Previews:
    """Writes and reads previews. All calls block; safe to use from several threads.

    Args:
        client: from `polyreel.records.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._write = script(client, "preview")

    def write(self, pictures: Mapping[Claim, bytes], step: int) -> None:
        """Show pictures of the jobs of one call, in one step; claims that hold no more are passed over.

        Args:
            pictures: a JPEG for each.
            step: denoising steps that were done.
        """
        parts: list[str] = []
        for claim, jpeg in pictures.items():
            said = json.dumps({"step": step, "jpeg": base64.b64encode(jpeg).decode()})
            parts += [claim.job_id, str(claim.fence), said]
        if parts:
            self._write(args=arguments({"for_s": TTL_S}, *parts))

    def read(self, job_id: str) -> Preview | None:
        """Return the newest preview of a job; None when there is none (yet, or any more)."""
        return parse_preview(self._client.get(preview_key(job_id)))

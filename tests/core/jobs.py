"""A small request and job that the tests of records, queue and worker share."""

from __future__ import annotations

from dataclasses import replace

from polyreel.job import VideoJob, new_job
from polyreel.request import OutputSpec, PromptSpan, VideoRequest

REQUEST = VideoRequest(
    model="ltx-tiny",
    prompts=(PromptSpan("A sunset over the ocean", 9),),
    height=64,
    width=96,
    fps=8.0,
    num_inference_steps=4,
    guidance_scale=3.0,
    seed=42,
    outputs=(OutputSpec("gif", 8.0),),
)


def queued(request: VideoRequest = REQUEST, **fields: object) -> VideoJob:
    """Return a new job of alice's, submitted in ModelsLab's words."""
    extensions = tuple(output.format for output in request.outputs)
    return replace(new_job(request, dialect="modelslab", owner="alice", extensions=extensions), **fields)

"""Wan 2.1 and 2.2: text to video, pictures for the first and last frame, several prompts, upscaling by a second pass.

Which checkpoint does what is in `models._wan_layouts`; how several prompts share a video in `models._wan_spans`.

Frames come as 4k + 1; sizes in multiples of 16, or of 32 for TI2V, whose VAE compresses twice as much. What is too
much is cut off: frames at the end, pixels at the borders. With a picture for the last frame the end cannot go: then
as many frames are left out between the first and the last, evenly (24 of 25 frames: the 13th), and `Video.made` says
which. A checkpoint with native sizes makes those, and they are scaled (`models._wan_geometry`). Two transformers are
guided by the same `guidance_scale`.

Source: Wan, arXiv 2503.20314; https://huggingface.co/docs/diffusers/api/pipelines/wan
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np

from models import Checkpoint, OnProgress, Pipeline, PreparedRequest, Snapshots, Video
from models._load import check_folder, load_model
from models._pictures import cover, enlarge, frames_of
from models._progress import Meter
from models._run import generators, run_batches, run_pipeline
from models._second_pass import SecondPassPipeline, num_steps
from models._wan_geometry import WanGeometry
from models._wan_layouts import CLASSES, IMAGE_CLASS, check_layout, check_native, join_pictures
from models._wan_spans import PromptSpans
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.errors import NotServedYet
from polyreel.request import VideoRequest


class Wan:
    """The Wan family; see `models.Family`."""

    name = "wan"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        tasks = check_layout(checkpoint.path, check_folder(checkpoint.path, CLASSES))
        if checkpoint.native:
            check_native(checkpoint.path, checkpoint.native)
        return tasks

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        tasks = self.check(checkpoint)
        model = load_model(
            checkpoint,
            CLASSES,
            device=device,
            dtype=dtype,
            placement=placement,
            # Wan's VAE is meant to run in float32; in bfloat16 the frames show blocks and wrong colours.
            float32=("vae",),
            shared=("tokenizer", "text_encoder"),  # one UMT5 serves all of Wan, and no LoRA touches it
            prepare=join_pictures,
        )
        model.keep["tasks"] = tasks
        return model

    def generate(
        self,
        model: LoadedModel,
        requests: Sequence[PreparedRequest],
        on_progress: OnProgress,
        snapshots: Snapshots | None = None,
    ) -> list[Video]:
        return run_batches(
            model,
            requests,
            on_progress,
            snapshots,
            steps=lambda request: request.num_inference_steps + num_steps(request.upscale),
            run=lambda batch, meter: self._generate(model, batch, meter),
        )

    def _generate(self, model: LoadedModel, batch: list[PreparedRequest], meter: Meter) -> list[Video]:
        request, upscale = batch[0].request, batch[0].request.upscale
        pictures = _pictures(batch[0], model.keep["tasks"])
        pipeline = _pipeline(model, with_pictures=bool(pictures))
        temporal = pipeline.vae_scale_factor_temporal
        geometry = WanGeometry(pipeline, model.checkpoint.native, request, keeps_last="last_image" in pictures)
        spans = PromptSpans(request, geometry.num_frames, temporal, stretched=geometry.is_stretched)
        own_generators = generators(batch)

        @spans.on(pipeline)
        def denoise(pipeline: Pipeline, height: int, width: int, **arguments: Any) -> Any:
            arguments |= {name: cover(picture, height, width) for name, picture in pictures.items()}
            return run_pipeline(
                model,
                pipeline,
                meter,
                generator=own_generators,
                scheduler=_schedule(pipeline, request),
                decoder_calls=(geometry.num_frames - 1) // temporal + 1,
                prompt=[prepared.request.prompts[0].prompt for prepared in batch],
                negative_prompt=[prepared.request.negative_prompt for prepared in batch],
                num_frames=geometry.num_frames,
                height=height,
                width=width,
                output_type="np",
                **arguments,
            ).frames  # (B, F, H, W, 3), float32, 0..1

        videos = denoise(
            pipeline,
            *geometry.size(request),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
        )
        made = _made(pipeline, request) | geometry.facts() | spans.facts
        if upscale is None:
            return [Video(geometry.deliver(geometry.frames(video, request)), made=dict(made)) for video in videos]

        # A request with `upscale` is always alone in its batch.
        small = geometry.frames(videos[0], request)  # (F, height, width, 3), uint8
        steps = num_steps(upscale)
        if steps == 0:
            return [Video(geometry.deliver(small), made=made)]
        height, width = geometry.size(upscale)
        video = denoise(
            SecondPassPipeline(pipeline, enlarge(small, height, width), steps),
            height,
            width,
            num_inference_steps=upscale.num_inference_steps,
            guidance_scale=upscale.guidance_scale,
        )[0]
        made["passes"] = 2
        made["second_pass"] = {"num_inference_steps": steps, "height": height, "width": width}
        return [Video(geometry.deliver(geometry.frames(video, upscale)), made=made)]


def _pictures(prepared: PreparedRequest, tasks: frozenset[Task]) -> dict[str, np.ndarray]:
    """Return the pictures of a request under the pipeline's names for them: `image`, `last_image`, or none.

    Raises:
        NotServedYet: the checkpoint cannot do this.
        InvalidRequest: see `frames_of`.
    """
    request = prepared.request
    frames = frames_of(request)
    names: dict[tuple[int, ...], tuple[Task, tuple[str, ...]]] = {
        (): ("t2v", ()),
        (0,): ("i2v", ("image",)),
        (0, request.num_frames - 1): ("first_last", ("image", "last_image")),
    }
    task, arguments = names.get(tuple(sorted(frames)), ("keyframes", ()))
    if task not in tasks:
        raise NotServedYet(
            f"images: pictures for the frames {frames} are the task {task}, and this checkpoint does "
            f"{', '.join(sorted(tasks))}; choose another model.",
            field="images",
        )
    by_frame = dict(zip(frames, prepared.images, strict=True))
    return dict(zip(arguments, (by_frame[frame] for frame in sorted(by_frame)), strict=True))


def _pipeline(model: LoadedModel, *, with_pictures: bool) -> Pipeline:
    """Return the pipeline class that runs a request, over the model's weights."""
    if with_pictures and type(model.pipeline).__name__ != IMAGE_CLASS:
        return model.variant(IMAGE_CLASS)
    return model.pipeline


def _shift_name(scheduler: Any) -> str:
    """Return what this scheduler's class calls its shift, "" when it has none; Any: a diffusers scheduler.

    Its class decides which word counts: a configuration also keeps the words of the scheduler that it came from.
    """
    return next((name for name in ("flow_shift", "shift") if name in signature(type(scheduler)).parameters), "")


def _schedule(pipeline: Pipeline, request: VideoRequest) -> dict[str, Any]:
    """Return what a request changes of the scheduler's settings."""
    name = _shift_name(pipeline.scheduler)
    return {name: request.flow_shift} if name and request.flow_shift is not None else {}


def _made(pipeline: Pipeline, request: VideoRequest) -> dict[str, Any]:
    """Return how a video's first pass was made. Plain JSON."""
    shift = _shift_name(pipeline.scheduler)
    made: dict[str, Any] = {
        "scheduler": type(pipeline.scheduler).__name__,
        "flow_shift": _schedule(pipeline, request).get(shift, pipeline.scheduler.config.get(shift)),
        "passes": 1,
    }
    if pipeline.config.boundary_ratio is not None:
        made["boundary_ratio"] = pipeline.config.boundary_ratio
    return made


FAMILY = Wan()

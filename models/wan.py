"""Wan 2.1 and 2.2: text to video, pictures for the first and last frame, and upscaling by a second pass.

Which checkpoint does what is in `models._wan_layouts`.

Frames come as 4k + 1; sizes in multiples of 16, or of 32 for TI2V, whose VAE compresses twice as much. What is too
much is cut off: frames at the end, pixels at the borders. With a picture for the last frame the end cannot go: then
as many frames are left out between the first and the last, evenly (24 of 25 frames: the 13th), and `Video.made` says
which. Two transformers are guided by the same `guidance_scale`.

Source: Wan, arXiv 2503.20314; https://huggingface.co/docs/diffusers/api/pipelines/wan
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from models import Checkpoint, OnProgress, Pipeline, PreparedRequest, Snapshots, Video
from models._geometry import legal_frames, round_up
from models._load import check_folder, load_model
from models._pictures import cover, enlarge, frames_of
from models._progress import Meter
from models._run import finish, generators, only_prompt, run_batches, run_pipeline
from models._second_pass import SecondPassPipeline, num_steps
from models._wan_layouts import CLASSES, IMAGE_CLASS, check_layout, join_pictures, multiples
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.errors import NotServedYet
from polyreel.request import PromptSpan, VideoRequest


class Wan:
    """The Wan family; see `models.Family`."""

    name = "wan"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        return check_layout(checkpoint.path, check_folder(checkpoint.path, CLASSES))

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
        vertical, horizontal = multiples(pipeline)
        num_frames = legal_frames(request.num_frames, pipeline.vae_scale_factor_temporal)
        own_generators = generators(batch)

        def denoise(pipeline: Pipeline, height: int, width: int, **arguments: Any) -> Any:
            arguments |= {name: cover(picture, height, width) for name, picture in pictures.items()}
            return run_pipeline(
                model,
                pipeline,
                meter,
                generator=own_generators,
                scheduler=_schedule(pipeline, request),
                decoder_calls=(num_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
                prompt=[only_prompt(prepared.request, "Wan") for prepared in batch],
                negative_prompt=[prepared.request.negative_prompt for prepared in batch],
                num_frames=num_frames,
                height=height,
                width=width,
                output_type="np",
                **arguments,
            ).frames  # (B, F, H, W, 3), float32, 0..1

        height, width = round_up(request.height, vertical), round_up(request.width, horizontal)
        videos = denoise(
            pipeline,
            height,
            width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
        )
        made = _made(pipeline, request, num_frames, height, width)
        kept: slice | list[int] = slice(request.num_frames)
        if "last_image" in pictures:
            kept = spread(num_frames, request.num_frames)
            if num_frames > request.num_frames:
                made["left_out_frames"] = sorted(set(range(num_frames)) - set(kept))
        if upscale is None:
            return [Video(finish(video[kept], request), made=dict(made)) for video in videos]

        # A request with `upscale` is always alone in its batch.
        small = finish(videos[0], _first_pass(request, num_frames))  # (F, height, width, 3), uint8
        steps = num_steps(upscale)
        if steps == 0:
            return [Video(enlarge(small[kept], upscale.height, upscale.width), made=made)]
        height, width = round_up(upscale.height, vertical), round_up(upscale.width, horizontal)
        video = denoise(
            SecondPassPipeline(pipeline, enlarge(small, height, width), steps),
            height,
            width,
            num_inference_steps=upscale.num_inference_steps,
            guidance_scale=upscale.guidance_scale,
        )[0]
        made["passes"] = 2
        made["second_pass"] = {"num_inference_steps": steps, "height": height, "width": width}
        return [Video(finish(video[kept], request), made=made)]


def spread(made: int, wanted: int) -> list[int]:
    """Return which of `made` frames to deliver when the first and the last must stay: `wanted`, evenly spread.

    Args:
        made: frames that the model made.
        wanted: 2..made.
    """
    return [int(index) for index in np.linspace(0, made - 1, wanted).round()]


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


def _first_pass(request: VideoRequest, num_frames: int) -> VideoRequest:
    """Return what the first pass delivers to the second: every frame that was made, not enlarged."""
    return replace(request, prompts=(PromptSpan("", num_frames),), upscale=None)


def _shift_name(scheduler: Any) -> str:
    """Return what this scheduler's class calls its shift, "" when it has none; Any: a diffusers scheduler.

    Its class decides which word counts: a configuration also keeps the words of the scheduler that it came from.
    """
    return next((name for name in ("flow_shift", "shift") if name in signature(type(scheduler)).parameters), "")


def _schedule(pipeline: Pipeline, request: VideoRequest) -> dict[str, Any]:
    """Return what a request changes of the scheduler's settings."""
    name = _shift_name(pipeline.scheduler)
    return {name: request.flow_shift} if name and request.flow_shift is not None else {}


def _made(pipeline: Pipeline, request: VideoRequest, num_frames: int, height: int, width: int) -> dict[str, Any]:
    """Return how a video's first pass was made. Plain JSON."""
    shift = _shift_name(pipeline.scheduler)
    made: dict[str, Any] = {
        "scheduler": type(pipeline.scheduler).__name__,
        "flow_shift": _schedule(pipeline, request).get(shift, pipeline.scheduler.config.get(shift)),
        "passes": 1,
    }
    if pipeline.config.boundary_ratio is not None:
        made["boundary_ratio"] = pipeline.config.boundary_ratio
    if (num_frames, height, width) != (request.num_frames, request.height, request.width):
        made["denoised"] = {"num_frames": num_frames, "height": height, "width": width}
    return made


FAMILY = Wan()

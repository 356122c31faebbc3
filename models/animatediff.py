"""AnimateDiff: Stable Diffusion 1.5 with a motion adapter; the family that knows every task.

Any number of frames, sizes in multiples of 8. One prompt and no more frames than the motion adapter knows run plainly;
everything else runs under FreeNoise. What checkpoints look like says `models._motion`.

A job is one pass or, upscaled, two: text to video, then video to video over the enlarged frames. Whatever a job changes
about a pipeline (`_states`) is undone when its pass ends, however it ends.

Sources: AnimateDiff, arXiv 2307.04725; https://huggingface.co/docs/diffusers/api/pipelines/animatediff
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models import Checkpoint, OnProgress, Pipeline, PreparedRequest, Snapshots, Video, _motion
from models._clip_text import Prompts
from models._closed_loop import METHOD as CLOSED_LOOP
from models._embeddings import read_embeddings
from models._free_init import NUM_ITERATIONS, free_init
from models._free_noise import free_noise, prompts_by_frame
from models._geometry import round_up
from models._held_pictures import HeldPictures, pictures_by_frame
from models._pictures import enlarge
from models._progress import Meter
from models._prompt_chunks import is_long
from models._run import AfterStep, finish, generators, run_batches, run_pipeline
from models._second_pass import num_steps
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.request import Upscale, VideoRequest

#: What every checkpoint of the family can do.
TASKS: frozenset[Task] = frozenset(
    {
        "t2v",
        "i2v",
        "first_last",
        "keyframes",
        "prompt_travel",
        "closed_loop",
        "embeddings",
        "upscale",
        "improved_sampling",
    }
)

#: Frames that diffusers decodes at a time.
_DECODED_AT_ONCE = 16


@dataclass(frozen=True)
class _Pass:
    """One call of a pipeline.

    Args:
        pipeline: of the first or the second pass.
        height, width: in pixels, multiples of what the VAE needs.
        is_first: starts from noise.
        arguments: those of the pipeline's own call that the other pass has not.
    """

    pipeline: Pipeline
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    is_first: bool
    arguments: dict[str, Any] = field(default_factory=dict)  # Any: whatever the call takes


class AnimateDiff:
    """The AnimateDiff family; see `models.Family`."""

    name = "animatediff"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        _motion.check(checkpoint)
        return TASKS

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        return _motion.load(checkpoint, device=device, dtype=dtype, placement=placement)

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
            steps=total_steps,
            run=lambda batch, meter: self._generate(model, batch, meter),
            # diffusers takes one prompt or a dict of prompts under FreeNoise, no list; and a long prompt would give
            # those beside it more chunks than they have alone.
            runs_alone=lambda request: (
                _needs_free_noise(model.pipeline, request) or is_long(model.pipeline.tokenizer, _texts(request))
            ),
        )

    def _generate(self, model: LoadedModel, batch: list[PreparedRequest], meter: Meter) -> list[Video]:
        generator = generators(batch)
        request = batch[0].request
        prompts = _prompts(model, batch)
        one = _first_pass(model, request)
        frames = self._run(model, batch, meter, one, generator, prompts)  # (B, F, H, W, 3), 0..1
        made = _made(model, request, one) | prompts.facts
        if request.upscale is None:
            videos = zip(frames, batch, strict=True)
            return [Video(finish(video, prepared.request), made=dict(made)) for video, prepared in videos]

        # A request with `upscale` is always alone in its batch.
        upscale = request.upscale
        small = finish(frames[0], replace(request, upscale=None))  # (F, height, width, 3), uint8
        if not num_steps(upscale):
            return [Video(enlarge(small, upscale.height, upscale.width), made=made)]
        one = _second_pass(model, upscale, small)
        frames = self._run(model, batch, meter, one, generator, prompts)
        made["passes"] = 2
        made["second_pass"] = {"num_inference_steps": num_steps(upscale), "height": one.height, "width": one.width}
        return [Video(finish(frames[0], request), made=made)]

    def _run(
        self,
        model: LoadedModel,
        batch: list[PreparedRequest],
        meter: Meter,
        one: _Pass,
        generator: list[Any],
        prompts: Prompts,
    ) -> np.ndarray:
        """Run one pass; return (B, F, H, W, 3), float32, 0..1."""
        with ExitStack() as undo:
            undo.enter_context(prompts.on(one.pipeline))
            hooks = _states(undo, batch, one)
            frames: np.ndarray = run_pipeline(
                model,
                one.pipeline,
                meter,
                generator=generator,
                scheduler={},
                after_step=_in_turn(hooks) if hooks else None,
                tensor_inputs=("latents", "prompt_embeds"),
                decoder_calls=-(-len(batch) * batch[0].request.num_frames // _DECODED_AT_ONCE),
                **_arguments(batch, one),
            ).frames
        return frames


def total_steps(request: VideoRequest) -> int:
    """Return the denoising steps of a request over all passes and FreeInit iterations."""
    iterations = 1 if request.improved_sampling_seed is None else NUM_ITERATIONS
    return request.num_inference_steps * iterations + num_steps(request.upscale)


def _first_pass(model: LoadedModel, request: VideoRequest) -> _Pass:
    return _Pass(
        model.pipeline,
        height=round_up(request.height, model.pipeline.vae_scale_factor),
        width=round_up(request.width, model.pipeline.vae_scale_factor),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        is_first=True,
        arguments={"num_frames": request.num_frames},
    )


def _second_pass(model: LoadedModel, upscale: Upscale, frames: np.ndarray) -> _Pass:
    """Return the pass over frames of the first one, uint8 of shape (F, H, W, 3)."""
    pipeline = model.variant("AnimateDiffVideoToVideoPipeline")
    height = round_up(upscale.height, pipeline.vae_scale_factor)
    width = round_up(upscale.width, pipeline.vae_scale_factor)
    # diffusers runs int(strength * steps) of them; half a step more, or the product of floats might fall short by one.
    strength = min(1.0, (num_steps(upscale) + 0.5) / upscale.num_inference_steps)
    return _Pass(
        pipeline,
        height=height,
        width=width,
        num_inference_steps=upscale.num_inference_steps,
        guidance_scale=upscale.guidance_scale,
        is_first=False,
        arguments={
            "video": enlarge(frames, height, width)[None].astype(np.float32) / 255,  # (1, F, height, width, 3)
            "strength": strength,
        },
    )


def _prompts(model: LoadedModel, batch: list[PreparedRequest]) -> Prompts:
    """Return the prompts of a batch, as they are to be read; several with embeddings are never in one batch."""
    texts = [text for prepared in batch for text in _texts(prepared.request)]
    return Prompts(model.pipeline.tokenizer, texts, read_embeddings(batch[0].embeddings, model.pipeline))


def _texts(request: VideoRequest) -> list[str]:
    return [*(span.prompt for span in request.prompts), request.negative_prompt]


def _arguments(batch: list[PreparedRequest], one: _Pass) -> dict[str, Any]:
    """Return the arguments of a pass's call of its pipeline."""
    request = batch[0].request
    if _needs_free_noise(one.pipeline, request):
        prompts: dict[str, Any] = {"prompt": prompts_by_frame(request), "negative_prompt": request.negative_prompt}
    else:
        prompts = {
            "prompt": [prepared.request.prompts[0].prompt for prepared in batch],
            "negative_prompt": [prepared.request.negative_prompt for prepared in batch],
        }
    return {
        **prompts,
        **one.arguments,
        "height": one.height,
        "width": one.width,
        "clip_skip": _clip_skip(one.pipeline, request),
        "num_inference_steps": one.num_inference_steps,
        "guidance_scale": one.guidance_scale,
        "output_type": "np",
    }


def _states(undo: ExitStack, batch: list[PreparedRequest], one: _Pass) -> list[AfterStep]:
    """Bring a pass's pipeline into the states that its requests ask for; return what runs after each step, in order."""
    request, pipeline = batch[0].request, one.pipeline
    hooks: list[AfterStep] = []
    if not one.is_first:
        undo.enter_context(_same_vae_dtype(pipeline))
    if _needs_free_noise(pipeline, request):
        closed_from = max(prompts_by_frame(request)) if request.closed_loop else None
        undo.enter_context(free_noise(pipeline, request.num_frames, closed_from=closed_from))
    if one.is_first and request.improved_sampling_seed is not None:
        undo.enter_context(free_init(pipeline, request.improved_sampling_seed))
    if request.images:
        frames = pictures_by_frame(batch[0])
        pictures = HeldPictures(pipeline, frames, one.height, one.width, closed=request.closed_loop)
        undo.enter_context(pictures.on())
        hooks.append(pictures.after_step)
    return hooks


def _in_turn(hooks: Sequence[AfterStep]) -> AfterStep:
    """Return one hook that runs several, each with what those before it replaced."""

    def after_step(pipeline: Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        replaced: dict[str, Any] = {}
        for hook in hooks:
            replaced |= hook(pipeline, step, timestep, {**tensors, **replaced})
        return replaced

    return after_step


@contextmanager
def _same_vae_dtype(pipeline: Pipeline) -> Iterator[None]:
    """Bring the VAE back to its dtype: video to video encodes in float32, and an error there leaves it so."""
    dtype = pipeline.vae.dtype
    try:
        yield
    finally:
        if pipeline.vae.dtype != dtype:
            pipeline.vae.to(dtype)


def _needs_free_noise(pipeline: Pipeline, request: VideoRequest) -> bool:
    longest: int = pipeline.unet.config.motion_max_seq_length
    # A single frame is a loop as it is.
    is_loop = request.closed_loop and request.num_frames > 1
    return len(request.prompts) > 1 or request.num_frames > longest or is_loop


def _clip_skip(pipeline: Pipeline, request: VideoRequest) -> int | None:
    """Return the layers to skip: n of 12 stops at layer 12 - n; all 12 leaves the embeddings of the tokens."""
    if request.clip_skip is None:
        return None
    layers: int = pipeline.text_encoder.config.num_hidden_layers
    return min(request.clip_skip, layers)


def _made(model: LoadedModel, request: VideoRequest, first: _Pass) -> dict[str, Any]:
    """Return how the first pass was made; see `models.Video`."""
    made: dict[str, Any] = {
        "scheduler": type(model.pipeline.scheduler).__name__,
        "free_noise": _needs_free_noise(model.pipeline, request),
        "passes": 1,
    }
    if (first.height, first.width) != (request.height, request.width):
        made["denoised"] = {"num_frames": request.num_frames, "height": first.height, "width": first.width}
    if request.improved_sampling_seed is not None:
        made["free_init"] = {"iterations": NUM_ITERATIONS, "seed": request.improved_sampling_seed}
    if request.closed_loop:
        made["closed_loop"] = CLOSED_LOOP
    if request.images:
        made["pictures"] = "replacement"
    if "lcm_lora" in model.checkpoint.parts:
        made["lcm_lora"] = _motion.LCM_LORA_STRENGTH
    return made


FAMILY = AnimateDiff()

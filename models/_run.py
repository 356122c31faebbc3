"""Runs diffusers pipelines for a family: batches, progress, cancelling, NaN, memory, and nothing left behind.

A family decides which pipeline class runs with which arguments; this module decides how a call is watched and ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from models import OnProgress, Pipeline, PreparedRequest, Snapshots, Video
from models._copied_scheduler import CopiedScheduler
from models._geometry import fit
from models._previews import Preview
from models._progress import Meter
from models._resume import Resume
from models.loaded import LoadedModel
from polyreel.errors import GenerationFailed, NotServedYet, OutOfMemory, PolyreelError
from polyreel.request import VideoRequest

#: Changes latents between steps: gets (pipeline, step from 0, timestep, tensors by name), returns those it replaced.
AfterStep = Callable[[Pipeline, int, Any, dict[str, Any]], dict[str, Any]]

#: Runs one batch: gets its requests and the meter, returns one video per request; their `seconds` and `pipelines` are
#: filled in here.
RunBatch = Callable[[list[PreparedRequest], Meter], list[Video]]


def run_batches(
    model: LoadedModel,
    requests: Sequence[PreparedRequest],
    on_progress: OnProgress,
    snapshots: Snapshots | None,
    *,
    steps: Callable[[VideoRequest], int],
    run: RunBatch,
    runs_alone: Callable[[VideoRequest], bool] = lambda request: False,
) -> list[Video]:
    """Run requests in as few batches as may share a call, with one count of steps over all of them.

    Args:
        snapshots: see `models.Family.generate`; with them there is one request.
        steps: denoising steps of a request, over all passes, as they will be reported.
        run: runs one batch; its LoRAs are on.
        runs_alone: True for a request that the family cannot batch, beyond those of `split`.
    """
    batches = split(requests, runs_alone)
    total_steps = sum(steps(batch[0].request) for batch in batches)
    with _resume(model, requests, snapshots) as resume:
        meter = Meter(on_progress, total_steps, resume)
        videos: list[Video] = []
        for batch in batches:
            model.ran.clear()
            with model.adapters.using(batch[0].loras):
                made = run(batch, meter)
            seconds = meter.take_seconds()
            videos += [replace(video, seconds=seconds, pipelines=tuple(model.ran)) for video in made]
            meter.requests_done = len(videos)
    if resume is None:
        return videos
    [video] = videos
    return [replace(video, resumed_from=resume.resumed_from, not_resumable=resume.not_resumable)]


@contextmanager
def _resume(
    model: LoadedModel, requests: Sequence[PreparedRequest], snapshots: Snapshots | None
) -> Iterator[Resume | None]:
    """Give the `Resume` of a job that is to be saved; what it saved has been handed on at the end."""
    if snapshots is None:
        yield None
        return
    if len(requests) != 1:
        raise ValueError(f"snapshots are for a single request, got {len(requests)}")
    prepared = requests[0]
    not_resumable = ""
    if model.checkpoint.step_cache:
        not_resumable = "step cache"
    elif prepared.request.improved_sampling_seed is not None:
        not_resumable = "FreeInit"
    resume = Resume(model, prepared, snapshots, not_resumable)
    try:
        yield resume
    finally:
        resume.close()


def split(
    requests: Sequence[PreparedRequest], runs_alone: Callable[[VideoRequest], bool] = lambda request: False
) -> list[list[PreparedRequest]]:
    """Return neighbouring requests that may share a call together.

    Those are plain text to video, one prompt each, and equal but for prompts and seed. diffusers cannot batch
    pictures (one sample's picture would condition all), and adapters are a state of the whole pipeline.
    """
    batches: list[list[PreparedRequest]] = []
    previous: VideoRequest | None = None
    for prepared in requests:
        shared = None if runs_alone(prepared.request) else _shared(prepared)
        if shared is not None and shared == previous:
            batches[-1].append(prepared)
        else:
            batches.append([prepared])
        previous = shared
    return batches


def _shared(prepared: PreparedRequest) -> VideoRequest | None:
    """Return what all requests of a batch have in common, None for one that runs alone."""
    r = prepared.request
    plain = not (r.images or r.embeddings or r.closed_loop or r.upscale or len(r.prompts) > 1)
    if not plain or r.improved_sampling_seed is not None:
        return None
    prompts = (replace(r.prompts[0], prompt=""),)
    return replace(r, prompts=prompts, negative_prompt="", seed=0, outputs=())


def generators(batch: Sequence[PreparedRequest]) -> list[Any]:
    """Return one torch.Generator per request, on the CPU: the same seed gives the same noise with and without a GPU.

    Kept over all passes of a request, so that a second pass draws other noise than the first.
    """
    import torch

    return [torch.Generator("cpu").manual_seed(prepared.request.seed) for prepared in batch]


def run_pipeline(
    model: LoadedModel,
    pipeline: Pipeline,
    meter: Meter,
    *,
    generator: Sequence[Any],
    scheduler: dict[str, Any] | None = None,
    after_step: AfterStep | None = None,
    tensor_inputs: Sequence[str] = ("latents",),
    decoder_calls: int = 1,
    side: CopiedScheduler | None = None,
    **arguments: Any,  # whatever the pipeline class's __call__ takes
) -> Any:
    """Call a diffusers pipeline once, watched.

    Args:
        model: whose weights the pipeline uses.
        generator: from `generators`, one per sample. A single one is passed bare: some pipelines fail on a list.
        scheduler: settings of the scheduler that differ for this call; `class` names another one. None for a
            pipeline without steps.
        after_step: may replace tensors after each step.
        tensor_inputs: names of the tensors that `after_step` gets.
        decoder_calls: how often the pipeline will call the VAE's decoder, for the progress of decoding.
        side: sees latents that the pipeline denoises beside its own.
        arguments: of the pipeline's own call.

    Returns:
        The pipeline's output object.

    Raises:
        GenerationFailed: the pipeline raised; the cause is chained.
        OutOfMemory: the device's memory ran out.
        Cancelled: from the meter's `on_progress`.
    """
    import torch

    call = meter.resume.begin(generator, side) if meter.resume and scheduler is not None else None
    preview = Preview(pipeline, arguments)

    def callback_on_step_end(own: Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        resumed = call.go_on(own) if call else None
        if resumed is not None:
            meter.tick()
            return resumed
        # diffusers pops from the answer; None would be an AttributeError.
        replaced = after_step(own, step, timestep, tensors) if after_step else {}
        if call:
            call.took(own, step, (tensors | replaced)["latents"])
        meter.step(preview.pictures)
        return replaced

    # One that does something before or after its call stands around the pipeline whose class counts.
    model.ran.append(type(getattr(pipeline, "_pipeline", pipeline)).__name__)
    if generator:
        arguments["generator"] = generator[0] if len(generator) == 1 else list(generator)
    if scheduler is not None:
        arguments["callback_on_step_end"] = callback_on_step_end
        if after_step:
            arguments["callback_on_step_end_tensor_inputs"] = list(tensor_inputs)
    try:
        with ExitStack() as undo:
            if scheduler is not None:
                undo.enter_context(fresh_scheduler(pipeline, **scheduler))
            undo.enter_context(_watched(pipeline, meter, preview, decoder_calls))
            meter.enter("text_encoding")
            return pipeline(**arguments)
    except PolyreelError:
        raise
    except torch.OutOfMemoryError as err:
        raise out_of_memory(meter.stage) from err
    except Exception as err:
        # The cause's own text may hold paths; it goes to the log, the kind of error to the client.
        raise GenerationFailed(f"{type(pipeline).__name__} failed with {type(err).__name__}.") from err
    finally:
        if call:
            call.end()
        model.rest()


def out_of_memory(stage: str) -> OutOfMemory:
    """Return the error for a job that does not fit; the worker adds what would."""
    return OutOfMemory(f"The device ran out of memory while {stage.replace('_', ' ')}; ask for less.", stage)


def finish(frames: np.ndarray, request: VideoRequest) -> np.ndarray:
    """Turn a pipeline's frames into exactly what was asked.

    Args:
        frames: (F, H, W, 3), floats 0..1, at least as many and as large as delivered.

    Returns:
        uint8 of (num_frames, delivered_height, delivered_width, 3).

    Raises:
        GenerationFailed: NaN or infinite values.
    """
    return to_pixels(fit(frames, request.num_frames, request.delivered_height, request.delivered_width))


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """Turn floats 0..1 into uint8 of the same shape.

    Raises:
        GenerationFailed: NaN or infinite values.
    """
    if not np.isfinite(frames).all():
        raise GenerationFailed("The model returned NaN; try another dtype or seed.")
    pixels: np.ndarray = np.rint(frames * 255)
    return pixels.astype(np.uint8)


@contextmanager
def fresh_scheduler(pipeline: Pipeline, **changes: Any) -> Iterator[None]:
    """Run with a new scheduler of the same settings but for `changes`, then put the pipeline's own back.

    Multistep schedulers remember earlier outputs; a new one per call cannot know what an earlier call left.
    """
    import diffusers

    own = pipeline.scheduler
    name = changes.pop("class", type(own).__name__)
    pipeline.scheduler = getattr(diffusers, name).from_config(own.config, **changes)
    try:
        yield
    finally:
        pipeline.scheduler = own


@contextmanager
def _watched(pipeline: Pipeline, meter: Meter, preview: Preview, decoder_calls: int) -> Iterator[None]:
    """Tell the meter of the stages, and let it end the call within one block of the VAE as within one step."""
    handles = []
    blocks_done = 0
    decoder = getattr(getattr(pipeline, "vae", None), "decoder", None)
    blocks = list(getattr(decoder, "up_blocks", ()))

    def denoising(_module: Any, _inputs: Any) -> None:
        meter.enter("denoising")
        preview.watch(pipeline.scheduler)  # the one that takes the steps: made by now, and copied for the sound

    def decoding(_module: Any, _inputs: Any) -> None:
        nonlocal blocks_done
        meter.decoded(blocks_done / max(1, len(blocks) * decoder_calls))
        blocks_done += 1

    for name in ("transformer", "transformer_2", "unet"):
        if getattr(pipeline, name, None) is not None:
            handles.append(getattr(pipeline, name).register_forward_pre_hook(denoising))
    if decoder is not None:  # the stage begins before its first block: memory may run out in between
        handles.append(decoder.register_forward_pre_hook(lambda _module, _inputs: meter.enter("decoding")))
    handles += [block.register_forward_pre_hook(decoding) for block in blocks]
    encoder = getattr(getattr(pipeline, "vae", None), "encoder", None)  # pictures, and frames of a second pass
    for block in getattr(encoder, "down_blocks", ()):
        handles.append(block.register_forward_pre_hook(lambda _module, _inputs: meter.tick()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def only_prompt(request: VideoRequest, family: str) -> str:
    """Return the one prompt of a request.

    Raises:
        NotServedYet: the request has several prompt spans.
    """
    if len(request.prompts) > 1:
        raise NotServedYet(
            f"prompts has {len(request.prompts)} entries, and {family} models take one; "
            "only Wan and AnimateDiff models take several prompts.",
            field="prompts",
        )
    return request.prompts[0].prompt

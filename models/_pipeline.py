"""What every family does alike around a diffusers pipeline: load it, run it, and leave it as it was.

A family decides the class and the arguments of the call; this module decides what a broken checkpoint is called,
how progress, cancelling and NaN are handled, and that no call can see what an earlier one left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from models import Pipeline, StepCallback
from models._geometry import fit
from polyreel.errors import CheckpointUnavailable, ConfigurationError, GenerationFailed, NotServedYet, PolyreelError
from polyreel.request import VideoRequest

DTYPES = ("float32", "bfloat16", "float16")

#: Files that may run code when they are read (pickles). diffusers would not read them beside safetensors; a folder
#: that holds them is refused all the same, so that nobody has to find out which file was used.
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load_pipeline(
    checkpoint: Path, class_name: str, *, device: str, dtype: str, float32: Sequence[str] = ()
) -> Pipeline:
    """Load a checkpoint folder as the diffusers class `class_name`, from disk only.

    Args:
        checkpoint: local folder in diffusers layout.
        class_name: what `model_index.json` has to say, e.g. "WanPipeline".
        device: "cpu", "cuda" or "cuda:N".
        dtype: one of `DTYPES`.
        float32: components that stay in float32 whatever `dtype` says, e.g. ("vae",).

    Raises:
        CheckpointUnavailable: the folder is missing, incomplete, of another class, holds pickles, or the model does
            not fit on the device.
        ConfigurationError: `dtype` is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    check_checkpoint(checkpoint, class_name)

    import diffusers
    import torch

    quiet_libraries()
    dtypes = {"default": getattr(torch, dtype), **dict.fromkeys(float32, torch.float32)}
    # The concrete class, not DiffusionPipeline: that one ignores some components that a caller passes.
    pipeline_class = getattr(diffusers, class_name)
    try:
        pipeline = pipeline_class.from_pretrained(
            str(checkpoint), local_files_only=True, use_safetensors=True, dtype=dtypes
        )
    except Exception as err:  # diffusers and transformers raise a dozen kinds for a broken folder
        raise CheckpointUnavailable(f"{checkpoint} does not load as {class_name}: {err}") from err
    pipeline.set_progress_bar_config(disable=True)
    try:
        return pipeline.to(device)
    except Exception as err:  # no such device, or too little memory on it
        raise CheckpointUnavailable(f"{checkpoint} does not fit on {device}: {type(err).__name__}: {err}") from err


def check_checkpoint(checkpoint: Path, class_name: str) -> None:
    """Refuse what would fail, or run code, in the middle of loading.

    Raises:
        CheckpointUnavailable: names the file and what to do about it.
    """
    if not checkpoint.is_dir():
        raise CheckpointUnavailable(f"{checkpoint} is not a folder; give a checkpoint folder in diffusers layout.")

    index = checkpoint / "model_index.json"
    if not index.is_file():
        raise CheckpointUnavailable(f"{index} is missing; a checkpoint folder in diffusers layout has this file.")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        found = content["_class_name"]
    except (ValueError, KeyError, TypeError) as err:
        raise CheckpointUnavailable(f"{index} is damaged or names no _class_name; fetch it again.") from err
    if found != class_name:
        raise CheckpointUnavailable(
            f"{index} says {found}, and this family runs {class_name}; choose another family or another checkpoint."
        )

    for name, value in content.items():
        # Components are [library, class]; [null, null] is one that this checkpoint goes without.
        if isinstance(value, list) and value[0] is not None and not (checkpoint / name).is_dir():
            raise CheckpointUnavailable(
                f"{checkpoint / name} is missing; the checkpoint is incomplete, fetch it again."
            )

    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        if path.suffix.lower() in PICKLES:
            raise CheckpointUnavailable(
                f"{path} is a pickle, which may run code when it is read; only safetensors are loaded. "
                "Convert it, or delete it when the folder has the same weights as safetensors."
            )
    for path in files:
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def run_each(
    requests: Sequence[VideoRequest],
    on_step: StepCallback,
    run: Callable[[VideoRequest, StepCallback], np.ndarray],
) -> list[np.ndarray]:
    """Call `run` for one request after the other, with one count of steps over all of them.

    A loop, not a batch: kernels choose by batch size, so a request's frames would depend on its neighbours
    (off by one in some 8-bit values), and "same seed, same bytes" would no longer hold.
    """
    total = sum(request.num_inference_steps for request in requests)
    frames, before = [], 0
    for request in requests:
        frames.append(run(request, _shifted(on_step, before, total)))
        before += request.num_inference_steps
    return frames


def run_pipeline(
    pipeline: Pipeline,
    request: VideoRequest,
    on_step: StepCallback,
    *,
    scheduler_changes: dict[str, Any] | None = None,
    **arguments: Any,  # whatever the pipeline class's __call__ takes
) -> np.ndarray:
    """Call a diffusers pipeline for one request and return exactly the frames that were asked.

    Args:
        pipeline: from `load_pipeline`.
        request: gives the seed, the steps, the guidance and the delivered geometry.
        on_step: called with (steps done, `num_inference_steps`) after each step; may raise `Cancelled`.
        scheduler_changes: settings of the scheduler that differ for this call.
        arguments: the family's part of the call: prompt, num_frames, height and width (legal ones), and so on.

    Returns:
        uint8 array of shape (num_frames, height, width, 3), RGB.

    Raises:
        GenerationFailed: the pipeline raised or returned NaN; the cause is chained.
        Cancelled: from `on_step`.
    """
    import torch

    def callback_on_step_end(_pipeline: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, request.num_inference_steps)
        return {}  # diffusers pops from the answer; None would be an AttributeError

    # A CPU generator on every device: the same seed gives the same noise with and without a GPU.
    generator = torch.Generator("cpu").manual_seed(request.seed)
    try:
        with fresh_scheduler(pipeline, **(scheduler_changes or {})):
            video: np.ndarray = pipeline(
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=generator,
                callback_on_step_end=callback_on_step_end,
                output_type="np",
                **arguments,
            ).frames[0]  # (F, H, W, 3), float32, 0..1
        frames = fit(video, request.num_frames, request.height, request.width)
    except PolyreelError:
        raise
    except Exception as err:
        # The cause's own text may hold paths; it goes to the log, the kind of error to the client.
        raise GenerationFailed(f"{type(pipeline).__name__} failed with {type(err).__name__}.") from err
    finally:
        # The pipeline does this at the end of a good call only. Without it a cancelled request leaves its
        # offload hooks and step caches to the next one, which then differs or fails on another size.
        pipeline.maybe_free_model_hooks()

    if not np.isfinite(frames).all():
        raise GenerationFailed(f"{type(pipeline).__name__} returned NaN; try another dtype or seed.")
    pixels: np.ndarray = np.rint(frames * 255)
    return pixels.astype(np.uint8)  # (num_frames, height, width, 3)


@contextmanager
def fresh_scheduler(pipeline: Pipeline, **changes: Any) -> Iterator[None]:
    """Run with a new scheduler of the same settings but for `changes`, then put the pipeline's own back.

    Multistep schedulers remember earlier outputs; a new one per call cannot know what an earlier call left.
    """
    own = pipeline.scheduler
    pipeline.scheduler = type(own).from_config(own.config, **changes)
    try:
        yield
    finally:
        pipeline.scheduler = own


def only_prompt(request: VideoRequest, family: str) -> str:
    """Return the one prompt of a request.

    Raises:
        NotServedYet: the request has several prompt spans.
    """
    if len(request.prompts) > 1:
        raise NotServedYet(
            f"prompts has {len(request.prompts)} entries, and {family} models take one; "
            "only AnimateDiff models take several prompts.",
            field="prompts",
        )
    return request.prompts[0].prompt


def quiet_libraries() -> None:
    """Keep diffusers and transformers from drawing bars into the log, and from quoting prompts there.

    Both warn about a prompt that is too long for the text encoder by printing what they cut off. Errors come as
    exceptions anyway.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()


def _shifted(on_step: StepCallback, before: int, total: int) -> StepCallback:
    return lambda done, _steps: on_step(before + done, total)


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # Reads the header and compares its offsets with the length of the file, not the weights.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as err:
        raise CheckpointUnavailable(f"{path} is incomplete or damaged ({err}); fetch it again.") from err

"""LTX-Video and LTX-2: text, pictures and keyframes to video, with sound from LTX-2, and upscaling in two passes.

Checkpoints are folders in diffusers layout:

| `_class_name` | such as | pictures |
|---|---|---|
| LTXPipeline, LTXImageToVideoPipeline | Lightricks/LTX-Video (0.9.0), 0.9.1 | first frame |
| the same, with the VAE of 0.9.5 | Lightricks/LTX-Video-0.9.5 | any frames |
| LTXConditionPipeline | Lightricks/LTX-Video-0.9.7-dev, -distilled, 0.9.8 | any frames |
| LTX2Pipeline, LTX2ImageToVideoPipeline, LTX2ConditionPipeline | Lightricks/LTX-2, LTX-2.3 | any frames |

Sizes are multiples of 32, frames 8k + 1; what is too much is cut off, frames at the end and pixels at the borders.
A picture is placed at exactly the frame that it is for, so one for the last frame is for the last one delivered: the
frames that are cut off come after it.

Upscaling: with the part "upsampler", a folder of LTX's latent upsampler, the latents of the first pass become twice as
large and a second pass goes over them; the frames are then resized to what was asked for. Without it the frames of the
first pass are enlarged to the target size and encoded, and the second pass goes over those. Either way the second pass
runs the last steps of its schedule, int(strength * steps), and sees the pictures again. The sound is that of the first.

Sources: LTX-Video, arXiv 2501.00103; LTX-2, arXiv 2601.03233; https://huggingface.co/docs/diffusers/api/pipelines/ltx2
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models import Checkpoint, OnProgress, PreparedRequest, Snapshots, Video
from models._geometry import legal_frames
from models._load import check_folder, load_model
from models._ltx2 import LTX2, cut
from models._ltx_pass import Kind, Pass, Passed, Picture
from models._ltx_upsampler import check_upsampler, has_upsampler, load_upsampler, upsample
from models._ltx_video import LTXVideo, knows_keyframes
from models._native import refuse_native
from models._pictures import enlarge, frames_of
from models._progress import Meter
from models._run import finish, generators, run_batches
from models._second_pass import num_steps
from models.loaded import LoadedModel
from polyreel.entries import Placement, Task
from polyreel.errors import CheckpointUnavailable, NotServedYet
from polyreel.formats import Audio
from polyreel.request import PromptSpan, Upscale, VideoRequest

_LTX2_CLASSES = frozenset({"LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"})
_CLASSES = _LTX2_CLASSES | {"LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"}


class LTX:
    """The LTX family; see `models.Family`."""

    name = "ltx"

    def check(self, checkpoint: Checkpoint) -> frozenset[Task]:
        refuse_native(checkpoint, "LTX")
        class_name = check_folder(checkpoint.path, _CLASSES)
        vae = _read(checkpoint, "vae/config.json")
        is_ltx2 = class_name in _LTX2_CLASSES
        check_upsampler(
            checkpoint, f"LTX{'2' if is_ltx2 else ''}LatentUpsamplerModel", int(vae.get("latent_channels", 128))
        )
        if is_ltx2 or knows_keyframes(class_name, vae):
            return frozenset({"t2v", "i2v", "first_last", "keyframes", "upscale"})
        return frozenset({"t2v", "i2v", "upscale"})

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        tasks = self.check(checkpoint)
        model = load_model(checkpoint, _CLASSES, device=device, dtype=dtype, placement=placement)
        model.keep["tasks"] = tasks
        load_upsampler(model)
        return model

    def generate(
        self,
        model: LoadedModel,
        requests: Sequence[PreparedRequest],
        on_progress: OnProgress,
        snapshots: Snapshots | None = None,
    ) -> list[Video]:
        vae = model.pipeline.vae
        # With a noise level per sample, diffusers' slices would pair the samples with each other.
        alone = getattr(vae, "use_slicing", False) and vae.config.timestep_conditioning
        return run_batches(
            model,
            requests,
            on_progress,
            snapshots,
            steps=lambda request: request.num_inference_steps + num_steps(request.upscale),
            run=lambda batch, meter: _generate(model, batch, meter),
            runs_alone=lambda request: alone,
        )


def _generate(model: LoadedModel, batch: list[PreparedRequest], meter: Meter) -> list[Video]:
    """Run one batch: one pass, or up to two for a request with `upscale`, which is always alone."""
    kind: Kind = LTX2() if type(model.pipeline).__name__ in _LTX2_CLASSES else LTXVideo()
    request, upscale = batch[0].request, batch[0].request.upscale
    height, width = kind.sides(model.pipeline, request.height, request.width)
    asked = Pass(
        num_frames=legal_frames(request.num_frames, model.pipeline.vae_temporal_compression_ratio),
        height=height,
        width=width,
        num_inference_steps=request.num_inference_steps,
        num_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        pictures=_pictures(batch[0], model.keep["tasks"]),
        decode=num_steps(upscale) == 0 or not has_upsampler(model),
        sound=model.checkpoint.audio,
    )

    def denoise(asked: Pass) -> Passed:
        return kind.denoise(model, batch, meter, own_generators, asked)

    own_generators = generators(batch)
    passed = denoise(asked)
    made = {"passes": 1, **passed.made, **_denoised(request, asked)}
    if upscale is None:
        videos = [finish(frames, prepared.request) for frames, prepared in zip(passed.frames, batch, strict=True)]
    else:
        frames, facts = _enlarge(model, kind, meter, request, upscale, asked, passed, denoise)
        videos, made = [frames], made | facts
    seconds = request.num_frames / request.fps
    audio: Sequence[Audio | None] = [cut(sound, seconds) for sound in passed.audio] or [None] * len(videos)
    return [Video(frames, sound, dict(made)) for frames, sound in zip(videos, audio, strict=True)]


def _enlarge(
    model: LoadedModel,
    kind: Kind,
    meter: Meter,
    request: VideoRequest,
    upscale: Upscale,
    first: Pass,
    passed: Passed,
    denoise: Callable[[Pass], Passed],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Bring what the first pass made to the target size.

    Returns:
        uint8 of shape (num_frames, upscale.height, upscale.width, 3), and facts for `Video.made`.
    """
    second = replace(
        first,
        num_inference_steps=upscale.num_inference_steps,
        num_steps=num_steps(upscale),
        guidance_scale=upscale.guidance_scale,
        audio_latents=passed.audio_latents,
        decode=True,
        sound=False,
    )
    if not first.decode:
        latents = upsample(model, passed.latents, meter)  # (1, C, F, H, W)
        scale = model.pipeline.vae_spatial_compression_ratio
        second = replace(second, start=latents, height=latents.shape[3] * scale, width=latents.shape[4] * scale)
        # What the first pass made for the borders alone has grown with the rest.
        kept = replace(
            request,
            upscale=None,
            height=request.height * second.height // first.height,
            width=request.width * second.width // first.width,
        )
        frames = finish(denoise(second).frames[0], kept)
        return enlarge(frames, upscale.height, upscale.width), _second_facts(second, "latents")

    # All frames that were made: the second pass needs 8k + 1 as well.
    small = finish(passed.frames[0], replace(request, upscale=None, prompts=(PromptSpan("", first.num_frames),)))
    large = enlarge(small, upscale.height, upscale.width)
    if second.num_steps == 0:
        return large[: request.num_frames], {}
    height, width = kind.sides(model.pipeline, upscale.height, upscale.width)
    second = replace(second, start=_padded(large, height, width), height=height, width=width)
    return finish(denoise(second).frames[0], request), _second_facts(second, "frames")


def _padded(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Continue the border pixels of frames to this size; `finish` cuts off the same."""
    top, left = (height - frames.shape[1]) // 2, (width - frames.shape[2]) // 2
    bottom, right = height - frames.shape[1] - top, width - frames.shape[2] - left
    return np.pad(frames, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="edge")


def _denoised(request: VideoRequest, asked: Pass) -> dict[str, Any]:
    """Return what was really denoised, where that is not what was asked for."""
    if (asked.num_frames, asked.height, asked.width) == (request.num_frames, request.height, request.width):
        return {}
    return {"denoised": {"num_frames": asked.num_frames, "height": asked.height, "width": asked.width}}


def _second_facts(second: Pass, enlarged: str) -> dict[str, Any]:
    """Return facts of a second pass; `enlarged` says what was made larger for it, latents or frames."""
    facts = {"enlarged": enlarged, "num_inference_steps": second.num_steps}
    return {"passes": 2, "second_pass": {**facts, "height": second.height, "width": second.width}}


def _pictures(prepared: PreparedRequest, tasks: frozenset[Task]) -> tuple[Picture, ...]:
    """Return the pictures of a request in the order of their frames.

    Raises:
        NotServedYet: the checkpoint cannot do this.
        InvalidRequest: see `frames_of`.
    """
    request = prepared.request
    asked = zip(frames_of(request), request.images, prepared.images, strict=True)
    pictures = {frame: Picture(pixels, frame, image.strength) for frame, image, pixels in asked}
    if set(pictures) - {0} and "keyframes" not in tasks:
        raise NotServedYet(
            f"images: pictures for the frames {sorted(pictures)} are asked for, and this checkpoint takes one for the "
            "first frame only; choose another model.",
            field="images",
        )
    return tuple(pictures[frame] for frame in sorted(pictures))


def _read(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Read one of a checkpoint's json files."""
    path = checkpoint.path / name
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as err:
        raise CheckpointUnavailable(f"{path} is missing or damaged; fetch it again.") from err


FAMILY = LTX()

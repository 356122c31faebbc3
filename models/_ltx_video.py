"""LTX-Video 0.9.x: which pipeline runs a pass, and with what.

From 0.9.5 on (and in every LTXConditionPipeline folder) the transformer was trained with pictures for any frames, with
causal positions in time, and on a schedule that is not shifted: LTXConditionPipeline, whatever the folder names.
Before, it knows a picture for the first frame only: LTXPipeline and LTXImageToVideoPipeline.

Source: https://huggingface.co/docs/diffusers/api/pipelines/ltx_video
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm
from typing import Any

import numpy as np

from models import Pipeline, PreparedRequest
from models._around import AroundPipeline, encode
from models._geometry import round_up
from models._ltx_pass import Generators, Pass, Passed, Tensor, as_class, decoder_calls
from models._progress import Meter
from models._run import only_prompt, run_pipeline
from models._second_pass import start_late
from models.loaded import LoadedModel

#: At which noise level VAEs that know one decode (0.9.1 and later; 0.9.0 ignores it), and how much noise goes in: the
#: values of the model cards, for transformers that know the first frame only and for the others.
_DECODE_TIMESTEP = {False: 0.03, True: 0.05}
_DECODE_NOISE_SCALE = 0.025

#: Noise on a picture's latents while they condition, so that the frame may move on from it; the model card's value.
_IMAGE_COND_NOISE_SCALE = 0.025


def knows_keyframes(class_name: str, vae_config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was trained with pictures for any frame, from the configuration of its VAE."""
    return class_name == "LTXConditionPipeline" or "LTXVideo095DownBlock3D" in vae_config.get("down_block_types", ())


class LTXVideo:
    """LTX-Video 0.9.x; see `models._ltx_pass.Kind`."""

    def sides(self, pipeline: Pipeline, height: int, width: int) -> tuple[int, int]:
        # The pipeline insists on 32 px, whatever its VAE does.
        multiple = lcm(32, pipeline.vae_spatial_compression_ratio)
        return round_up(height, multiple), round_up(width, multiple)

    def denoise(
        self, model: LoadedModel, batch: Sequence[PreparedRequest], meter: Meter, generator: Generators, asked: Pass
    ) -> Passed:
        request = batch[0].request
        keyframes = "keyframes" in model.keep["tasks"]
        pipeline, scheduler, arguments = (_conditioned if keyframes else _first_frame)(model, asked)
        output = run_pipeline(
            model,
            pipeline,
            meter,
            generator=generator,
            scheduler=scheduler,
            decoder_calls=decoder_calls(pipeline, len(batch), asked.height, asked.width),
            prompt=[only_prompt(prepared.request, "LTX") for prepared in batch],
            negative_prompt=[prepared.request.negative_prompt for prepared in batch],
            num_frames=asked.num_frames,
            height=asked.height,
            width=asked.width,
            guidance_scale=asked.guidance_scale,
            frame_rate=request.fps,  # a conditioning input: the model moves things at this rate
            num_inference_steps=asked.num_inference_steps,
            decode_timestep=_DECODE_TIMESTEP[keyframes],
            decode_noise_scale=_DECODE_NOISE_SCALE,
            output_type="np" if asked.decode else "latent",
            **arguments,
        ).frames
        made = {"scheduler": type(pipeline.scheduler).__name__}
        if asked.decode:
            return Passed(frames=output, made=made)  # (B, F, H, W, 3), float32, 0..1
        return Passed(latents=output if output.ndim == 5 else _unpack(pipeline, output, asked), made=made)


def _conditioned(model: LoadedModel, asked: Pass) -> tuple[Pipeline, dict[str, Any], dict[str, Any]]:
    """Return pipeline, changes of the scheduler and arguments for a checkpoint that knows keyframes."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition, linear_quadratic_schedule

    pipeline = as_class(model, "LTXConditionPipeline")
    arguments: dict[str, Any] = {
        # What the pipeline would take by itself, but as numbers: NumPy warns of the tensor that it would make.
        "timesteps": (1000 * linear_quadratic_schedule(asked.num_inference_steps)).tolist(),
        "image_cond_noise_scale": _IMAGE_COND_NOISE_SCALE,
    }
    if asked.pictures:
        # A picture sits at its own point in time, so every frame can have one, and frames that are made to fill up
        # 8k + 1 come after the last delivered one. (Only conditions of several frames must start at multiples of 8.)
        arguments["conditions"] = [
            LTXVideoCondition(
                image=picture.covering(asked.height, asked.width),
                frame_index=picture.frame_index,
                strength=picture.strength,
            )
            for picture in asked.pictures
        ]
    if asked.start is not None:
        pipeline = _FromFramesPipeline(pipeline)
        arguments["start"] = asked.start
        # The pipeline takes int(steps * denoise_strength) steps: the half keeps that from falling one short.
        arguments["denoise_strength"] = min((asked.num_steps + 0.5) / asked.num_inference_steps, 1.0)
    # Its schedule comes ready made: the pipeline cannot shift it, and would fail if told to.
    return pipeline, {"use_dynamic_shifting": False, "shift_terminal": None}, arguments


def _first_frame(model: LoadedModel, asked: Pass) -> tuple[Pipeline, dict[str, Any], dict[str, Any]]:
    """Return the same for a checkpoint that knows a picture for the first frame at most."""
    pipeline = as_class(model, "LTXImageToVideoPipeline" if asked.pictures else "LTXPipeline")
    arguments: dict[str, Any] = {}
    if asked.pictures:
        arguments["image"] = asked.pictures[0].covering(asked.height, asked.width)
    if asked.start is not None:
        pipeline = _LastStepsPipeline(pipeline)
        arguments |= {"start": asked.start, "num_steps": asked.num_steps}
    # A single step starts at sigma 1 and ends at 0. Stretching the schedule so that its last entry is
    # `shift_terminal` divides 0 by 0 then, and the pipeline fails with an IndexError on the NaN.
    one_step = asked.num_inference_steps == 1 and pipeline.scheduler.config.get("shift_terminal")
    return pipeline, {"shift_terminal": None} if one_step else {}, arguments


class _FromFramesPipeline(AroundPipeline):
    """LTXConditionPipeline from frames or latents instead of noise: it mixes the noise in by itself."""

    def __call__(self, *, start: Any, **arguments: Any) -> Any:
        return self._pipeline(latents=_latents(self._pipeline, start), **arguments)


class _LastStepsPipeline(AroundPipeline):
    """LTXPipeline or LTXImageToVideoPipeline from frames or latents: the last steps of their schedule."""

    def __call__(
        self,
        *,
        start: Any,
        num_steps: int,
        num_inference_steps: int,
        generator: Any,
        image: Any = None,
        **arguments: Any,
    ) -> Any:
        from diffusers.utils.torch_utils import randn_tensor

        clean = _latents(self._pipeline, start)  # (1, C, F, H, W)
        noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        sigma = self._start_late(clean.shape[2:], num_inference_steps, num_steps)
        latents = sigma * noise + (1 - sigma) * clean
        if image is not None:
            # Given latents, the pipeline takes their first frame for the picture's, and looks at no picture.
            latents[:, :, :1] = _latents(self._pipeline, np.array(image)[None])
            arguments["image"] = image
        return self._pipeline(
            latents=self._pack_latents(latents),
            num_inference_steps=num_inference_steps,
            generator=generator,
            **arguments,
        )

    def _start_late(self, grid: Sequence[int], num_inference_steps: int, num_steps: int) -> float:
        """Let the schedule begin `num_steps` before its end; return the share of noise there, 0..1."""
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

        config = self.scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift(int(np.prod(grid)), *(config[name] for name in names))
        start_late(self.scheduler, num_inference_steps - num_steps)
        # As the pipeline will do it once more.
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=shift)
        return float(self.scheduler.timesteps[0]) / float(config.num_train_timesteps)


def _latents(pipeline: Pipeline, start: Any) -> Tensor:
    """Return what to start from as normalised latents, float32 of shape (1, C, F, H, W)."""
    if not isinstance(start, np.ndarray):
        return start
    vae = pipeline.vae
    return pipeline._normalize_latents(
        encode(pipeline, start), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )


def _unpack(pipeline: Pipeline, tokens: Tensor, asked: Pass) -> Tensor:
    """Return the latents of (B, tokens, C) as (B, C, F, H, W)."""
    return pipeline._unpack_latents(
        tokens,
        (asked.num_frames - 1) // pipeline.vae_temporal_compression_ratio + 1,
        asked.height // pipeline.vae_spatial_compression_ratio,
        asked.width // pipeline.vae_spatial_compression_ratio,
        pipeline.transformer_spatial_patch_size,
        pipeline.transformer_temporal_patch_size,
    )

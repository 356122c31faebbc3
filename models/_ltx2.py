"""LTX-2.0 and 2.3: pictures and sound from one transformer.

Text alone runs through LTX2Pipeline, pictures and second passes through LTX2ConditionPipeline. Which generation a
checkpoint is of, its transformer's configuration says, not its name. Its prompt enhancer, which would rewrite the
client's words, is never called.

Guidance: `guidance_scale` is that of the pictures. At 1 or less (distilled checkpoints) every kind of guidance is off,
so the denoiser runs once per step. Above it the other kinds are diffusers' defaults, the authors' suggestion for 2.3,
which 2.0 gets too: `audio_guidance_scale` 7, isolation of the modalities 3, spatio-temporal guidance 1 where the
checkpoint can be perturbed, all rescaled by 0.7. That is three runs a step, of which one is a double.

Schedule: a scheduler that shifts (`use_dynamic_shifting`) runs as diffusers runs it. One that does not gets LTX's
linear-quadratic schedule, whose eight steps are those that the distilled checkpoints were trained on; a catalogue entry
for one says `scheduler: {use_dynamic_shifting: false, shift_terminal: null}`.

Source: LTX-2, arXiv 2601.03233; https://huggingface.co/docs/diffusers/api/pipelines/ltx2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models import Pipeline, PreparedRequest
from models._around import AroundPipeline, encode
from models._copied_scheduler import CopiedScheduler
from models._geometry import round_up
from models._ltx_pass import Generators, Pass, Passed, Tensor, as_class, decoder_calls
from models._progress import Meter
from models._run import only_prompt, run_pipeline
from models.loaded import LoadedModel
from polyreel.errors import GenerationFailed
from polyreel.formats import Audio

#: Smallest side in pixels: the decoder pads by reflection, for which one latent is not enough.
_MIN_SIDE = 64

_GUIDED = {
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_modality_scale": 3.0,
    "audio_guidance_rescale": 0.7,
}
_UNGUIDED = {
    "guidance_scale": 1.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
}

#: Settings under which FlowMatchEulerDiscreteScheduler takes sigmas as they are given.
_AS_GIVEN = {
    "use_dynamic_shifting": False,
    "shift": 1.0,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


class LTX2:
    """LTX-2; see `models._ltx_pass.Kind`. Latents are not normalised here."""

    def sides(self, pipeline: Pipeline, height: int, width: int) -> tuple[int, int]:
        vae = pipeline.vae
        if not getattr(vae, "use_tiling", False):
            return legal_side(height, None), legal_side(width, None)
        return (
            legal_side(height, (vae.tile_sample_min_height, vae.tile_sample_stride_height)),
            legal_side(width, (vae.tile_sample_min_width, vae.tile_sample_stride_width)),
        )

    def denoise(
        self, model: LoadedModel, batch: Sequence[PreparedRequest], meter: Meter, generator: Generators, asked: Pass
    ) -> Passed:
        request = batch[0].request
        conditioned = asked.start is not None or bool(asked.pictures)
        pipeline = as_class(model, "LTX2ConditionPipeline" if conditioned else "LTX2Pipeline")
        guidance = guidance_of(pipeline.transformer.config, asked.guidance_scale)
        sound = CopiedScheduler()
        passed: Passed = run_pipeline(
            model,
            _TailPipeline(pipeline, asked, sound),
            meter,
            generator=generator,
            scheduler={},
            side=sound,
            decoder_calls=decoder_calls(pipeline, len(batch), asked.height, asked.width),
            prompt=[only_prompt(prepared.request, "LTX") for prepared in batch],
            negative_prompt=[prepared.request.negative_prompt for prepared in batch],
            num_frames=asked.num_frames,  # never None: checkpoints with a duration head would choose a number
            height=asked.height,
            width=asked.width,
            frame_rate=float(request.fps),
            enable_prompt_enhancement=False,
            **guidance,
        )
        passed.made.update(scheduler=type(pipeline.scheduler).__name__, guidance=guidance, audio=asked.sound)
        return passed


class _TailPipeline(AroundPipeline):
    """LTX2Pipeline or LTX2ConditionPipeline for one pass: its own schedule, or the tail of it, and its own decoding.

    Decoding is done here because the pipeline cannot leave out the sound, or return the latents beside it.

    Args:
        pipeline: of one of the two classes.
        asked: the pass.
        sound: follows the latents of the sound.
    """

    def __init__(self, pipeline: Pipeline, asked: Pass, sound: CopiedScheduler) -> None:
        super().__init__(pipeline)
        self._asked = asked
        self._sound = sound

    def __call__(self, **arguments: Any) -> Passed:
        asked = self._asked
        sigmas = self._sigmas()[-asked.num_steps :]
        self.scheduler = type(self.scheduler).from_config(self.scheduler.config, **_AS_GIVEN)
        self._sound.of(self.scheduler)
        if asked.pictures:
            arguments["conditions"] = [_condition(picture, asked) for picture in asked.pictures]
        if asked.start is not None:
            start = asked.start
            arguments["latents"] = encode(self._pipeline, start) if isinstance(start, np.ndarray) else start
            arguments["audio_latents"] = asked.audio_latents
            arguments["noise_scale"] = sigmas[0]
        output = self._pipeline(num_inference_steps=len(sigmas), sigmas=sigmas, output_type="latent", **arguments)
        latents, audio_latents = output.frames, output.audio  # (B, C, F, H, W), (B, C, L, mel bins)
        return Passed(
            frames=self._frames(latents) if asked.decode else None,
            latents=None if asked.decode else latents,
            audio_latents=audio_latents,
            audio=self._audio(audio_latents) if asked.sound else (),
        )

    def _sigmas(self) -> list[float]:
        """Return the noise levels of the whole schedule, from 1 down, one per step."""
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
        from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

        asked, config = self._asked, self.scheduler.config
        steps = asked.num_inference_steps
        if not config.get("use_dynamic_shifting"):
            return [float(sigma) for sigma in linear_quadratic_schedule(steps)]
        scale = self.vae_spatial_compression_ratio
        latent_frames = (asked.num_frames - 1) // self.vae_temporal_compression_ratio + 1
        tokens = latent_frames * (asked.height // scale) * (asked.width // scale)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        # One step from 1 to 0 cannot be stretched so that it ends elsewhere: 0 / 0.
        changes = {"shift_terminal": None} if steps == 1 else {}
        scheduler = type(self.scheduler).from_config(config, **changes)
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens, *(config[name] for name in names))
        )
        return [float(sigma) for sigma in scheduler.sigmas[:-1]]

    def _frames(self, latents: Tensor) -> np.ndarray:
        import torch

        vae = self.vae
        # 0, as the pipeline's own default, for VAEs that know the noise level; none of the published ones does.
        timestep = torch.zeros(len(latents), device=latents.device, dtype=vae.dtype)
        with torch.no_grad():
            video = vae.decode(
                latents.to(vae.dtype), timestep if vae.config.timestep_conditioning else None, return_dict=False
            )[0]
        frames: np.ndarray = self.video_processor.postprocess_video(video, output_type="np")
        return frames  # (B, F, H, W, 3), float32, 0..1

    def _audio(self, latents: Tensor) -> list[Audio]:
        import torch

        with torch.no_grad():
            spectrogram = self.audio_vae.decode(latents.to(self.audio_vae.dtype), return_dict=False)[0]
            waves = self.vocoder(spectrogram).float().cpu().numpy()  # (B, channels, samples)
        rate = int(self.vocoder.config.output_sampling_rate)
        return [Audio(wave.T, rate) for wave in waves]


def _condition(picture: Any, asked: Pass) -> Any:
    """Return diffusers' condition for a picture.

    It counts positions in latent frames, of which the first is one frame and each further one eight, and puts latent
    position k at frame 8 (k - 1) + 1. The model itself knows frames, and a fraction comes out at exactly the frame:
    eighths have no rounding.
    """
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    frame = picture.frame_index
    return LTX2VideoCondition(
        frames=picture.covering(asked.height, asked.width),
        index=0 if frame == 0 else (frame - 1) / 8 + 1,
        strength=picture.strength,
        crf=0,  # no H.264 before it is seen: that needs another library, and only makes it worse
    )


def guidance_of(config: Any, guidance_scale: float) -> dict[str, Any]:
    """Return all arguments of a call that guide it.

    Args:
        config: of the transformer. LTX-2.3 modulates cross attention by the timestep and LTX-2.0 does not, and by that
            they are told apart here: 2.0 wants `use_cross_timestep` off and another block perturbed.
        guidance_scale: of the request.
    """
    is_20 = not config.get("cross_attn_mod", False)
    # Checkpoints converted before diffusers knew this kind of guidance say nothing, and cannot be perturbed: the
    # pipeline would run the denoiser a third time for a difference of zero.
    stg_scale = 1.0 if config.get("perturbed_attn", False) else 0.0
    block = min(29 if is_20 else 28, config["num_layers"] - 1)
    guided = {"guidance_scale": guidance_scale, "stg_scale": stg_scale, "audio_stg_scale": stg_scale, **_GUIDED}
    return {
        **(guided if guidance_scale > 1 else _UNGUIDED),
        "spatio_temporal_guidance_blocks": [block],
        "use_cross_timestep": not is_20,
    }


def legal_side(pixels: int, tile: tuple[int, int] | None) -> int:
    """Return the smallest side that contains `pixels` and can be decoded.

    Args:
        tile: side and stride of the decoder's tiles in pixels, None when it decodes the frame at once. A last tile of
            one latent cannot be padded by reflection.
    """
    side = round_up(max(pixels, _MIN_SIDE), 32)
    if tile is not None:
        size, stride = tile
        while side > size and side % stride == 32:
            side += 32
    return side


def cut(audio: Audio, seconds: float) -> Audio:
    """Return sound of exactly this length, cut off or followed by silence.

    Raises:
        GenerationFailed: NaN or infinite values.
    """
    if not np.isfinite(audio.samples).all():
        raise GenerationFailed("The model returned NaN for the sound; try another dtype or seed.")
    length = round(seconds * audio.sample_rate)
    samples = np.zeros((length, audio.samples.shape[1]), np.float32)
    kept = audio.samples[:length]
    samples[: len(kept)] = kept.clip(-1, 1)
    return Audio(samples, audio.sample_rate)

"""Pictures for frames of an AnimateDiff video: a method without training, by replacement.

AnimateDiff knows no pictures. What is done instead, for each frame that is to show one:

1. The picture is encoded by the VAE.
2. The frame starts from the picture noised to the level of the first step. The other frames start from their own noise
   with a little of the same: a share that falls in a straight line to 0 at the next picture, or where there is none,
   as many frames away as the video has. In a closed loop it falls in both directions round the loop.
3. After every step the frame's latents are put back to the picture's, noised to the level that the step arrived at,
   as in inpainting; after the last step to the picture's own. So the frame decodes to what the VAE makes of the
   picture, and the motion modules show it to its neighbours at every step.

`strength` scales the shares of 2 and says for which part of the steps 3 goes on: at 1 for all of them, at 0.6 for the
first 60 %, after which the frame is free; 0 is no picture.

What to expect: the frame itself is exact, and colours and composition carry over. The model was not trained for it, so
the next frames may differ more from the picture than frames of a model made for pictures (Wan, LTX) would, most of all
when the prompt does not describe it. There is no resampling between steps: it costs nothing.

Sources: replacement, arXiv 2201.09865 (RePaint, without its resampling); the shares, as in
https://github.com/talesofai/AnimateDiff, where 1/30 of the picture is mixed into the noise of the first frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from models import Pipeline, PreparedRequest
from models._pictures import cover, frames_of

Tensor = Any  # torch is imported lazily


@dataclass(frozen=True)
class Held:
    """A picture that a frame shows: uint8 (height, width, 3) of any size, and how strictly, 0..1."""

    picture: np.ndarray
    strength: float


def pictures_by_frame(prepared: PreparedRequest) -> dict[int, Held]:
    """Return the pictures of a request by frame, counted from 0.

    Raises:
        InvalidRequest: see `frames_of`.
    """
    asked = zip(frames_of(prepared.request), prepared.request.images, prepared.images, strict=True)
    return {frame: Held(picture, image.strength) for frame, image, picture in asked}


def shares(frames: Mapping[int, Held], num_frames: int, *, closed: bool = False) -> np.ndarray:
    """Return how much of each picture each frame starts from, (pictures, num_frames), pictures in order of frames.

    Args:
        closed: the video is a loop: the picture after the last one is the first one again, and a picture alone is
            nowhere farther away than half the video.
    """
    order = sorted(frames)
    reach = num_frames / 2 if closed else num_frames
    is_ring = closed and len(order) > 1
    before = order[-1] - num_frames if is_ring else order[0] - reach
    after = order[0] + num_frames if is_ring else order[-1] + reach
    turns = (-num_frames, 0, num_frames) if closed else (0,)
    tents = []
    for left, frame, right in zip([before, *order], order, [*order[1:], after], strict=False):
        heights = [0, frames[frame].strength, 0]
        tents.append(
            np.max([np.interp(np.arange(num_frames) + turn, [left, frame, right], heights) for turn in turns], 0)
        )
    return np.stack(tents)


class HeldPictures:
    """Holds frames of one call of a pipeline to pictures.

    Args:
        pipeline: an AnimateDiffPipeline; or an AnimateDiffVideoToVideoPipeline, whose other frames start from a video
            already and get no share of the pictures.
        frames: pictures by frame, at least one.
        height, width: of the call, in pixels.
        closed: the video is a loop.
    """

    def __init__(
        self, pipeline: Pipeline, frames: Mapping[int, Held], height: int, width: int, *, closed: bool = False
    ) -> None:
        self._pipeline = pipeline
        self._frames = {frame: frames[frame] for frame in sorted(frames)}
        self._height, self._width = height, width
        self._closed = closed
        self._clean: Tensor = None  # latents of the pictures, (pictures, C, h, w), float32
        self._noise: Tensor = None  # of the frames that show them, likewise

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let calls of the pipeline start from the pictures; it is as before afterwards, whatever happens."""
        prepare_latents = self._pipeline.prepare_latents

        def prepare_latents_with_pictures(*args: Any, **kwargs: Any) -> Tensor:
            return self._start(prepare_latents(*args, **kwargs), kwargs.get("timestep"), kwargs.get("generator"))

        self._pipeline.prepare_latents = prepare_latents_with_pictures
        try:
            yield
        finally:
            del self._pipeline.prepare_latents

    def after_step(self, pipeline: Pipeline, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Put the frames back to the pictures; see `models._run.AfterStep`."""
        latents = tensors["latents"].clone()  # (1, C, F, h, w)
        total: int = pipeline.num_timesteps
        held = self._at(steps_left=total - step - 1).to(latents.dtype)  # (pictures, C, h, w)
        for number, (frame, picture) in enumerate(self._frames.items()):
            if step < round(picture.strength * total):
                latents[:, :, frame] = held[number]
        return {"latents": latents}

    def _start(self, plain: Tensor, timestep: Tensor | None, generator: Any) -> Tensor:
        """Return the latents of the first step with the pictures in them.

        Args:
            plain: the pipeline's own, (1, C, F, h, w): noise scaled for the scheduler, or a noised video.
            timestep, generator: of a video to video call, (1,); None for noise.
        """
        import torch

        scheduler, order = self._pipeline.scheduler, list(self._frames)
        start = plain.float()
        if timestep is None:
            timestep = scheduler.timesteps[:1]
            noise = start / scheduler.init_noise_sigma
            weights = shares(self._frames, plain.shape[2], closed=self._closed)  # (pictures, F)
        else:
            # The noise of a noised video is not known any more.
            noise = torch.randn(plain.shape, generator=generator).to(plain.device)
            weights = np.zeros((len(order), plain.shape[2]))
            weights[range(len(order)), order] = [picture.strength for picture in self._frames.values()]
        self._clean = self._encode()
        self._noise = noise[0, :, order].transpose(0, 1)
        # From the plain start towards the picture's: without a share, frames are bit-equal to a video without pictures.
        for clean, weight in zip(self._clean, weights, strict=True):
            clean_frames = clean[None, :, None].expand_as(noise).contiguous()  # (1, C, F, h, w)
            towards = scheduler.add_noise(clean_frames, noise, timestep) - plain.float()
            start = start + towards * torch.tensor(weight, dtype=noise.dtype, device=noise.device)[:, None, None]
        return start.to(plain.dtype)

    def _at(self, steps_left: int) -> Tensor:
        """Return the pictures' latents as they are when so many steps are left, (pictures, C, h, w)."""
        if not steps_left:
            return self._clean
        scheduler = self._pipeline.scheduler
        # Counted from the end: a video to video call shows only the last of the scheduler's timesteps.
        timestep = scheduler.timesteps[-steps_left]
        return scheduler.add_noise(self._clean, self._noise, timestep.repeat(len(self._clean)))

    def _encode(self) -> Tensor:
        """Return the pictures' latents, (pictures, C, h, w), float32."""
        import torch

        pipeline = self._pipeline
        images = [cover(held.picture, self._height, self._width) for held in self._frames.values()]
        pixels = pipeline.video_processor.preprocess(images, height=self._height, width=self._width)
        pixels = pixels.to(device=pipeline._execution_device, dtype=pipeline.vae.dtype)  # (pictures, 3, H, W), -1..1
        with torch.no_grad():
            # The mode and not a sample: nothing of the generator's is spent, and the picture is met best.
            latents = pipeline.vae.encode(pixels).latent_dist.mode()
        return latents.float() * pipeline.vae.config.scaling_factor

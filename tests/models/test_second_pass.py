"""The second pass of an upscaled video starts from the enlarged frames, as far back as `strength` says."""

from __future__ import annotations

import numpy as np
import pytest

from models import PreparedRequest
from models._pictures import enlarge
from models._run import fresh_scheduler
from models._second_pass import SecondPassPipeline, latents_of, noised, num_steps, start_late
from polyreel.request import Upscale
from tests.models.conftest import picture


@pytest.fixture(scope="module")
def wan(load):
    return load("wan21").pipeline


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """5 frames of 64 x 96 that wander between two pictures, uint8."""
    start, end = picture(64, 96, seed=1).astype(float), picture(64, 96, seed=2)
    return np.stack([start + (end - start) * n / 4 for n in range(5)]).astype(np.uint8)


def call(pipeline, **arguments):
    """Call a pipeline, or its second pass, with a scheduler of its own, as `run_pipeline` does."""
    import torch

    given = {
        "prompt": "a cat in the rain",
        "num_inference_steps": 10,
        "guidance_scale": 3.0,
        "generator": torch.Generator("cpu").manual_seed(1),
        "output_type": "np",
    }
    with fresh_scheduler(pipeline):
        return pipeline(**{**given, **arguments}).frames


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.0, 0), (0.01, 1), (0.5, 5), (0.59, 5), (0.6, 6), (1.0, 10), (1.5, 10), (-1.0, 0)]
)
def test_strength_is_the_share_of_the_steps_that_run_and_at_least_one(strength, steps):
    assert num_steps(Upscale(128, 128, strength, guidance_scale=3.0, num_inference_steps=10)) == steps


def test_a_video_that_is_not_upscaled_has_no_second_pass():
    assert num_steps(None) == 0


@pytest.mark.parametrize(("strength", "steps"), [(0.1, 1), (0.3, 3), (0.7, 7)])
def test_the_second_pass_is_what_diffusers_makes_of_a_video_with_one_transformer(wan, frames, strength, steps):
    from diffusers import WanVideoToVideoPipeline
    from PIL import Image

    theirs = WanVideoToVideoPipeline(**{k: v for k, v in wan.components.items() if k != "transformer_2"})
    theirs.set_progress_bar_config(disable=True)
    video = [Image.fromarray(frame) for frame in frames]
    expected = call(theirs, video=video, strength=strength, height=64, width=96)
    made = call(SecondPassPipeline(wan, frames, steps), num_frames=5, height=64, width=96)

    assert made.shape == (1, 5, 64, 96, 3)
    assert np.abs(made - expected).max() < 1 / 255


def test_strength_1_makes_what_the_pipeline_makes_of_noise_alone(wan, frames):
    made = call(SecondPassPipeline(wan, frames, 10), num_frames=5, height=64, width=96)
    free = call(wan, num_frames=5, height=64, width=96)

    assert np.abs(made - free).max() < 1 / 255


def test_the_result_leaves_the_frames_further_behind_with_every_step(wan, frames):
    start = latents_of(wan, frames)
    distances = []
    for steps in (1, 3, 6, 9):
        latents = call(SecondPassPipeline(wan, frames, steps), num_frames=5, height=64, width=96, output_type="latent")
        distances.append(float((latents - start).abs().mean()))

    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[-1]


# DPMSolverMultistepScheduler's own code is not written for numpy 2 yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("skipped", [0, 1, 5, 9])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_a_model_that_knows_the_noise_gets_the_frames_back_from_every_start(wan, name, settings, skipped):
    """Flow matching moves in a straight line: with the true velocity, every schedule ends where the frames were."""
    import diffusers
    import torch

    scheduler = getattr(diffusers, name).from_config(wan.scheduler.config, **settings)
    random = torch.Generator().manual_seed(3)
    clean, noise = (torch.randn(1, 4, 2, 3, 3, generator=random) for _ in range(2))
    start_late(scheduler, skipped)

    sample = noised(scheduler, clean, noise, 10)
    scheduler.set_timesteps(10)
    shown = scheduler.timesteps
    scheduler.set_begin_index(0)
    for timestep in shown:
        sample = scheduler.step(noise - clean, timestep, sample, return_dict=False)[0]

    assert len(shown) == 10 - skipped
    assert len(scheduler.timesteps) == 10
    assert (sample - clean).abs().max() < 1e-3


def test_a_later_start_has_less_noise(wan):
    import torch

    clean, noise = torch.zeros(1, 4, 2, 3, 3), torch.ones(1, 4, 2, 3, 3)
    amounts = []
    for skipped in (0, 3, 6, 9):
        with fresh_scheduler(wan):
            start_late(wan.scheduler, skipped)
            amounts.append(round(float(noised(wan.scheduler, clean, noise, 10).mean()), 2))

    # 1, 0.7, 0.4 and 0.1 of the schedule, shifted by 3: 3 s / (1 + 2 s)
    assert amounts == [1.0, 0.88, 0.67, 0.25]


@pytest.mark.parametrize(("name", "channels", "scale"), [("wan21", 16, 8), ("wan-ti2v", 48, 16)])
def test_latents_are_on_the_scale_of_the_transformer_not_of_the_vae(load, frames, name, channels, scale):
    pipeline = load(name).pipeline
    pipeline.vae.register_to_config(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)
    raw = latents_of(pipeline, frames)
    pipeline.vae.register_to_config(latents_mean=[0.5] * channels, latents_std=[2.0] * channels)
    scaled = latents_of(pipeline, frames)

    assert raw.shape == (1, channels, 2, 64 // scale, 96 // scale)
    assert (scaled - (raw - 0.5) / 2.0).abs().max() < 1e-5


def test_a_request_at_strength_0_is_only_resized_and_reports_no_steps(load, ask):
    wan = load("wan21")
    upscale = Upscale(height=96, width=112, strength=0.0, guidance_scale=3.0, num_inference_steps=4)
    seen = []
    made = wan.generate(PreparedRequest(ask(upscale=upscale)), seen.append)

    assert np.array_equal(made, enlarge(wan.generate(ask()), 96, 112))
    assert {progress.total_steps for progress in seen} == {2}

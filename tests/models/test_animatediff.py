"""What is true of AnimateDiff only: several prompts, long videos, clip_skip, pictures by replacement, FreeInit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models import PreparedRequest
from models._free_init import low_pass
from models._free_noise import hold_then_fade, prompts_by_frame
from models._held_pictures import Held, shares
from models._pictures import cover, enlarge
from polyreel.errors import Cancelled, GenerationFailed, InvalidRequest
from polyreel.request import ImageCondition, PromptSpan, Upscale
from tests.models.conftest import Loaded, load_tiny, picture, with_pictures

#: diffusers 0.42.1 makes arrays in a way that NumPy 2 warns of.
old_arrays = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="module")
def tiny(load):
    return load("animatediff")


def spans(*prompts: str, frames: int = 8) -> tuple[PromptSpan, ...]:
    return tuple(PromptSpan(prompt, frames) for prompt in prompts)


def test_each_prompt_governs_its_own_span(tiny, ask):
    first = tiny.generate(ask(prompts=spans("a cat", "a dog", "rain", "a red dragon")))
    changed = tiny.generate(ask(prompts=spans("a cat", "a dog", "rain", "snow over paris")))

    assert first.shape == (32, 64, 64, 3)
    difference = np.abs(first.astype(int) - changed.astype(int)).mean(axis=(1, 2, 3))  # (32,)
    assert difference[28] > 1
    assert difference[4] < difference[28] / 4


def test_a_prompt_does_not_reach_back_into_the_span_before_it(tiny, ask):
    first = tiny.generate(ask(prompts=spans("a cat", "a dog", "rain", "a red dragon")))
    changed = tiny.generate(ask(prompts=spans("a cat", "snow over paris", "rain", "a red dragon")))

    difference = np.abs(first.astype(int) - changed.astype(int)).mean(axis=(1, 2, 3))  # (32,)
    # diffusers' own interpolation gives 6 against 8 here: the new prompt is half there in frame 4.
    assert difference[2:6].mean() < difference[8:16].mean() / 4


@pytest.mark.parametrize("lengths", [(1, 1), (3, 2), (15, 1), (1, 18), (20, 21, 5)])
def test_spans_of_any_length_give_exactly_their_frames(tiny, ask, lengths):
    prompts = tuple(PromptSpan(f"a cat {number}", length) for number, length in enumerate(lengths))

    assert tiny.generate(ask(prompts=prompts)).shape == (sum(lengths), 64, 64, 3)


def test_several_prompts_leave_no_trace_in_a_later_video(tiny, ask):
    before = tiny.generate(ask(num_frames=16))
    several = tiny.generate(ask(prompts=spans("a cat", "a dog")))

    assert np.array_equal(tiny.generate(ask(num_frames=16)), before)
    assert np.array_equal(tiny.generate(ask(prompts=spans("a cat", "a dog"))), several)


def test_a_cancelled_video_of_several_prompts_leaves_no_trace(tiny, ask):
    before = tiny.generate(ask(num_frames=16))

    def cancel(progress):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        tiny.generate(ask(prompts=spans("a cat", "a dog")), cancel)
    assert np.array_equal(tiny.generate(ask(num_frames=16)), before)


def test_a_prompt_begins_where_the_one_before_ends(ask):
    request = ask(prompts=(PromptSpan("a", 3), PromptSpan("b", 5), PromptSpan("c", 1)))

    assert prompts_by_frame(request) == {0: "a", 3: "b", 8: "c"}


def test_a_prompt_is_held_and_fades_in_the_last_two_frames():
    import torch

    weights = hold_then_fade(8, 16, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))

    assert weights.flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1])


def test_clip_skip_changes_the_video_and_takes_more_layers_than_there_are(tiny, ask):
    videos = {skip: tiny.generate(ask(clip_skip=skip)) for skip in (None, 0, 1, 2, 12, 99)}

    assert np.array_equal(videos[0], videos[None])
    assert not any(np.array_equal(videos[skip], videos[None]) for skip in (1, 2, 12))
    assert not np.array_equal(videos[1], videos[2])
    assert np.array_equal(videos[99], videos[12])


def test_clip_skip_works_with_several_prompts(tiny, ask):
    several = spans("a cat", "a dog")

    assert not np.array_equal(tiny.generate(ask(prompts=several, clip_skip=2)), tiny.generate(ask(prompts=several)))


# Pictures


def as_the_vae_sees_it(tiny: Loaded, shown: np.ndarray, height: int = 64, width: int = 64) -> np.ndarray:
    """Return a picture encoded and decoded by the VAE, (height, width, 3), 0..255."""
    import torch

    pipeline = tiny.pipeline
    with torch.no_grad():
        latents = pipeline.vae.encode(pipeline.video_processor.preprocess([cover(shown, height, width)])).latent_dist
        pixels = pipeline.vae.decode(latents.mode()).sample[0]  # (3, height, width), -1..1
    return ((pixels.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()


def far(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean difference of 8-bit values per frame."""
    return np.abs(left.astype(float) - right).mean(axis=(-1, -2, -3))


def test_the_first_frame_is_what_the_vae_makes_of_the_picture_and_the_others_are_not(tiny, ask):
    frames = tiny.generate(with_pictures(ask(), 0))
    plain = tiny.generate(ask())

    shown = as_the_vae_sees_it(tiny, picture())
    assert np.abs(frames[0] - shown).max() <= 1
    assert far(frames[1:], shown).min() > 5
    assert far(plain[0], shown) > 5
    assert (far(frames, plain) > 0).all()


def test_frames_near_the_picture_change_more_than_frames_far_from_it(tiny, ask):
    changes = far(tiny.generate(with_pictures(ask(num_frames=16), 0)), tiny.generate(ask(num_frames=16)))

    assert changes[1:4].mean() > changes[12:].mean()


@pytest.mark.parametrize("num_frames", [16, 40], ids=["plain", "windows"])
def test_each_picture_is_shown_by_its_own_frame(tiny, ask, num_frames):
    frames = tiny.generate(with_pictures(ask(num_frames=num_frames), 0, 7, -1))

    for number, frame in enumerate([0, 7, num_frames - 1]):
        assert np.abs(frames[frame] - as_the_vae_sees_it(tiny, picture(seed=7 + number))).max() <= 1


@old_arrays
@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ],
)
def test_pictures_and_free_init_work_with_any_scheduler(tiny, ask, name):
    other = load_tiny("animatediff", tiny.folder, scheduler={"class": name})

    frames = other.generate(with_pictures(ask(improved_sampling_seed=3, num_inference_steps=4), 0))

    assert np.abs(frames[0] - as_the_vae_sees_it(tiny, picture())).max() <= 1
    assert frames[1:].std() > 10


def with_strength(request, strength: float) -> PreparedRequest:
    prepared = with_pictures(request, 0)
    images = (replace(prepared.request.images[0], strength=strength),)
    return replace(prepared, request=replace(prepared.request, images=images))


def test_strength_says_for_how_long_the_frame_is_held(tiny, ask):
    steps = ask(num_inference_steps=4)
    plain = tiny.generate(steps)
    shown = as_the_vae_sees_it(tiny, picture())

    distances = {strength: far(tiny.generate(with_strength(steps, strength)), shown)[0] for strength in (1, 0.75, 0.25)}

    assert distances[1] < distances[0.75] < distances[0.25] <= far(plain[0], shown) + 1
    assert np.array_equal(tiny.generate(with_strength(steps, 0)), plain)


def test_shares_of_the_pictures_fall_towards_each_other_and_to_nothing():
    held = Held(np.zeros((8, 8, 3), np.uint8), 1.0)
    half = replace(held, strength=0.5)

    assert shares({0: held}, 4).tolist() == [[1, 0.75, 0.5, 0.25]]
    assert shares({4: half, 0: held}, 5).tolist() == [[1, 0.75, 0.5, 0.25, 0], [0, 0.125, 0.25, 0.375, 0.5]]
    assert shares({2: held}, 4).tolist() == [[0.5, 0.75, 1, 0.75]]


@pytest.mark.parametrize("frame", [5, -6])
def test_a_picture_for_a_frame_that_is_not_there_is_refused(tiny, ask, frame):
    request = ask(images=(ImageCondition("in/a.png", frame),))

    with pytest.raises(InvalidRequest, match=f"frame_index must be a frame of 0 to 4 .* got {frame}"):
        tiny.generate(PreparedRequest(request, images=(picture(),)))


@pytest.mark.parametrize(
    ("upscale", "size", "timesteps"),
    [(None, 64, [999, 666, 333, 0]), (Upscale(96, 96, 0.75, 3.0, 4), 96, [666, 333, 0])],
    ids=["first pass", "second pass"],
)
def test_the_frame_is_at_the_level_of_each_step(tiny, ask, upscale, size, timesteps):
    import torch

    pipeline = tiny.pipeline
    seen = seen_by_the_unet(tiny, with_pictures(ask(num_inference_steps=4, upscale=upscale), 0))[-len(timesteps) :]
    with torch.no_grad():
        pixels = pipeline.video_processor.preprocess([cover(picture(), size, size)])
        clean = pipeline.vae.encode(pixels).latent_dist.mode()[0].numpy() * 0.18215  # (4, size / 8, size / 8)

    kept = pipeline.scheduler.alphas_cumprod.numpy()[timesteps]
    noises = [
        (latents[:, 0] - share**0.5 * clean) / (1 - share) ** 0.5 for latents, share in zip(seen, kept, strict=True)
    ]
    assert noises[0].std() == pytest.approx(1, abs=0.2)
    assert all(np.allclose(noise, noises[0], atol=1e-4) for noise in noises)


# FreeInit


def seen_by_the_unet(tiny: Loaded, request) -> list[np.ndarray]:
    """Return the latents of the unconditional half that each step of a generation starts from."""
    seen = []
    handle = tiny.pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].numpy().copy()))
    try:
        tiny.generate(request)
    finally:
        handle.remove()
    return seen


def test_the_first_iteration_is_the_plain_run_and_the_second_starts_from_something_else(tiny, ask):
    plain = seen_by_the_unet(tiny, ask())
    improved = seen_by_the_unet(tiny, ask(improved_sampling_seed=3))

    assert len(improved) == 3 * len(plain)
    assert all(np.array_equal(left, right) for left, right in zip(improved, plain, strict=False))
    assert not np.array_equal(improved[2], improved[0])


def test_only_what_is_drawn_between_the_iterations_follows_the_second_seed(tiny, ask):
    first = seen_by_the_unet(tiny, ask(improved_sampling_seed=3))
    other = seen_by_the_unet(tiny, ask(improved_sampling_seed=4))
    again = seen_by_the_unet(tiny, ask(improved_sampling_seed=3))

    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    assert all(np.array_equal(left, right) for left, right in zip(first[:2], other[:2], strict=True))
    assert not np.array_equal(first[2], other[2])


@old_arrays
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_every_iteration_starts_from_noise_of_the_same_strength(tiny, ask, name):
    other = load_tiny("animatediff", tiny.folder, scheduler={"class": name})

    seen = seen_by_the_unet(other, ask(num_frames=16, improved_sampling_seed=3))

    # diffusers' own noises twice under Euler: 15 times as strong.
    assert seen[2].std() == pytest.approx(seen[0].std(), rel=0.3)


def test_the_filter_is_that_of_diffusers(tiny):
    import torch

    pipeline = tiny.pipeline
    theirs = pipeline._get_free_init_freq_filter((1, 4, 6, 8, 10), "cpu", "butterworth", 4, 0.25, 0.25)

    torch.testing.assert_close(low_pass((6, 8, 10)), theirs[0, 0])


def test_improved_sampling_works_over_several_prompts_and_is_gone_after_a_cancel(tiny, ask):
    request = ask(prompts=spans("a cat", "a dog", "rain", "snow", "a red dragon"), improved_sampling_seed=3)
    plain = tiny.generate(ask())
    assert tiny.generate(request).shape == (40, 64, 64, 3)

    def cancel(progress):
        if progress.step == 3:  # the first one of the second iteration
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        tiny.generate(request, cancel)
    assert not tiny.pipeline.free_init_enabled
    assert "_apply_free_init" not in vars(tiny.pipeline)
    assert np.array_equal(tiny.generate(ask()), plain)


# Upscaling


def test_strength_0_only_resizes(tiny, ask):
    seen = []
    [video] = tiny.videos([ask(upscale=Upscale(100, 90, 0.0, 3.0, 4))], seen.append)

    assert np.array_equal(video.frames, enlarge(tiny.generate(ask()), 100, 90))
    assert (seen[-1].step, seen[-1].total_steps) == (2, 2)
    assert video.made["passes"] == 1


@pytest.mark.parametrize(
    ("strength", "num_inference_steps", "steps"),
    [(0.01, 4, 1), (1 / 49, 49, 1), (0.29, 10, 2), (0.5, 4, 2), (1.0, 3, 3)],
)
def test_the_second_pass_runs_its_share_of_the_steps_and_at_least_one(tiny, ask, strength, num_inference_steps, steps):
    seen = []
    upscale = Upscale(72, 72, strength, 3.0, num_inference_steps)
    [video] = tiny.videos([ask(num_frames=2, num_inference_steps=1, upscale=upscale)], seen.append)

    assert [progress.step for progress in seen if progress.step][-1] == 1 + steps
    assert {progress.total_steps for progress in seen} == {1 + steps}
    assert video.made["second_pass"] == {"num_inference_steps": steps, "height": 72, "width": 72}


def test_the_second_pass_keeps_more_of_the_video_at_less_strength(tiny, ask):
    small = enlarge(tiny.generate(ask(num_frames=2)), 96, 96)
    # Not the frames themselves: a random VAE decodes something else than was encoded.
    kept = np.stack([as_the_vae_sees_it(tiny, frame, 96, 96) for frame in small])

    def distance(strength: float) -> float:
        upscale = Upscale(96, 96, strength, 3.0, 20)
        return far(tiny.generate(ask(num_frames=2, upscale=upscale)), kept).mean()

    assert 0 < distance(0.05) < distance(1.0) * 0.8


def test_a_video_of_many_prompts_is_upscaled_to_exactly_the_size(tiny, ask):
    request = ask(prompts=spans("a cat", "a dog", "rain", "snow", "a dragon"), upscale=Upscale(101, 95, 0.5, 3.0, 4))

    [video] = tiny.videos([request])

    assert video.frames.shape == (40, 101, 95, 3)
    assert video.made["second_pass"] == {"num_inference_steps": 2, "height": 104, "width": 96}


def test_a_picture_is_held_in_the_second_pass_as_well(tiny, ask):
    frames = tiny.generate(with_pictures(ask(upscale=Upscale(96, 112, 0.5, 3.0, 4)), 0))

    assert np.abs(frames[0] - as_the_vae_sees_it(tiny, picture(), 96, 112)).max() <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_everything_runs_in_half_precision(tiny, ask, dtype):
    half = load_tiny("animatediff", tiny.folder, dtype=dtype)
    request = ask(num_frames=34, improved_sampling_seed=3, upscale=Upscale(72, 72, 0.5, 3.0, 2))

    assert half.generate(with_pictures(request, 0)).shape == (34, 72, 72, 3)


def test_a_second_pass_that_fails_while_encoding_leaves_the_vae_as_it_was(tiny, ask, monkeypatch):
    half = load_tiny("animatediff", tiny.folder, dtype="bfloat16")
    before = half.generate(ask())

    def encode(*_args):
        raise RuntimeError("no room")

    monkeypatch.setattr(half.pipeline.vae, "encode", encode)
    with pytest.raises(GenerationFailed):
        half.generate(ask(upscale=Upscale(72, 72, 0.5, 3.0, 4)))

    assert np.array_equal(half.generate(ask()), before)

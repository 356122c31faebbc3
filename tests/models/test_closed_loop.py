"""Windows over time, and videos whose last frame leads back into the first.

Random weights know no motion, so a seam would not show. `smooth_motion` gives the tiny checkpoint motion modules that
do what trained ones do: they make each frame like its neighbours.
"""

from __future__ import annotations

import numpy as np
import pytest

from models._closed_loop import closed_stride, fading_back
from models._free_noise import free_noise, hold_then_fade
from models._held_pictures import Held, shares
from models._windows import motion_blocks, pyramid, window_starts, windowed
from models.tiny import build
from polyreel.errors import Cancelled
from polyreel.request import PromptSpan, Upscale
from tests.models.conftest import load_tiny, with_pictures


@pytest.fixture(scope="module")
def tiny(load):
    return load("animatediff")


@pytest.fixture(scope="module")
def smoothing(tiny_root):
    """The tiny checkpoint, with motion modules that smooth, and a scheduler whose result is what the UNet returns."""
    loaded = load_tiny("animatediff", build("animatediff", tiny_root), scheduler={"prediction_type": "sample"})
    smooth_motion(loaded.pipeline.unet)
    return loaded


def smooth_motion(unet) -> None:
    """Let each motion module add the mean over nearby frames, by attention between positions that are near."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            for module in part.motion_modules:
                for parameter in (*module.proj_in.parameters(), *module.transformer_blocks.parameters()):
                    parameter.zero_()
                [block] = module.transformer_blocks
                # Channels 0 to 3 hold sines and cosines of the position alone, 4 to 7 the picture.
                for channel in range(4):
                    module.proj_in.weight[4 + channel, channel] = 1
                    module.proj_in.weight[4 + channel, channel + 4] = -1
                    nearness = 1.5 if channel < 2 else 4.5  # the slow waves tell 6 frames away from 0
                    block.attn1.to_q.weight[channel, channel] = nearness
                    block.attn1.to_k.weight[channel, channel] = nearness
                    block.attn1.to_v.weight[4 + channel, 4 + channel] = 1
                    block.attn1.to_out[0].weight[channel, 4 + channel] = 1  # the mean, without the frame's own
                block.norm1.weight[4:] = 1
                module.proj_out.weight.copy_(torch.randn(8, 8, generator=generator) * 30)
                module.proj_out.weight[:, 4:] = 0
                module.proj_out.bias.zero_()


def steps_between(frames: np.ndarray) -> np.ndarray:
    """Return the mean difference from each frame to the next one, and from the last to the first, (F,)."""
    pixels = frames.astype(float)
    return np.abs(pixels - np.roll(pixels, -1, axis=0)).mean(axis=(1, 2, 3))


def steps_of_six_videos(smoothing, ask, **fields) -> np.ndarray:
    """Return the mean step at each place of six videos, in terms of that between neighbours; the last is the seam."""
    six = [ask(seed=seed, num_inference_steps=4, guidance_scale=1.0, **fields) for seed in range(6)]
    steps = np.mean([steps_between(smoothing.generate(request)) for request in six], axis=0)  # (F,)
    return steps / steps[:-1].mean()


@pytest.mark.parametrize("num_frames", [8, 16, 18, 24])
def test_the_step_from_the_last_frame_to_the_first_is_no_larger_than_between_neighbours(smoothing, ask, num_frames):
    steps = steps_of_six_videos(smoothing, ask, num_frames=num_frames, closed_loop=True)

    assert steps[-1] <= 1.0
    # Nor was the seam moved into the video, as by rolling the latents between steps: that gives 5 here.
    assert steps.max() < 2


@pytest.mark.parametrize(("num_frames", "ratio"), [(8, 1.8), (16, 6.0), (24, 8.0)])
def test_without_closed_loop_the_same_checkpoint_has_a_seam(smoothing, ask, num_frames, ratio):
    assert steps_of_six_videos(smoothing, ask, num_frames=num_frames)[-1] > ratio


@pytest.mark.parametrize("num_frames", [16, 20])
def test_moving_the_noise_of_a_loop_on_by_a_stride_moves_the_video_on(tiny, num_frames):
    import torch

    latents = torch.randn(1, 4, num_frames, 8, 8, generator=torch.Generator().manual_seed(1))

    def run(latents):
        with free_noise(tiny.pipeline, num_frames, closed_from=0):
            video = tiny.pipeline(
                prompt={0: "a cat"},
                num_frames=num_frames,
                height=64,
                width=64,
                num_inference_steps=2,
                latents=latents,
                output_type="np",
            )
        return video.frames[0]  # (F, 64, 64, 3), 0..1

    moved, first = run(latents.roll(4, dims=2)), run(latents)

    assert np.abs(np.roll(first, 4, axis=0) - moved).max() < 1e-3
    assert np.abs(first - moved).mean() > 0.01


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 17, 33])
def test_loops_of_any_length_have_exactly_their_frames(tiny, ask, num_frames):
    assert tiny.generate(ask(num_frames=num_frames, closed_loop=True)).shape == (num_frames, 64, 64, 3)


def test_a_loop_takes_several_prompts_and_the_last_one_leads_back_to_the_first(tiny, ask):
    spans = (PromptSpan("a cat", 8), PromptSpan("a red dragon over paris", 8))
    other_start = (PromptSpan("snow over paris", 8), spans[1])
    loop = tiny.generate(ask(prompts=spans, closed_loop=True))
    changed = tiny.generate(ask(prompts=other_start, closed_loop=True))

    difference = np.abs(loop.astype(int) - changed.astype(int)).mean(axis=(1, 2, 3))  # (16,)
    assert difference[15] > 1.5 * difference[10]  # the last frame is two thirds the first prompt


def test_prompts_of_a_loop_fade_back_before_the_end():
    import torch

    def prompt(value):
        return torch.full((1, 1, 1), float(value))

    fade = fading_back(hold_then_fade, last_start=8, num_frames=16)
    # As FreeNoise asks for spans of 8 and 8 frames: the last prompt once more in the last frame.
    fade(0, 8, prompt(0), prompt(3))
    last = fade(8, 15, prompt(3), prompt(3))

    assert last.flatten().tolist() == pytest.approx([3, 3, 3, 3, 3, 3, 2, 1])


def test_a_loop_works_with_a_picture_upscaling_and_improved_sampling(tiny, ask):
    pictures = with_pictures(ask(closed_loop=True), 0)
    upscaled = ask(closed_loop=True, upscale=Upscale(96, 96, 0.5, 3.0, 4))
    improved = ask(closed_loop=True, improved_sampling_seed=5)

    assert tiny.generate(pictures).shape == (5, 64, 64, 3)
    assert tiny.generate(upscaled).shape == (5, 96, 96, 3)
    assert tiny.generate(improved).shape == (5, 64, 64, 3)


def test_the_second_pass_of_a_loop_is_closed_too(smoothing, ask):
    upscale = Upscale(72, 72, 1.0, 1.0, 2)

    assert steps_of_six_videos(smoothing, ask, num_frames=8, closed_loop=True, upscale=upscale)[-1] <= 1.0
    assert steps_of_six_videos(smoothing, ask, num_frames=8, upscale=upscale)[-1] > 1.3


def test_a_picture_in_a_loop_is_as_near_from_behind_as_from_ahead():
    picture = np.zeros((8, 8, 3), np.uint8)

    assert shares({0: Held(picture, 1.0)}, 8, closed=True).tolist() == [[1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75]]
    assert shares({1: Held(picture, 1.0), 5: Held(picture, 0.5)}, 8, closed=True).tolist() == [
        [0.75, 1, 0.75, 0.5, 0.25, 0, 0.25, 0.5],
        [0.125, 0, 0.125, 0.25, 0.375, 0.5, 0.375, 0.25],
    ]


def test_a_loop_says_how_it_was_closed(tiny, ask):
    [loop, plain] = tiny.videos([ask(closed_loop=True), ask()])

    assert loop.made["closed_loop"] == "circular motion windows"
    assert "closed_loop" not in plain.made


def test_a_loop_is_another_video_and_leaves_no_trace_in_the_next(tiny, ask):
    before = tiny.generate(ask(num_frames=16))
    loop = tiny.generate(ask(num_frames=16, closed_loop=True))
    after = tiny.generate(ask(num_frames=16))

    assert not np.array_equal(loop, before)
    assert np.array_equal(after, before)


def test_a_cancelled_loop_leaves_no_trace(tiny, ask):
    before = tiny.generate(ask(num_frames=16))

    def cancel(progress):
        if progress.step == 1:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        tiny.generate(ask(num_frames=16, closed_loop=True), cancel)
    assert np.array_equal(tiny.generate(ask(num_frames=16)), before)
    assert all("forward" not in block.__dict__ for block in motion_blocks(tiny.pipeline))


def test_every_step_of_a_loop_is_reported(tiny, ask):
    seen = []
    tiny.generate(ask(closed_loop=True, num_inference_steps=3), seen.append)

    assert list(dict.fromkeys((p.step, p.total_steps) for p in seen if p.step)) == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("num_frames", "length", "stride", "closed", "starts"),
    [
        (16, 16, 4, False, [0]),
        (20, 16, 4, False, [0, 4]),
        (19, 16, 4, False, [0, 3]),
        (25, 16, 4, False, [0, 4, 8, 9]),
        (16, 16, 4, True, [2, 6, 10, 14]),
        (18, 16, 4, True, [2, 5, 9, 12, 16]),
        (8, 8, 2, True, [1, 3, 5, 7]),
        (3, 3, 1, True, [0, 1, 2]),
    ],
)
def test_windows_start_where_they_reach_every_frame(num_frames, length, stride, closed, starts):
    assert window_starts(num_frames, length, stride, closed=closed) == starts


@pytest.mark.parametrize(("length", "weights"), [(6, [1, 2, 3, 3, 2, 1]), (5, [1, 2, 3, 2, 1]), (1, [1])])
def test_the_middle_of_a_window_counts_most(length, weights):
    assert pyramid(length) == weights


@pytest.mark.parametrize(("length", "stride"), [(16, 4), (8, 2), (5, 1), (2, 1), (1, 1)])
def test_short_loops_have_short_strides(length, stride):
    assert closed_stride(length, 4) == stride


@pytest.mark.parametrize("num_frames", [16, 20, 32])
def test_open_windows_do_what_diffusers_free_noise_does_where_they_fit(load, num_frames):
    import torch

    ours, theirs = load("animatediff").pipeline, load("animatediff").pipeline
    theirs.enable_free_noise(context_length=16, context_stride=4)
    theirs.unet.eval()
    with torch.no_grad(), windowed(ours, num_frames, 16, 4):
        assert torch.allclose(predicted(ours, num_frames), predicted(theirs, num_frames), atol=1e-5)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("num_frames", [16, 17, 18, 19, 33])
def test_windows_that_change_nothing_change_nothing(load, num_frames, closed):
    """diffusers' own damp the last frames of 18 and 19."""
    import torch

    pipeline = load("animatediff").pipeline
    block = motion_blocks(pipeline)[0]
    with torch.no_grad(), windowed(pipeline, num_frames, 16, 4, closed=closed):
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        frames = torch.randn(2, num_frames, 8)
        assert torch.allclose(block(hidden_states=frames), frames, atol=1e-6)


def test_windows_take_motion_modules_with_a_lora_on_them(load):
    import torch
    from peft import LoraConfig

    pipeline = load("animatediff").pipeline
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    with torch.no_grad(), windowed(pipeline, 20, 16, 4):
        plain = predicted(pipeline, 20)
        pipeline.unet.add_adapter(lora)
        assert not torch.allclose(predicted(pipeline, 20), plain, atol=1e-2)


def test_the_forward_of_an_offload_hook_comes_back(load):
    pipeline = load("animatediff").pipeline
    block = motion_blocks(pipeline)[0]
    hooked = block.forward
    block.forward = hooked
    with windowed(pipeline, 16, 16, 4):
        assert block.forward is not hooked
    assert block.__dict__["forward"] is hooked


def predicted(pipeline, num_frames: int):
    """Return one prediction of the UNet, (2, 4, num_frames, 8, 8)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, num_frames, 8, 8, generator=generator)
    embeds = torch.randn(2 * num_frames, 77, 16, generator=generator)
    return pipeline.unet(latents, torch.tensor(500), encoder_hidden_states=embeds).sample

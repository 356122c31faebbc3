"""The contract of a model family, asserted for every family on every tiny checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from models import Progress, families
from polyreel.errors import Cancelled, GenerationFailed
from tests.models.conftest import FAMILY_OF, TASKS_OF, load_tiny


def test_every_family_and_every_tiny_checkpoint_is_under_this_contract():
    assert set(FAMILY_OF.values()) == set(families())


@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(1, 64, 64), (7, 64, 96), (16, 70, 90), (32, 64, 64), (33, 64, 64)]
)
def test_frames_are_exactly_as_many_and_as_large_as_asked(loaded, ask, num_frames, height, width):
    frames = loaded.generate(ask(num_frames=num_frames, height=height, width=width))

    assert frames.shape == (num_frames, height, width, 3)
    assert frames.dtype == np.uint8


def test_the_same_seed_gives_the_same_bytes_whatever_ran_in_between(loaded, ask):
    first = loaded.generate(ask())
    other_seed = loaded.generate(ask(seed=2))
    other_prompt = loaded.generate(ask("a red dragon over paris"))
    loaded.generate(ask(num_frames=17, height=96, num_inference_steps=3, guidance_scale=1.0))
    again = loaded.generate(ask())

    assert np.array_equal(again, first)
    assert distance(first, other_seed) > 1
    assert distance(first, other_prompt) > 1


def test_the_largest_seed_is_taken(loaded, ask):
    assert not np.array_equal(loaded.generate(ask(seed=2**63 - 1)), loaded.generate(ask(seed=0)))


def test_frames_have_contrast_and_motion(loaded, ask):
    frames = loaded.generate(ask(num_frames=16, height=96, width=96, num_inference_steps=4))

    assert frames.std() > 20
    assert distance(frames[0], frames[-1]) > 0.5


def test_every_step_is_reported_once_and_in_order(loaded, ask):
    seen = []
    loaded.generate(ask(num_inference_steps=3), seen.append)

    assert steps_of(seen) == [(1, 3), (2, 3), (3, 3)]


def test_progress_goes_through_the_stages_and_never_back(loaded, ask):
    seen = []
    loaded.generate(ask(num_inference_steps=3), seen.append)

    stages = [progress.stage for progress in seen]
    assert sorted(stages, key=["text_encoding", "denoising", "decoding"].index) == stages
    assert {"denoising", "decoding"} <= set(stages)
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert 0.9 <= shares[-1] <= 1


def test_a_video_knows_the_seconds_of_each_stage(loaded, ask):
    [video] = loaded.videos([ask()])

    assert set(video.seconds) == {"text_encoding", "denoising", "decoding"}
    assert all(seconds > 0 for seconds in video.seconds.values())


def test_a_single_step_is_enough(loaded, ask):
    seen = []
    frames = loaded.generate(ask(num_inference_steps=1), seen.append)

    assert steps_of(seen) == [(1, 1)]
    assert frames.shape == (5, 64, 64, 3)


def test_a_batch_of_other_prompts_and_seeds_equals_the_single_runs_within_one_grey_level(loaded, ask):
    requests = [ask(), ask("a red dragon over paris", seed=2, negative_prompt="red street")]
    seen = []
    together = loaded.videos(requests, seen.append)

    assert largest_difference(together[0].frames, loaded.generate(requests[0])) <= 1
    assert largest_difference(together[1].frames, loaded.generate(requests[1])) <= 1
    # Pictures never share a call: one sample's would condition all.
    steps = 2 if "t2v" in TASKS_OF[loaded.name] else 4
    assert steps_of(seen) == [(step, steps) for step in range(1, steps + 1)]


def test_requests_of_different_sizes_run_one_after_the_other(loaded, ask):
    requests = [ask(), ask(height=96), ask("a red dragon over paris", seed=2)]
    seen = []
    together = loaded.videos(requests, seen.append)

    assert [video.frames.shape for video in together] == [(5, 64, 64, 3), (5, 96, 64, 3), (5, 64, 64, 3)]
    assert np.array_equal(together[2].frames, loaded.generate(requests[2]))
    assert steps_of(seen) == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


@pytest.mark.parametrize("stage", ["denoising", "decoding"])
def test_a_cancelled_run_ends_at_once_and_leaves_no_trace(loaded, ask, stage):
    before = loaded.generate(ask())
    seen = []

    def cancel(progress):
        seen.append(progress)
        if progress.stage == stage:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        loaded.generate(ask(num_frames=17, height=96), cancel)

    assert sum(progress.stage == stage for progress in seen) == 1
    assert np.array_equal(loaded.generate(ask()), before)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_guidance_of_one_or_less_ignores_the_negative_prompt(loaded, ask, guidance_scale):
    plain = loaded.generate(ask(guidance_scale=guidance_scale))
    negative = loaded.generate(ask(guidance_scale=guidance_scale, negative_prompt="red street"))

    assert np.array_equal(plain, negative)


def test_the_negative_prompt_has_an_effect_under_guidance(loaded, ask):
    assert not np.array_equal(loaded.generate(ask()), loaded.generate(ask(negative_prompt="red street")))


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "\n\t",
        "🦊🌧️",
        "кошка под дождём",
        "雨の中の猫 一只猫",
        "قطة",
        "\u0000\u200d\ufeff",
        "<pad> </s> <|endoftext|>",
        "cat " * 600,
    ],
    ids=["empty", "space", "newline", "emoji", "cyrillic", "cjk", "arabic", "invisible", "special tokens", "too long"],
)
def test_any_text_is_a_prompt(loaded, ask, prompt):
    frames = loaded.generate(ask(prompt, negative_prompt=prompt, num_frames=1, num_inference_steps=1))

    assert frames.shape == (1, 64, 64, 3)


def test_a_pipeline_that_returns_nan_has_failed(load, loaded, ask):
    import torch

    broken = load(loaded.name)
    with torch.no_grad():
        next(broken.pipeline.vae.decoder.parameters()).fill_(float("nan"))

    with pytest.raises(GenerationFailed, match="NaN"):
        broken.generate(ask())


def test_a_pipeline_that_raises_has_failed_and_the_cause_is_chained(load, loaded, ask):
    broken = load(loaded.name)
    broken.pipeline.vae = None

    with pytest.raises(GenerationFailed, match="Pipeline failed") as failure:
        broken.generate(ask())
    assert isinstance(failure.value.__cause__, AttributeError)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(loaded, ask, dtype):
    half = load_tiny(loaded.name, loaded.folder, dtype=dtype)

    assert half.generate(ask(num_frames=1)).shape == (1, 64, 64, 3)


def steps_of(seen: list[Progress]) -> list[tuple[int, int]]:
    """Return (steps done, steps in all) each time a step was done."""
    counts = [(progress.step, progress.total_steps) for progress in seen if progress.step]
    return list(dict.fromkeys(counts))


def largest_difference(left: np.ndarray, right: np.ndarray) -> int:
    """Largest difference of 8-bit values."""
    return int(np.abs(left.astype(int) - right.astype(int)).max())


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Mean difference of 8-bit values."""
    return float(np.abs(left.astype(int) - right.astype(int)).mean())

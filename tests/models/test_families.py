"""The contract of a model family, asserted for every family on every tiny checkpoint.

What holds for each task (seed, progress, cancel) is in test_tasks.py, half precision beside each family's own tests.
"""

from __future__ import annotations

import numpy as np
import pytest

from models import Progress, families
from polyreel.errors import GenerationFailed
from tests.models.conftest import FAMILY_OF, TASKS_OF


def test_every_family_and_every_tiny_checkpoint_is_under_this_contract():
    assert set(FAMILY_OF.values()) == set(families())


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 64, 64), (7, 64, 96), (33, 64, 64)])
def test_frames_are_exactly_as_many_and_as_large_as_asked(loaded, ask, num_frames, height, width):
    frames = loaded.generate(ask(num_frames=num_frames, height=height, width=width))

    assert frames.shape == (num_frames, height, width, 3)
    assert frames.dtype == np.uint8


def test_the_same_request_gives_the_same_bytes_whatever_size_ran_in_between(loaded, ask):
    first = loaded.generate(ask())
    loaded.generate(ask(num_frames=17, height=96, num_inference_steps=3, guidance_scale=1.0))

    assert np.array_equal(loaded.generate(ask()), first)
    assert distance(first, loaded.generate(ask("a red dragon over paris"))) > 1


def test_the_largest_seed_is_taken(loaded, ask):
    assert not np.array_equal(loaded.generate(ask(seed=2**63 - 1)), loaded.generate(ask(seed=0)))


def test_frames_have_contrast_and_motion(loaded, ask):
    frames = loaded.generate(ask(num_frames=16, height=96, width=96, num_inference_steps=4))

    assert frames.std() > 20
    assert distance(frames[0], frames[-1]) > 0.5


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


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_guidance_of_one_or_less_ignores_the_negative_prompt(loaded, ask, guidance_scale):
    plain = loaded.generate(ask(guidance_scale=guidance_scale))
    negative = loaded.generate(ask(guidance_scale=guidance_scale, negative_prompt="red street"))

    assert np.array_equal(plain, negative)


def test_the_negative_prompt_has_an_effect_under_guidance(loaded, ask):
    assert not np.array_equal(loaded.generate(ask()), loaded.generate(ask(negative_prompt="red street")))


@pytest.mark.parametrize("name", ["wan-ti2v", "ltx", "ltx2", "animatediff"])  # one for each way of reading a prompt
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
def test_any_text_is_a_prompt(load_once, ask, name, prompt):
    frames = load_once(name).generate(ask(prompt, negative_prompt=prompt, num_frames=1, num_inference_steps=1))

    assert frames.shape == (1, 64, 64, 3)


def test_a_pipeline_that_returns_nan_has_failed(loaded, ask):
    import torch

    weight = next(loaded.pipeline.vae.decoder.parameters())
    whole = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        with pytest.raises(GenerationFailed, match="NaN"):
            loaded.generate(ask())
    finally:
        with torch.no_grad():
            weight.copy_(whole)


def test_a_pipeline_that_raises_has_failed_and_the_cause_is_chained(loaded, ask, monkeypatch):
    cause = AttributeError("the decoder has no such thing")

    def fail(*_args, **_kwargs):
        raise cause

    with monkeypatch.context() as patch:
        patch.setattr(loaded.pipeline.vae, "decode", fail)
        with pytest.raises(GenerationFailed, match="Pipeline failed") as failure:
            loaded.generate(ask())
    assert failure.value.__cause__ is cause


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

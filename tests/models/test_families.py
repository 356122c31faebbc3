"""The contract of a model family, asserted for every family on every tiny checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from models import families
from models.tiny import TINY
from polyreel.errors import Cancelled, GenerationFailed
from tests.models.conftest import FAMILY_OF


def test_every_family_and_every_tiny_checkpoint_is_under_this_contract():
    assert set(FAMILY_OF) == set(TINY)
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
    steps = []
    loaded.generate(ask(num_inference_steps=3), lambda done, total: steps.append((done, total)))

    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_single_step_is_enough(loaded, ask):
    steps = []
    frames = loaded.generate(ask(num_inference_steps=1), lambda done, total: steps.append((done, total)))

    assert steps == [(1, 1)]
    assert frames.shape == (5, 64, 64, 3)


def test_two_requests_at_once_give_what_each_gives_alone(loaded, ask):
    requests = [ask(), ask("a red dragon over paris", seed=2)]
    steps = []
    together = loaded.family.generate(loaded.pipeline, requests, lambda done, total: steps.append((done, total)))

    assert np.array_equal(together[0], loaded.generate(requests[0]))
    assert np.array_equal(together[1], loaded.generate(requests[1]))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_cancelled_run_ends_at_once_and_leaves_no_trace(loaded, ask):
    before = loaded.generate(ask())
    steps = []

    def cancel(done, total):
        steps.append(done)
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        loaded.generate(ask(num_frames=17, height=96), cancel)

    assert steps == [1]
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
    pipeline = loaded.family.load(loaded.folder, device="cpu", dtype=dtype)
    [frames] = loaded.family.generate(pipeline, [ask(num_frames=1)], lambda done, total: None)

    assert frames.shape == (1, 64, 64, 3)


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Mean difference of 8-bit values."""
    return float(np.abs(left.astype(int) - right.astype(int)).mean())

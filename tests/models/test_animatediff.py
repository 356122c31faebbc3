"""What is true of AnimateDiff only: several prompts, long videos, clip_skip."""

from __future__ import annotations

import numpy as np
import pytest

from models._free_noise import hold_then_fade, prompts_by_frame
from polyreel.errors import Cancelled
from polyreel.request import PromptSpan


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

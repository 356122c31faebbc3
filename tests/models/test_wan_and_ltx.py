"""What is true of Wan and LTX only."""

from __future__ import annotations

import numpy as np
import pytest

from polyreel.errors import NotServedYet
from polyreel.request import PromptSpan
from tests.models.conftest import load_tiny


def test_ltx_refuses_several_prompts_by_name_of_the_field(load, ask):
    spans = (PromptSpan("a cat", 8), PromptSpan("a dog", 8))

    with pytest.raises(NotServedYet, match="only Wan and AnimateDiff models take several prompts") as refusal:
        load("ltx").generate(ask(prompts=spans))
    assert refusal.value.field == "prompts"


@pytest.mark.parametrize("name", ["wan-ti2v", "ltx"])
def test_clip_skip_has_no_effect(load, ask, name):
    tiny = load(name)
    assert np.array_equal(tiny.generate(ask(clip_skip=2)), tiny.generate(ask()))


def test_the_frame_rate_is_a_condition_of_ltx(load, ask):
    tiny = load("ltx")
    assert not np.array_equal(tiny.generate(ask(num_frames=9, fps=8.0)), tiny.generate(ask(num_frames=9, fps=25.0)))


def test_the_vae_of_wan_stays_in_float32(load):
    import torch

    pipeline = load_tiny("wan-ti2v", load("wan-ti2v").folder, dtype="bfloat16").pipeline

    assert (pipeline.vae.dtype, pipeline.transformer.dtype) == (torch.float32, torch.bfloat16)

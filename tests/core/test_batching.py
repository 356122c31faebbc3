"""Which requests may share a pipeline call, and how many of them: the same as the families decide."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest

from models import PreparedRequest
from models._run import split
from polyreel.batching import batch_key, batch_limit, job_pixels
from polyreel.request import AdapterUse, ImageCondition, OutputSpec, PromptSpan, Upscale, VideoRequest
from tests.core.jobs import REQUEST

#: For every field of a request another value, and whether a request that has it may share a call with `REQUEST`.
OTHER_VALUES: dict[str, tuple[Any, bool]] = {
    "model": ("atelier", False),
    "prompts": ((PromptSpan("a red fox", 9),), True),
    "height": (96, False),
    "width": (64, False),
    "fps": (24.0, False),
    "num_inference_steps": (5, False),
    "guidance_scale": (3.5, False),
    "seed": (43, True),
    "outputs": ((OutputSpec("mp4", 8.0), OutputSpec("zip", 8.0)), True),
    "negative_prompt": ("blurry", True),
    "clip_skip": (2, False),
    "images": ((ImageCondition("in/1"),), False),
    "loras": ((AdapterUse("ink", 0.5),), False),
    "embeddings": (("hands",), False),
    "closed_loop": (True, False),
    "upscale": (Upscale(128, 192, 0.6, 3.0, 4), False),
    "improved_sampling_seed": (7, False),
    "flow_shift": (5.0, False),
}

WITH_LORAS = replace(REQUEST, loras=(AdapterUse("ink", 0.5), AdapterUse("rain")))

#: Further pairs, by what is special about them.
PAIRS: dict[str, tuple[VideoRequest, VideoRequest, bool]] = {
    "twice the same": (REQUEST, REQUEST, True),
    "nothing in common but what counts": (
        REQUEST,
        replace(REQUEST, prompts=(PromptSpan("", 9),), seed=0, negative_prompt="x", outputs=()),
        True,
    ),
    "other frames": (REQUEST, replace(REQUEST, prompts=(PromptSpan("A sunset over the ocean", 17),)), False),
    "whole numbers instead of floats": (REQUEST, replace(REQUEST, guidance_scale=3, fps=8), True),
    "no guidance, written in two ways": (
        replace(REQUEST, guidance_scale=0.0),
        replace(REQUEST, guidance_scale=-0.0),
        True,
    ),
    "the same LoRAs": (WITH_LORAS, replace(WITH_LORAS, seed=43), True),
    "the same LoRAs, other strength": (
        WITH_LORAS,
        replace(REQUEST, loras=(AdapterUse("ink", 0.6), AdapterUse("rain"))),
        False,
    ),
    "the same LoRAs, other order": (WITH_LORAS, replace(REQUEST, loras=WITH_LORAS.loras[::-1]), False),
    "two prompts each": (*(replace(REQUEST, prompts=(PromptSpan("a", 4), PromptSpan("b", 5))),) * 2, False),
    "the same picture": (*(replace(REQUEST, images=(ImageCondition("in/1"),)),) * 2, False),
    "the same embedding": (*(replace(REQUEST, embeddings=("hands",)),) * 2, False),
    "both closed": (*(replace(REQUEST, closed_loop=True),) * 2, False),
    "both upscaled": (*(replace(REQUEST, upscale=Upscale(128, 192, 0.6, 3.0, 4)),) * 2, False),
    "both with improved sampling": (*(replace(REQUEST, improved_sampling_seed=0),) * 2, False),
    **{
        f"another {field}": (REQUEST, replace(REQUEST, **{field: value}), shared)
        for field, (value, shared) in OTHER_VALUES.items()
    },
}


def test_every_field_of_a_request_is_in_the_table() -> None:
    assert set(OTHER_VALUES) == {field.name for field in fields(VideoRequest)}


@pytest.mark.parametrize(("left", "right", "shared"), PAIRS.values(), ids=PAIRS)
def test_equal_keys_mean_one_call_and_no_others_do(left: VideoRequest, right: VideoRequest, shared: bool) -> None:
    """The claim goes by the key, the families by `split`; a pair on which they differ would run alone, or not at all
    as it was claimed."""
    key = batch_key(left)
    assert (key == batch_key(right) != "") is shared
    assert (len(split([PreparedRequest(left), PreparedRequest(right)])) == 1) is shared


def test_a_key_is_short_text_that_says_nothing_of_the_prompt() -> None:
    assert re.fullmatch("[0-9a-f]{16}", batch_key(REQUEST))


def test_a_stored_request_has_the_key_that_it_had_when_it_was_submitted() -> None:
    assert batch_key(VideoRequest.from_dict(WITH_LORAS.to_dict())) == batch_key(WITH_LORAS)


@pytest.mark.parametrize(
    ("pixels", "most"),
    [(1, 8), (1000, 8), (1001, 4), (2000, 4), (2001, 1), (3000, 1), (3001, 1), (10**12, 1)],
)
def test_the_smallest_measured_size_that_is_as_large_as_a_job_says_how_many_share_a_call(
    pixels: int, most: int
) -> None:
    assert batch_limit(((1000, 8), (2000, 4), (3000, 1)), pixels) == most


def test_without_a_measurement_every_job_runs_alone() -> None:
    assert batch_limit((), 1000) == 1


def test_the_pixels_of_a_job_are_those_of_all_its_frames() -> None:
    assert job_pixels(REQUEST) == 9 * 64 * 96

"""What a video costs in tokens, memory and time, and what is refused because no device could hold it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyreel.admission import (
    Rates,
    Size,
    Work,
    check_fits,
    largest_num_frames,
    largest_size,
    memory_bytes,
    needed_bytes,
    tokens,
    weights_bytes,
    what_fits,
    work,
)
from polyreel.entries import Cost, Geometry, Native, Placement, ServedModel
from polyreel.errors import InvalidRequest
from polyreel.request import PromptSpan, Upscale, VideoRequest
from tests.core.jobs import REQUEST

WAN, TI2V, LTX, ANIMATEDIFF = (
    Geometry(frames=4, pixels=16, attention_tokens=13568),
    Geometry(frames=4, pixels=32),
    Geometry(frames=8, pixels=32, attention_tokens=14336),
    Geometry(frames=1, pixels=8),
)


def entry(geometry: Geometry = WAN, placement: Placement | None = None, **cost: float) -> ServedModel:
    return ServedModel(
        family="wan",
        checkpoint="tiny:wan",
        geometry=geometry,
        cost=Cost(**cost),
        placement=placement or Placement(mode="resident", retry_with_less=False, fp8=False),
    )


def ask(num_frames: int, height: int, width: int, **fields: object) -> VideoRequest:
    request = replace(REQUEST, prompts=(PromptSpan("a prompt", num_frames),), height=height, width=width)
    return replace(request, **fields)


@pytest.mark.parametrize(
    ("geometry", "num_frames", "height", "width", "count"),
    [
        (WAN, 81, 480, 832, 32760),  # 21 x 30 x 52, as published
        (WAN, 80, 480, 832, 32760),  # generated as 81
        (WAN, 82, 480, 832, 34320),
        (WAN, 1, 16, 16, 1),
        (TI2V, 121, 704, 1280, 27280),  # 31 x 22 x 40
        (TI2V, 121, 720, 1280, 28520),  # 720 becomes 736
        (LTX, 121, 512, 768, 6144),  # 16 x 16 x 24, as published
        (LTX, 122, 512, 768, 6528),
        (ANIMATEDIFF, 16, 512, 512, 65536),
        (Geometry(), 81, 480, 832, 0),  # not known
    ],
)
def test_a_video_has_the_tokens_that_its_vae_and_patches_make(
    geometry: Geometry, num_frames: int, height: int, width: int, count: int
) -> None:
    assert tokens(entry(geometry), num_frames, height, width) == count


def test_a_model_with_native_sizes_costs_what_it_makes_and_not_what_it_is_asked_for() -> None:
    native = Native(sizes=((192, 320), (256, 256)), num_frames=(25, 49))
    model = entry(WAN, mb_per_1k_tokens=100, mb_per_frame_megapixel=1000).model_copy(update={"native": native})
    plain = model.model_copy(update={"native": None})
    asked, made = ask(129, 720, 1280), ask(49, 192, 320)

    assert work(model, asked).denoising == work(model, made).denoising == work(plain, made).denoising
    assert work(model, asked).megapixels == pytest.approx(118.9, rel=1e-3)  # encoding has what is delivered
    # 13 x 12 x 20 tokens of 100,000 bytes; a frame of 192 x 320 takes less.
    assert needed_bytes(model, asked) == needed_bytes(plain, made) == 312_000_000
    assert needed_bytes(plain, asked) > 10e9


def test_the_work_grows_as_the_published_flops_do() -> None:
    # Per block of Wan2.1-1.3B at 32,760 tokens: linears 2.73 TFLOP, self-attention 6.59; of LTX-Video 0.72 and 0.31.
    step = {"num_inference_steps": 1, "guidance_scale": 1.0}
    assert work(entry(WAN), ask(81, 480, 832, **step)).denoising == pytest.approx(
        32.76 * (2.73 + 6.59) / 2.73, rel=2e-3
    )
    assert work(entry(LTX), ask(121, 512, 768, **step)).denoising == pytest.approx(
        6.144 * (0.72 + 0.31) / 0.72, rel=5e-3
    )


@pytest.mark.parametrize(
    ("fields", "denoising"),
    [
        ({"num_inference_steps": 1, "guidance_scale": 1.0}, 6.144),
        ({"num_inference_steps": 1, "guidance_scale": 0.0}, 6.144),
        ({"num_inference_steps": 1, "guidance_scale": 3.0}, 12.288),  # the unconditional pass
        ({"num_inference_steps": 50, "guidance_scale": 3.0}, 614.4),
        (
            {"num_inference_steps": 1, "guidance_scale": 1.0, "improved_sampling_seed": 7},
            18.432,
        ),  # FreeInit: three times
    ],
)
def test_the_work_counts_steps_guidance_and_iterations(fields: dict[str, object], denoising: float) -> None:
    made = work(entry(Geometry(frames=8, pixels=32)), ask(121, 512, 768, **fields))
    assert made.denoising == pytest.approx(denoising)
    assert made.megapixels == pytest.approx(47.579136)


@pytest.mark.parametrize(
    ("strength", "steps", "second"),
    [(0.5, 4, 2 * 2 * 24.576), (0.1, 4, 1 * 2 * 24.576), (0.0, 4, 0.0), (1.0, 4, 4 * 2 * 24.576)],
)
def test_the_second_pass_counts_at_its_own_size(strength: float, steps: int, second: float) -> None:
    upscale = Upscale(1024, 1536, strength, 3.0, steps)
    request = ask(121, 512, 768, num_inference_steps=1, guidance_scale=1.0, upscale=upscale)
    made = work(entry(Geometry(frames=8, pixels=32)), request)
    assert made.denoising == pytest.approx(6.144 + second)
    assert made.megapixels == pytest.approx(190.316544)


def test_without_a_geometry_the_work_grows_with_the_pixels() -> None:
    one = work(entry(Geometry()), ask(8, 64, 64, num_inference_steps=10, guidance_scale=1.0))
    four = work(entry(Geometry()), ask(16, 64, 128, num_inference_steps=10, guidance_scale=1.0))
    assert one.denoising == pytest.approx(0.32)
    assert four.denoising == pytest.approx(1.28)


def test_eight_steps_are_estimated_right_after_fifty() -> None:
    model = entry(LTX)
    slow, fast = ask(121, 512, 768, num_inference_steps=50), ask(121, 512, 768, num_inference_steps=8)
    rates = work(model, slow).rates(denoising_s=50.0, rest_s=2.0)
    assert work(model, slow).seconds(rates) == pytest.approx(52.0)
    assert work(model, fast).seconds(rates) == pytest.approx(10.0)


def test_rates_move_towards_the_newest() -> None:
    assert Rates(1.0, 10.0).towards(Rates(2.0, 20.0), 0.3) == Rates(pytest.approx(1.3), pytest.approx(13.0))
    assert Work(10.0, 5.0).rates(20.0, 1.0) == Rates(2.0, 0.2)


GB = 1_000_000_000


@pytest.mark.parametrize(
    ("placement", "gb"),
    [
        (Placement(mode="resident"), 20.0),
        (Placement(mode="auto"), 20.0),
        (Placement(mode="cpu_offload"), 12.0),
        (Placement(mode="group_offload"), 0.6),
        (Placement(mode="resident", fp8=True), 10.0),
    ],
)
def test_the_weights_take_what_the_placement_leaves_on_the_device(placement: Placement, gb: float) -> None:
    assert weights_bytes(entry(weights_gb=20, largest_gb=12), placement) == gb * GB


@pytest.mark.parametrize(
    ("cost", "placement", "gb"),
    [
        ({"mb_per_1k_tokens": 100}, Placement(), 3.276),
        ({"weights_gb": 10, "mb_per_1k_tokens": 100}, Placement(), 13.276),
        ({"weights_gb": 10, "mb_per_megapixel": 24}, Placement(), 10 + 0.77635584),
        ({"weights_gb": 10, "mb_per_frame_megapixel": 5000}, Placement(), 10 + 1.9968),
        # whichever of denoising and decoding is more
        ({"mb_per_1k_tokens": 100, "mb_per_frame_megapixel": 5000}, Placement(), 3.276),
        ({"mb_per_1k_tokens": 10, "mb_per_frame_megapixel": 5000}, Placement(), 1.9968),
        # a tile is 256 x 256; the finished frames are whole all the same: 12 bytes a pixel
        ({"mb_per_frame_megapixel": 50000}, Placement(vae_tiling=True), 3.2768),
        ({"mb_per_megapixel": 24}, Placement(vae_tiling=True), 0.38817792),
        # under offload the weights are not all there beside the latents
        ({"weights_gb": 10, "largest_gb": 6, "mb_per_1k_tokens": 100}, Placement(mode="cpu_offload"), 6.0),
        ({"weights_gb": 10, "largest_gb": 6, "mb_per_1k_tokens": 300}, Placement(mode="cpu_offload"), 9.828),
        ({}, Placement(), 0.0),
    ],
)
def test_the_memory_is_weights_and_the_larger_of_denoising_and_decoding(
    cost: dict[str, float], placement: Placement, gb: float
) -> None:
    assert memory_bytes(entry(**cost), Size(81, 480, 832), placement) == pytest.approx(gb * GB, abs=1)


def test_what_does_not_fit_is_refused_with_the_largest_settings_that_do() -> None:
    # 10 GB of weights, 0.1 MB a token, 14.5 GB beside the 0.8 GB that are reserved: 37,000 tokens fit.
    model = entry(weights_gb=10, largest_gb=6, mb_per_1k_tokens=100)
    device = 14_500_000_000
    check_fits(model, ask(89, 480, 832), device)  # 23 x 1560 = 35,880 tokens
    with pytest.raises(InvalidRequest) as refused:
        check_fits(model, ask(161, 480, 832), device)  # 41 x 1560
    assert str(refused.value) == (
        "161 frames of 832x480 would need about 17.2 GB of memory on ltx-tiny, and the largest GPU that serves it here "
        "has 14.5 GB. What fits: 89 frames of 832x480, or 161 frames of 624x352."
    )
    assert refused.value.field is None


def test_one_frame_more_than_what_fits_would_not() -> None:
    model, room = entry(mb_per_1k_tokens=100), 3_600_000_000  # 36,000 tokens: 23 latent frames of 1,560
    assert largest_num_frames(model, ask(161, 480, 832), room) == 89
    assert tokens(model, 89, 480, 832) == 35880
    assert tokens(model, 90, 480, 832) == 37440
    assert largest_num_frames(model, ask(161, 4096, 4096), room) == 0


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1080, 1920, "81 frames of 880x496"),
        (1920, 1080, "81 frames of 496x880"),
        (1024, 1024, "81 frames of 656x656"),
        (64, 8192, ""),  # no shape like it is at least 64 px high and fits
    ],
)
def test_the_largest_size_keeps_the_shape(height: int, width: int, size: str) -> None:
    # 36,000 tokens: 21 latent frames of 1,714. 55 x 31 = 1,705; 41 x 41 = 1,681
    assert largest_size(entry(mb_per_1k_tokens=100), ask(81, height, width), 3_600_000_000) == size


@given(st.integers(1, 300), st.integers(64, 1920), st.integers(64, 1920), st.integers(0, 20_000), st.integers(0, 8_000))
def test_what_is_named_fits_and_the_next_larger_does_not(
    num_frames: int, height: int, width: int, room_mb: int, per_frame: int
) -> None:
    model = entry(mb_per_1k_tokens=100, mb_per_frame_megapixel=per_frame, mb_per_megapixel=24)
    room = room_mb * 1_000_000
    request = ask(num_frames, height, width)
    if needed_bytes(model, request) <= room:
        return
    most = largest_num_frames(model, request, room)
    assert most < num_frames
    assert needed_bytes(model, ask(most + 1, height, width)) > room
    if most:
        assert needed_bytes(model, ask(most, height, width)) <= room


def test_the_second_pass_needs_memory_at_its_own_size() -> None:
    request = ask(81, 480, 832, upscale=Upscale(1440, 2560, 0.5, 5.0, 10))
    assert needed_bytes(entry(mb_per_1k_tokens=50), request) == 15_120_000_000  # 21 x 90 x 160 tokens


def test_an_upscaling_that_does_not_fit_is_refused_with_the_largest_target() -> None:
    model = entry(mb_per_1k_tokens=50)
    request = ask(81, 480, 832, upscale=Upscale(960, 1664, 0.5, 5.0, 10))  # 21 x 60 x 104 = 131,040 tokens
    assert what_fits(model, request, 5_800_000_000) == (  # 100,000 tokens
        "What fits: 61 frames of 832x480 upscaled to 1664x960, or 81 frames of 832x480 upscaled to 1456x832."
    )
    assert what_fits(model, request, 2_600_000_000) == (  # 36,000 tokens: the first pass has 32,760
        "What fits: 17 frames of 832x480 upscaled to 1664x960, or 81 frames of 832x480 upscaled to 864x496."
    )
    assert what_fits(model, request, 2_440_000_000) == (  # 32,800 tokens: no room to grow
        "What fits: 17 frames of 832x480 upscaled to 1664x960, or 81 frames of 832x480 without upscaling."
    )
    assert what_fits(model, request, 1_800_000_000) == (  # 20,000 tokens: the first pass does not fit
        "What fits: 9 frames of 832x480 upscaled to 1664x960, or 81 frames of 640x368."
    )


def test_weights_that_never_fit_are_said_so() -> None:
    with pytest.raises(InvalidRequest, match=r"Nothing near this size fits; use a smaller model\."):
        check_fits(entry(weights_gb=60, largest_gb=30, mb_per_1k_tokens=100), ask(81, 480, 832), 40 * GB)


@pytest.mark.parametrize(
    ("placement", "is_refused"),
    [
        (Placement(mode="resident", retry_with_less=False, fp8=False), True),
        (Placement(mode="resident", retry_with_less=True), False),  # would be tried again under offload
        (Placement(mode="auto", retry_with_less=False), False),  # would be placed under offload
        (Placement(mode="resident", retry_with_less=False, fp8=None), False),  # would be stored as float8
        (Placement(mode="cpu_offload", retry_with_less=False, fp8=False), False),
        (Placement(mode="group_offload", retry_with_less=False, fp8=False), False),
    ],
)
def test_only_what_fits_in_no_placement_that_is_allowed_is_refused(placement: Placement, is_refused: bool) -> None:
    model = entry(placement=placement, weights_gb=60, largest_gb=30, mb_per_1k_tokens=100)
    assert (needed_bytes(model, ask(81, 480, 832)) > 39 * GB) is is_refused


def test_what_is_not_known_is_not_refused() -> None:
    check_fits(entry(Geometry()), ask(257, 1280, 1280), GB)
    assert needed_bytes(entry(Geometry(), mb_per_1k_tokens=100), ask(257, 1280, 1280)) == 0


def test_a_component_larger_than_all_of_them_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="largest_gb is over weights_gb"):
        Cost(weights_gb=1, largest_gb=2)

"""A model that makes only the sizes and lengths it was trained for still delivers exactly what was asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import Checkpoint, families
from models._native import moments, scale
from models._pictures import cover
from models._second_pass import latents_of
from models.checkpoints import checkpoint_of
from models.tiny import build
from models.tiny.wan import _around, _transformer
from polyreel.entries import Native, ServedModel
from polyreel.errors import Cancelled, CheckpointUnavailable
from polyreel.request import PromptSpan, Upscale
from tests.models.conftest import Loaded, load_tiny, picture, small_request, with_pictures
from tests.models.test_resume import Kept

NATIVE = Native(sizes=((64, 64), (64, 96)), num_frames=(5, 9))


@pytest.fixture(scope="module")
def native(tiny_root: Path) -> Loaded:
    """The tiny TI2V, as if it were trained for two sizes and two lengths."""
    return load_tiny("wan-ti2v", build("wan-ti2v", tiny_root), native=NATIVE)


@pytest.fixture(scope="module")
def plain(load) -> Loaded:
    """The same without native sizes."""
    return load("wan-ti2v")


# Which size and length stands for a request


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (256, 256, (128, 128)),
        (70, 80, (128, 128)),
        (480, 832, (96, 160)),  # 1:1.73 is nearer to 1:1.67 than to 1:1.5
        (720, 1280, (96, 160)),
        (512, 768, (128, 192)),
        (60, 90, (64, 96)),
        (832, 480, (160, 96)),
        (64, 640, (96, 160)),
        (640, 64, (160, 96)),
    ],
)
def test_a_video_is_made_in_the_nearest_shape_and_among_equal_ones_in_the_nearest_area(height, width, size):
    sizes = Native(sizes=((64, 96), (128, 192), (96, 160), (128, 128), (160, 96)), num_frames=(25,))

    assert sizes.size_for(height, width) == size


def test_half_the_area_is_as_far_as_double_and_the_first_of_equals_is_taken():
    assert Native(sizes=((64, 64), (128, 128)), num_frames=(5,)).size_for(96, 96) == (128, 128)  # 2.25 and 1.78
    assert Native(sizes=((64, 96), (96, 64)), num_frames=(5,)).size_for(80, 80) == (64, 96)
    assert Native(sizes=((96, 64), (64, 96)), num_frames=(5,)).size_for(80, 80) == (96, 64)


@pytest.mark.parametrize(("asked", "made"), [(1, 25), (24, 25), (25, 25), (26, 49), (49, 49), (50, 49), (129, 49)])
def test_as_many_frames_are_made_as_were_asked_or_the_next_more_or_the_most(asked, made):
    assert Native(sizes=((64, 64),), num_frames=(25, 49)).num_frames_for(asked) == made


# Time


@pytest.mark.parametrize(
    ("made", "wanted", "expected"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 2, [0, 1]),  # up to three are cut off
        (5, 1, [0]),
        (9, 5, [0, 2, 4, 6, 8]),
        (9, 4, [0, 8 / 3, 16 / 3, 8]),
        (3, 5, [0, 0.5, 1, 1.5, 2]),
        (9, 1, [0]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_frames_are_cut_off_where_there_are_a_few_too_many_and_else_spread_from_the_first_to_the_last(
    made, wanted, expected
):
    assert moments(made, wanted) == expected


def test_frames_between_are_mixed_of_their_neighbours():
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 101, 200)])

    slower = scale(frames, moments(3, 5), 8, 8)

    assert slower[:, 0, 0, 0].tolist() == [0, 50, 101, 150, 200]  # 50.5 and 150.5, rounded to even


def test_a_clip_is_scaled_in_space_and_time_at_once_and_never_distorted():
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[:, :, 4:12] = 255  # a bar of half the width

    scaled = scale(frames, moments(2, 7), 48, 24)

    assert scaled.shape == (7, 48, 24, 3)
    assert scaled.dtype == np.uint8
    # 16 px became 48, of which the middle 24 are seen: the bar fills them, but for what the filter makes of its edges.
    assert scaled.min() > 100
    assert scaled[:, :, 3:-3].min() > 240


def test_what_is_of_the_right_size_and_only_cut_off_is_not_copied():
    frames = np.random.default_rng(1).integers(0, 256, (5, 16, 24, 3), np.uint8)

    assert np.shares_memory(scale(frames, moments(5, 4), 16, 24), frames)


# Through the family


@pytest.mark.parametrize(
    ("height", "width", "num_frames", "made"),
    [
        (64, 64, 5, {}),
        (64, 96, 9, {}),
        (64, 96, 7, {"denoised": {"num_frames": 9, "height": 64, "width": 96}}),
        (97, 101, 5, {"denoised": {"num_frames": 5, "height": 64, "width": 64}, "scaled": "lanczos"}),
        (
            135,
            241,
            14,
            {
                "denoised": {"num_frames": 9, "height": 64, "width": 96},
                "scaled": "lanczos",
                "spread_over_time": "linear",
            },
        ),
        (64, 64, 1, {"denoised": {"num_frames": 5, "height": 64, "width": 64}, "spread_over_time": "linear"}),
    ],
)
def test_any_size_and_length_is_delivered_exactly_and_the_receipt_says_what_was_denoised(
    native, height, width, num_frames, made
):
    [video] = native.videos([small_request(num_frames=num_frames, height=height, width=width)])

    assert video.frames.shape == (num_frames, height, width, 3)
    assert video.made == {"scheduler": "UniPCMultistepScheduler", "flow_shift": 5.0, "passes": 1, **made}


def test_a_request_of_a_native_size_and_length_has_the_bytes_that_it_has_without(native, plain):
    request = small_request(num_frames=5, height=64, width=96)

    assert np.array_equal(native.generate(request), plain.generate(request))


def test_what_is_delivered_is_the_native_video_scaled(native):
    small = native.generate(small_request(num_frames=9, height=64, width=96))

    large = native.generate(small_request(num_frames=17, height=128, width=192))

    assert np.array_equal(large[0], np.array(cover(small[0], 128, 192)))
    assert np.array_equal(large[-1], np.array(cover(small[-1], 128, 192)))
    assert np.array_equal(large[8], np.array(cover(small[4], 128, 192)))


def test_a_batch_is_made_at_the_native_size_and_each_video_has_its_own_receipt(native):
    first, second = native.videos([small_request(height=80, width=72), small_request(height=80, width=72, seed=2)])

    assert first.frames.shape == second.frames.shape == (5, 80, 72, 3)
    assert not np.array_equal(first.frames, second.frames)
    assert first.made == second.made
    assert first.made is not second.made
    alone = native.generate(small_request(height=80, width=72, seed=2))
    assert np.abs(second.frames.astype(int) - alone).max() <= 2  # kernels choose by the size of a batch


def test_the_first_frame_is_held_at_the_picture_as_it_looks_at_the_native_size(native):
    request = with_pictures(small_request(height=90, width=140), 0)
    seen = []
    handle = native.pipeline.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        frames = native.generate(request)
    finally:
        handle.remove()

    expected = latents_of(native.pipeline, np.array(cover(request.images[0], 64, 96))[None])
    assert frames.shape == (5, 90, 140, 3)
    assert all((hidden_states[:, :, :1] - expected).abs().max() < 1e-4 for hidden_states in seen)
    assert not np.array_equal(native.generate(replace(request, images=(picture(seed=99),))), frames)


@pytest.mark.parametrize("num_frames", [4, 12])
def test_the_last_picture_stays_the_last_frame_when_frames_are_left_out_or_spread(tiny_root, num_frames):
    loaded = load_tiny(
        "wan22-i2v", build("wan22-i2v", tiny_root), native=NATIVE.model_copy(update={"num_frames": (5,)})
    )
    whole = loaded.generate(with_pictures(small_request(num_frames=5), 0, -1))

    [video] = loaded.videos([with_pictures(small_request(num_frames=num_frames), 0, -1)])

    assert video.frames.shape == (num_frames, 64, 64, 3)
    assert np.array_equal(video.frames[0], whole[0])
    assert np.array_equal(video.frames[-1], whole[-1])
    said = {4: {"left_out_frames": [2]}, 12: {"spread_over_time": "linear"}}[num_frames]
    assert {name: video.made[name] for name in video.made.keys() & {"left_out_frames", "spread_over_time"}} == said


def test_each_prompt_governs_its_share_of_a_clip_that_is_spread_over_more_frames(native):
    prompts = (PromptSpan("a cat", 6), PromptSpan("a dog", 6))

    [video] = native.videos([small_request(prompts=prompts)])

    assert video.frames.shape == (12, 64, 64, 3)
    # 9 frames are made; the latent frames end with the frames 0, 4 and 8, which stand for 0, 6 and 11.
    assert video.made["latent_frames_of_prompts"] == [1, 2]


def test_both_passes_of_an_upscaled_video_are_of_a_native_size_and_the_frames_are_enlarged(native):
    upscale = Upscale(150, 210, 0.5, guidance_scale=3.0, num_inference_steps=4)
    request = small_request(num_frames=12, height=75, width=105, upscale=upscale)

    [second], [resized] = (
        native.videos([request]),
        native.videos([replace(request, upscale=replace(upscale, strength=0.0))]),
    )

    assert second.frames.shape == resized.frames.shape == (12, 150, 210, 3)
    assert not np.array_equal(second.frames, resized.frames)
    facts = {"scheduler": "UniPCMultistepScheduler", "flow_shift": 5.0, "scaled": "lanczos"}
    facts |= {"denoised": {"num_frames": 9, "height": 64, "width": 96}, "spread_over_time": "linear"}
    assert resized.made == {**facts, "passes": 1}
    assert second.made == {
        **facts,
        "passes": 2,
        "second_pass": {"num_inference_steps": 2, "height": 64, "width": 96},
    }


def test_an_interrupted_job_goes_on_and_a_snapshot_of_other_native_sizes_is_not_its_own(native, tiny_root):
    def stop(progress):
        if progress.step == 2:
            raise Cancelled("worker lost")

    request = native.prepared(small_request(num_frames=7, height=70, width=90, num_inference_steps=3))
    kept = Kept()
    with pytest.raises(Cancelled):
        native.family.generate(native.model, [request], stop, kept)
    others = load_tiny("wan-ti2v", native.folder, native=NATIVE.model_copy(update={"num_frames": (9, 13)}))

    [resumed] = native.family.generate(native.model, [request], lambda progress: None, Kept(state=kept.last))
    [anew] = others.family.generate(others.model, [request], lambda progress: None, Kept(state=kept.last))

    assert resumed.resumed_from > 0
    assert np.array_equal(resumed.frames, native.generate(request))
    assert anew.resumed_from == 0


def test_the_receipt_of_the_model_names_its_native_sizes_where_it_has_any(native, plain):
    assert native.model.facts()["native"] == {"sizes": [[64, 64], [64, 96]], "num_frames": [5, 9]}
    assert "native" not in plain.model.facts()


# A VAE of 8 px, as that of `models.atelier`


def test_a_small_ti2v_of_20_latent_channels_runs_with_everything_but_previews(tmp_path):
    """The VAE of 2.2 without its last halving: 8x8x4 compression, so sizes are multiples of 16."""
    from diffusers import AutoencoderKLWan, WanPipeline

    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=20,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * 20,
        latents_std=[1.0] * 20,
    )
    around = _around(vae, flow_shift=5.0)
    WanPipeline(transformer=_transformer(20, 20), expand_timesteps=True, **around).save_pretrained(tmp_path)
    loaded = load_tiny("wan-ti2v", tmp_path, native=Native(sizes=((48, 80),), num_frames=(5,)))
    shown, kept = [], Kept()

    def look(progress):
        shown.append(progress.pictures())

    request = with_pictures(small_request(num_frames=5, height=100, width=170), 0)
    [video] = loaded.family.generate(loaded.model, [request], look, kept)
    [resumed] = loaded.family.generate(loaded.model, [request], look, Kept(state=kept.saved[1]))

    assert video.frames.shape == (5, 100, 170, 3)
    assert video.made["denoised"] == {"num_frames": 5, "height": 48, "width": 80}
    assert (resumed.resumed_from, np.array_equal(resumed.frames, video.frames)) == (1, True)
    assert set(map(len, shown)) == {0}  # nobody knows how its latents look


# What is refused


@pytest.mark.parametrize(("name", "called"), [("ltx", "LTX"), ("ltx2", "LTX"), ("animatediff", "AnimateDiff")])
def test_a_family_that_makes_any_size_refuses_native_ones(tiny_root, name, called):
    checkpoint = Checkpoint(build(name, tiny_root), native=NATIVE)

    with pytest.raises(CheckpointUnavailable, match=f"^native: {called} models make .* only Wan .*; leave this out"):
        families()[name.rstrip("2")].check(checkpoint)
    with pytest.raises(CheckpointUnavailable, match=r"^native: "):
        load_tiny(name, checkpoint.path, native=NATIVE)


@pytest.mark.parametrize(
    ("name", "sizes", "num_frames", "message"),
    [
        (
            "wan-ti2v",
            ((64, 64), (48, 80)),
            (5,),
            r"native\.sizes: .* multiples of 32 and widths in multiples of 32, got \[48, 80\]; .*: \[64, 96\]\.",
        ),
        ("wan21", ((48, 80),), (5, 24), r"native\.num_frames: this checkpoint makes 4k \+ 1 frames, got 24; .*: 25\."),
    ],
)
def test_what_a_checkpoint_cannot_make_is_refused_with_the_nearest_that_it_can(
    tiny_root, name, sizes, num_frames, message
):
    checkpoint = Checkpoint(build(name, tiny_root), native=Native(sizes=sizes, num_frames=num_frames))

    with pytest.raises(CheckpointUnavailable, match=f"^{message}$"):
        families()["wan"].check(checkpoint)


def test_a_checkpoint_has_the_native_sizes_of_its_entry(tiny_root):
    entry = ServedModel(family="wan", checkpoint="tiny:wan-ti2v", native=NATIVE)

    assert checkpoint_of(entry, tiny_root).native == NATIVE
    assert checkpoint_of(entry.model_copy(update={"native": None}), tiny_root).native is None

"""Wan: which checkpoint does what, pictures, two transformers, schedules, and what the receipt says of them."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from models import Checkpoint, PreparedRequest, families
from models._native import moments
from models._pictures import cover, enlarge
from models._second_pass import latents_of
from models.tiny import build
from polyreel.errors import Cancelled, CheckpointUnavailable, NotServedYet
from polyreel.request import Upscale
from tests.models.conftest import load_tiny, picture, with_pictures

TI2V, T2V21, T2V22, I2V21, I2V22 = "wan-ti2v", "wan21", "wan22-t2v", "wan21-i2v", "wan22-i2v"


@pytest.fixture(scope="module")
def wan(load):
    """Load a tiny Wan, each one once."""
    return cache(load)


@contextmanager
def calls(*modules):
    """Collect the keyword arguments of every forward of each module."""
    seen = [[] for _ in modules]
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, kwargs, own=own: own.append(kwargs), with_kwargs=True)
        for module, own in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def transformers(loaded):
    return loaded.pipeline.transformer, loaded.pipeline.transformer_2


def edited(tiny_root, tmp_path, name, file, **changes):
    """Copy a tiny checkpoint and change one of its json files."""
    folder = tmp_path / "edited"
    shutil.copytree(build(name, tiny_root), folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return Checkpoint(folder)


# Checkpoints


@pytest.mark.parametrize(
    ("name", "changes"),
    [(T2V22, {"boundary_ratio": None}), (I2V22, {"boundary_ratio": None}), (T2V21, {"boundary_ratio": 0.875})],
)
def test_a_boundary_without_a_second_transformer_is_refused_and_the_other_way_round(tiny_root, tmp_path, name, changes):
    checkpoint = edited(tiny_root, tmp_path, name, "model_index.json", **changes)

    with pytest.raises(CheckpointUnavailable, match=r"model_index\.json has boundary_ratio .* both belong together"):
        families()["wan"].check(checkpoint)


def test_a_damaged_configuration_is_named(tiny_root, tmp_path):
    checkpoint = edited(tiny_root, tmp_path, T2V21, "transformer/config.json")
    (checkpoint.path / "transformer" / "config.json").write_text("{")

    with pytest.raises(CheckpointUnavailable, match=r"transformer/config\.json is missing or damaged"):
        families()["wan"].check(checkpoint)


def test_a_checkpoint_for_two_pictures_takes_two_and_no_fewer(wan, tmp_path, ask):
    """Wan2.1-FLF2V-14B: an I2V layout with a position embedding for the 2 x 257 tokens of two pictures."""
    from diffusers import WanTransformer3DModel

    pipeline = load_tiny(I2V21, wan(I2V21).folder).pipeline
    config = {**pipeline.transformer.config, "pos_embed_seq_len": 514}
    pipeline.transformer = WanTransformer3DModel.from_config(config).eval()
    pipeline.save_pretrained(tmp_path)

    assert families()["wan"].check(Checkpoint(tmp_path)) == {"first_last", "upscale", "prompt_travel"}
    loaded = load_tiny(I2V21, tmp_path)
    assert loaded.generate(with_pictures(ask(), 0, -1)).shape == (5, 64, 64, 3)
    with pytest.raises(NotServedYet, match="are the task i2v, and this checkpoint does first_last, prompt_travel,"):
        loaded.generate(with_pictures(ask(), 0))


# Pictures


@pytest.mark.parametrize("name", [I2V21, I2V22])
@pytest.mark.parametrize(("frames", "last_mask"), [((0,), [0, 0, 0, 0]), ((0, -1), [0, 0, 0, 1])])
def test_the_transformer_sees_which_frames_have_a_picture_and_their_latents(wan, ask, name, frames, last_mask):
    loaded, request = wan(name), with_pictures(ask(), *frames)
    with calls(loaded.pipeline.transformer) as [seen]:
        loaded.generate(request)

    hidden_states = seen[0]["hidden_states"]
    assert hidden_states.shape == (1, 36, 2, 8, 8)
    mask = hidden_states[0, 16:20, :, 0, 0]  # (frames of a latent, latent frames)
    assert mask[:, 0].tolist() == [1, 1, 1, 1]
    assert mask[:, 1].tolist() == last_mask
    # The VAE is causal: what it makes of the first frame knows nothing of the others.
    first = latents_of(loaded.pipeline, np.array(cover(request.images[0], 64, 64))[None])
    assert (hidden_states[:, 20:, :1] - first).abs().max() < 1e-4


def test_wan_2_1_attends_to_the_clip_tokens_of_each_picture(wan, ask):
    loaded = wan(I2V21)
    with calls(loaded.pipeline.transformer) as [seen]:
        loaded.generate(with_pictures(ask(), 0))
        loaded.generate(with_pictures(ask(), 0, -1))

    shapes = {tuple(kwargs["encoder_hidden_states_image"].shape) for kwargs in seen}
    assert shapes == {(1, 257, 32), (1, 514, 32)}


def test_ti2v_holds_the_first_latent_frame_at_the_picture(wan, ask):
    loaded, request = wan(TI2V), with_pictures(ask(), 0)
    with calls(loaded.pipeline.transformer) as [seen]:
        loaded.generate(request)

    expected = latents_of(loaded.pipeline, np.array(cover(request.images[0], 64, 64))[None])
    for kwargs in seen:
        assert (kwargs["hidden_states"][:, :, :1] - expected).abs().max() < 1e-4
        timestep = kwargs["timestep"][0]  # one per token: 2 x 2 in each of 2 latent frames
        assert timestep[:4].tolist() == [0, 0, 0, 0]
        assert timestep[4:].min() > 0


@pytest.mark.parametrize("name", [TI2V, I2V21, I2V22])
def test_another_picture_makes_another_video(wan, ask, name):
    request = with_pictures(ask(), 0)
    other = replace(request, images=(picture(seed=99),))

    assert not np.array_equal(wan(name).generate(request), wan(name).generate(other))


def test_the_last_picture_makes_another_last_frame(wan, ask):
    request = with_pictures(ask(), 0, -1)
    other = replace(request, images=(request.images[0], picture(seed=99)))

    assert not np.array_equal(wan(I2V22).generate(request)[-1], wan(I2V22).generate(other)[-1])


def test_the_last_frame_has_two_names_and_pictures_may_come_in_any_order(wan, ask):
    expected = wan(I2V22).generate(with_pictures(ask(), 0, -1))
    by_number = with_pictures(ask(), 0, 4)
    swapped = PreparedRequest(
        replace(by_number.request, images=tuple(reversed(by_number.request.images))),
        images=tuple(reversed(by_number.images)),
    )

    assert np.array_equal(wan(I2V22).generate(by_number), expected)
    assert np.array_equal(wan(I2V22).generate(swapped), expected)


def test_the_last_picture_is_the_last_frame_of_a_file_that_has_fewer_frames_than_were_made(wan, ask):
    [whole] = wan(I2V22).videos([with_pictures(ask(num_frames=5), 0, -1)])
    [short] = wan(I2V22).videos([with_pictures(ask(num_frames=4), 0, -1)])

    assert np.array_equal(short.frames, whole.frames[[0, 1, 3, 4]])
    assert short.made["left_out_frames"] == [2]
    assert "left_out_frames" not in whole.made


def test_without_a_last_picture_the_end_is_cut_off(wan, ask):
    [whole] = wan(I2V22).videos([with_pictures(ask(num_frames=5), 0)])
    [short] = wan(I2V22).videos([with_pictures(ask(num_frames=4), 0)])

    assert np.array_equal(short.frames, whole.frames[:4])
    assert "left_out_frames" not in short.made


@pytest.mark.parametrize(
    ("made", "wanted", "left_out"),
    [(25, 25, []), (25, 24, [12]), (25, 23, [6, 18]), (25, 22, [4, 12, 20]), (5, 3, [1, 3]), (5, 2, [1, 2, 3])],
)
def test_frames_are_left_out_evenly_and_never_the_first_or_last(made, wanted, left_out):
    kept = moments(made, wanted, keeps_last=True)

    assert sorted(set(range(made)) - set(kept)) == left_out
    assert len(kept) == wanted


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        (T2V21, (0,), r"the task i2v, and this checkpoint does prompt_travel, t2v, upscale"),
        (T2V22, (0,), r"the task i2v, and this checkpoint does prompt_travel, t2v, upscale"),
        (TI2V, (0, -1), r"the task first_last, and this checkpoint does i2v, prompt_travel, t2v, upscale"),
        (I2V21, (), r"the task t2v, and this checkpoint does first_last, i2v, prompt_travel, upscale"),
        (I2V22, (), r"the task t2v, and this checkpoint does first_last, i2v, prompt_travel, upscale"),
        (I2V22, (-1,), r"frames \[4\] are the task keyframes"),
        (I2V22, (0, 2), r"frames \[0, 2\] are the task keyframes"),
    ],
)
def test_what_a_checkpoint_cannot_do_is_refused_by_name_of_the_field(wan, ask, name, frames, message):
    with pytest.raises(NotServedYet, match=message) as refusal:
        wan(name).generate(with_pictures(ask(), *frames))
    assert refusal.value.field == "images"


# Guidance and two transformers


@pytest.mark.parametrize(("guidance_scale", "per_step"), [(4.0, 2), (1.0, 1), (0.0, 1)])
@pytest.mark.parametrize("name", [TI2V, T2V21, T2V22, I2V21, I2V22])
def test_guidance_of_one_or_less_runs_one_forward_a_step(wan, ask, name, guidance_scale, per_step):
    loaded = wan(name)
    modules = [module for module in transformers(loaded) if module is not None]
    with calls(*modules) as seen:
        loaded.generate(ask(guidance_scale=guidance_scale, num_frames=1))

    assert sum(len(own) for own in seen) == 2 * per_step


@pytest.mark.parametrize("name", [T2V22, I2V22])
def test_the_second_transformer_takes_over_below_the_boundary_under_the_same_guidance(wan, ask, name):
    with calls(*transformers(wan(name))) as [high, low]:
        wan(name).generate(ask(num_inference_steps=4))

    # 4 steps shifted by 3 are at 999, 900, 750 and 500; the boundaries at 875 (T2V) and 900 (I2V).
    assert [int(kwargs["timestep"][0]) for kwargs in high] == [999, 999, 900, 900]
    assert [int(kwargs["timestep"][0]) for kwargs in low] == [750, 750, 500, 500]


@pytest.mark.parametrize("name", [T2V22, I2V22])
def test_the_step_cache_covers_both_transformers_and_a_cancelled_run_leaves_nothing_in_it(wan, ask, name):
    # A threshold over everything: the blocks behind the first one run once per guidance branch of a transformer.
    cached = load_tiny(name, wan(name).folder, step_cache=100.0)
    behind = [module.blocks[1].attn1 for module in transformers(cached)]
    with calls(*behind) as [high, low]:
        first = cached.generate(ask(num_inference_steps=6))

    def cancel(progress):
        if progress.step == 5:
            raise Cancelled("stop")

    assert (len(high), len(low)) == (2, 2)
    with pytest.raises(Cancelled):
        cached.generate(ask(num_inference_steps=6, height=96), cancel)
    assert np.array_equal(cached.generate(ask(num_inference_steps=6)), first)


def test_the_attention_backend_is_set_on_both_transformers(wan):
    loaded = load_tiny(T2V22, wan(T2V22).folder, attention="_native_math")

    for transformer in transformers(loaded):
        assert transformer.blocks[0].attn1.processor._attention_backend == "_native_math"


def test_the_vae_alone_stays_in_float32(wan):
    import torch

    one = load_tiny(I2V21, wan(I2V21).folder, dtype="bfloat16").pipeline
    two = load_tiny(T2V22, wan(T2V22).folder, dtype="bfloat16").pipeline

    assert {one.vae.dtype, two.vae.dtype} == {torch.float32}
    halves = (one.transformer, one.text_encoder, one.image_encoder, two.transformer, two.transformer_2)
    assert {module.dtype for module in halves} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", [TI2V, T2V21, T2V22, I2V21, I2V22])
def test_half_precision_runs_with_pictures_and_a_second_pass(wan, ask, name, dtype):
    half = load_tiny(name, wan(name).folder, dtype=dtype)
    frames = (0, -1) if name in (I2V21, I2V22) else (0,) if name == TI2V else ()
    request = ask(num_frames=2, upscale=Upscale(96, 96, 0.5, guidance_scale=3.0, num_inference_steps=2))

    assert half.generate(with_pictures(request, *frames)).shape == (2, 96, 96, 3)


# Upscaling


@pytest.mark.parametrize("name", [TI2V, T2V21, T2V22, I2V21, I2V22])
def test_a_stronger_second_pass_leaves_the_enlarged_frames_further_behind(wan, ask, name):
    loaded = wan(name)
    upscale = Upscale(96, 96, 0.0, guidance_scale=1.0, num_inference_steps=8)
    # What a pass without any noise would give: the tiny VAE does not give back what it was given.
    start = through_the_vae(loaded.pipeline, enlarge(loaded.generate(ask()), 96, 96))
    distances = [
        np.abs(loaded.generate(ask(upscale=replace(upscale, strength=strength))) - start).mean()
        for strength in (0.125, 0.5, 1.0)
    ]

    assert distances == sorted(distances)
    assert distances[0] < 0.8 * distances[-1]


def through_the_vae(pipeline, frames):
    """Encode and decode frames; floats 0..255."""
    import torch

    config = pipeline.vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        video = pipeline.vae.decode(latents_of(pipeline, frames) * std + mean).sample
    return 255 * pipeline.video_processor.postprocess_video(video, output_type="np")[0]


def test_a_weak_second_pass_belongs_to_the_second_transformer_under_its_own_guidance(wan, ask):
    upscale = Upscale(96, 96, 0.25, guidance_scale=1.0, num_inference_steps=4)
    with calls(*transformers(wan(T2V22))) as [high, low]:
        wan(T2V22).generate(ask(guidance_scale=4.0, num_inference_steps=1, upscale=upscale))

    assert [int(kwargs["timestep"][0]) for kwargs in high] == [999, 999]
    assert [int(kwargs["timestep"][0]) for kwargs in low] == [500]
    assert [tuple(kwargs["hidden_states"].shape) for kwargs in low] == [(1, 16, 2, 12, 12)]


@pytest.mark.parametrize("name", [TI2V, I2V21])
def test_the_second_pass_sees_the_picture_at_its_own_size(wan, ask, name):
    loaded = wan(name)
    upscale = Upscale(96, 128, 0.5, guidance_scale=1.0, num_inference_steps=2)
    request = with_pictures(ask(guidance_scale=1.0, upscale=upscale), 0)
    with calls(loaded.pipeline.transformer) as [seen]:
        loaded.generate(request)

    expected = latents_of(loaded.pipeline, np.array(cover(request.images[0], 96, 128))[None])
    channels = expected.shape[1]
    assert (seen[-1]["hidden_states"][:, -channels:, :1] - expected).abs().max() < 1e-4


# The receipt


UPSCALED = Upscale(100, 90, 0.5, guidance_scale=3.0, num_inference_steps=4)


@pytest.mark.parametrize(
    ("name", "fields", "made"),
    [
        (T2V21, {}, {"flow_shift": 3.0, "passes": 1}),
        (T2V22, {}, {"flow_shift": 3.0, "passes": 1, "boundary_ratio": 0.875}),
        (I2V22, {}, {"flow_shift": 3.0, "passes": 1, "boundary_ratio": 0.9}),
        (
            T2V21,
            {"num_frames": 4, "height": 70, "width": 90},
            {"flow_shift": 3.0, "passes": 1, "denoised": {"num_frames": 5, "height": 80, "width": 96}},
        ),
        (
            TI2V,
            {"height": 70, "width": 90},
            {"flow_shift": 5.0, "passes": 1, "denoised": {"num_frames": 5, "height": 96, "width": 96}},
        ),
        (
            T2V21,
            {"upscale": UPSCALED},
            {
                "flow_shift": 3.0,
                "passes": 2,
                "second_pass": {"num_inference_steps": 2, "height": 112, "width": 96},
            },
        ),
        (T2V21, {"upscale": replace(UPSCALED, strength=0.0)}, {"flow_shift": 3.0, "passes": 1}),
    ],
)
def test_the_receipt_says_what_was_really_run(wan, ask, name, fields, made):
    [video] = wan(name).videos([ask(**fields)])

    assert video.made == {"scheduler": "UniPCMultistepScheduler", **made}
    assert json.loads(json.dumps(video.made)) == video.made


@pytest.mark.parametrize(
    ("changes", "scheduler"),
    [
        ({"flow_shift": 5.0}, "UniPCMultistepScheduler"),
        ({"class": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}, "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_the_catalogue_sets_the_flow_shift_which_changes_the_video_and_is_in_the_receipt(wan, ask, changes, scheduler):
    shifted = load_tiny(T2V21, wan(T2V21).folder, scheduler=changes)
    request = ask(upscale=UPSCALED)
    [before], [after] = wan(T2V21).videos([request]), shifted.videos([request])

    assert (before.made["flow_shift"], after.made["flow_shift"]) == (3.0, 5.0)
    assert after.made["scheduler"] == scheduler
    assert np.abs(before.frames.astype(int) - after.frames).mean() > 0.1


def test_the_flow_shift_of_a_request_does_what_the_catalogues_does_and_only_for_that_request(wan, ask):
    shifted = load_tiny(T2V21, wan(T2V21).folder, scheduler={"flow_shift": 5.0})
    plain, asked = ask(upscale=UPSCALED), ask(upscale=UPSCALED, flow_shift=5.0)
    [before], [of_request], [after] = (wan(T2V21).videos([request]) for request in (plain, asked, plain))

    assert of_request.made["flow_shift"] == 5.0
    assert np.array_equal(of_request.frames, shifted.videos([plain])[0].frames)
    assert not np.array_equal(of_request.frames, before.frames)
    assert (after.made["flow_shift"], np.array_equal(after.frames, before.frames)) == (3.0, True)


def test_the_videos_of_a_batch_do_not_share_their_receipts(wan, ask):
    one, two = wan(T2V21).videos([ask(), ask(seed=2)])

    assert one.made == two.made
    assert one.made is not two.made

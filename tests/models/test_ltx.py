"""What is true of LTX only: its layouts, where pictures go, the sound of LTX-2, and its two ways of upscaling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import Checkpoint, families
from models._ltx2 import cut, guidance_of, legal_side
from models._pictures import cover, enlarge
from models.tiny import build
from polyreel.entries import Placement
from polyreel.errors import CheckpointUnavailable, GenerationFailed, NotServedYet
from polyreel.formats import Audio
from polyreel.request import Upscale
from tests.models.conftest import Loaded, load_tiny, picture, with_pictures

ALL = {"t2v", "i2v", "first_last", "keyframes", "upscale"}
LTX2 = ["ltx2", "ltx23"]
UPSAMPLER = {"ltx": "ltx-upsampler", "ltx-091": "ltx-upsampler", "ltx2": "ltx2-upsampler", "ltx23": "ltx2-upsampler"}


@pytest.fixture(scope="module")
def tiny(load) -> Any:
    """Load a tiny checkpoint once for this module."""
    return cache(load)


@pytest.fixture(scope="module")
def with_upsampler(tiny_root) -> Any:
    """Load a tiny checkpoint with its latent upsampler, once for this module."""

    @cache
    def load(name: str) -> Loaded:
        return load_tiny(name, build(name, tiny_root), parts={"upsampler": build(UPSAMPLER[name], tiny_root)})

    return load


@contextmanager
def calls_of(module: Any) -> Iterator[list[dict[str, Any]]]:
    """Collect the keyword arguments of every call of a module."""
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(lambda _module, _args, kwargs: calls.append(kwargs), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def changed(folder: Path, target: Path, file: str, **values: Any) -> Path:
    """Copy a checkpoint and change values in one of its json files."""
    copy = Path(shutil.copytree(folder, target / folder.name))
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


# Layouts


@pytest.mark.parametrize(
    ("name", "class_name", "tasks"),
    [
        ("ltx-091", "LTXPipeline", {"t2v", "i2v", "upscale"}),
        ("ltx-091", "LTXImageToVideoPipeline", {"t2v", "i2v", "upscale"}),
        ("ltx-091", "LTXConditionPipeline", ALL),
        ("ltx", "LTXPipeline", ALL),
        ("ltx", "LTXImageToVideoPipeline", ALL),
        ("ltx2", "LTX2Pipeline", ALL),
        ("ltx2", "LTX2ImageToVideoPipeline", ALL),
        ("ltx2", "LTX2ConditionPipeline", ALL),
    ],
)
def test_the_tasks_follow_from_the_class_and_the_vae(tiny_root, tmp_path, name, class_name, tasks):
    folder = changed(build(name, tiny_root), tmp_path, "model_index.json", _class_name=class_name)

    assert families()["ltx"].check(Checkpoint(folder)) == tasks


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("ltx-091", "LTXImageToVideoPipeline"), ("ltx", "LTXConditionPipeline"), ("ltx2", "LTX2ConditionPipeline")],
)
def test_the_class_that_a_folder_names_does_not_change_the_video(tiny, tmp_path, ask, name, class_name):
    folder = changed(tiny(name).folder, tmp_path, "model_index.json", _class_name=class_name)
    other = load_tiny(name, folder)

    assert type(other.pipeline).__name__ == class_name
    assert np.array_equal(other.generate(ask()), tiny(name).generate(ask()))


def test_a_checkpoint_without_the_configuration_of_its_vae_is_named(tiny_root, tmp_path):
    folder = Path(shutil.copytree(build("ltx", tiny_root), tmp_path / "ltx"))
    (folder / "vae" / "config.json").unlink()

    with pytest.raises(CheckpointUnavailable, match=r"vae/config\.json is missing"):
        families()["ltx"].check(Checkpoint(folder))


@pytest.mark.parametrize("name", ["ltx-091", "ltx", "ltx-condition", "ltx2", "ltx23"])
def test_what_was_denoised_is_told_when_it_is_not_what_was_asked(tiny, ask, name):
    [exact] = tiny(name).videos([ask(num_frames=9)])
    [video] = tiny(name).videos([ask(num_frames=10, height=70)])

    assert exact.made["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert exact.made["passes"] == 1
    assert "denoised" not in exact.made
    assert video.made["denoised"] == {"num_frames": 17, "height": 96, "width": 64}


def test_eight_steps_without_guidance_are_the_schedule_of_the_distilled_checkpoints(tiny, tiny_root, ask):
    from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES

    unshifted = {"use_dynamic_shifting": False, "shift_terminal": None}
    for loaded in (tiny("ltx-condition"), load_tiny("ltx23", build("ltx23", tiny_root), scheduler=unshifted)):
        with calls_of(loaded.pipeline.transformer) as calls:
            loaded.generate(ask(num_inference_steps=8, guidance_scale=1.0))

        assert len(calls) == 8
        timesteps = [float(call["timestep"].flatten()[0]) for call in calls]
        assert timesteps == pytest.approx([1000 * sigma for sigma in DISTILLED_SIGMA_VALUES])


@pytest.mark.parametrize("name", ["ltx-091", "ltx"])
def test_slices_of_a_vae_that_knows_the_noise_level_run_alone(tiny_root, ask, name):
    # diffusers 0.42.1 pairs the samples of such a batch with each other.
    placement = Placement(mode="resident", vae_slicing=True)
    family = families()["ltx"]
    model = family.load(Checkpoint(build(name, tiny_root)), device="cpu", dtype="float32", placement=placement)
    loaded = Loaded(name, build(name, tiny_root), model)
    seen = []

    together = loaded.videos([ask(), ask(seed=2)], seen.append)

    assert seen[-1].total_steps == 4
    assert np.array_equal(together[1].frames, loaded.generate(ask(seed=2)))


# Pictures


@pytest.mark.parametrize("name", ["ltx", "ltx-condition"])
def test_a_picture_of_ltx_video_is_placed_at_exactly_its_frame(tiny, ask, name):
    with calls_of(tiny(name).pipeline.transformer) as calls:
        tiny(name).generate(with_pictures(ask(num_frames=12, fps=8.0, guidance_scale=1.0), 0, 3, -1))

    # 17 frames are made of 12: 3 latent frames of 2 x 2 tokens, behind one frame of tokens for each later picture.
    seconds = calls[0]["video_coords"][0, 0]
    assert seconds[:8].tolist() == [3 / 8] * 4 + [11 / 8] * 4
    assert seconds[8:].tolist() == [0.0] * 4 + [1 / 8] * 4 + [9 / 8] * 4


@pytest.mark.parametrize("name", LTX2)
def test_a_picture_of_ltx2_is_placed_at_exactly_its_frame(tiny, ask, name):
    with calls_of(tiny(name).pipeline.transformer) as calls:
        tiny(name).generate(with_pictures(ask(num_frames=12, fps=8.0, guidance_scale=1.0), 0, 3, -1))

    spans = calls[0]["video_coords"][0, 0]  # (tokens, begin and end)
    assert spans[12:].tolist() == [[3 / 8, 4 / 8]] * 4 + [[11 / 8, 12 / 8]] * 4


@pytest.mark.parametrize("name", ["ltx", "ltx-condition", *LTX2])
def test_the_first_frame_is_the_picture_before_the_first_step_and_strength_says_how_much(tiny, ask, name):
    strict = with_pictures(ask(guidance_scale=1.0), 0)
    loose = replace(strict, request=replace(strict.request, images=(replace(strict.request.images[0], strength=0.4),)))
    timesteps = []
    for prepared in (strict, loose):
        with calls_of(tiny(name).pipeline.transformer) as calls:
            tiny(name).generate(prepared)
        timesteps.append(calls[0]["timestep"][0].tolist())

    # Tokens of the first latent frame, then of the second.
    assert timesteps[0] == pytest.approx([0.0] * 4 + [1000.0] * 4)
    assert timesteps[1] == pytest.approx([600.0] * 4 + [1000.0] * 4)


def test_a_picture_for_a_later_frame_is_refused_by_a_checkpoint_that_knows_the_first_only(tiny, ask):
    with pytest.raises(NotServedYet, match=r"pictures for the frames \[0, 4\]") as refusal:
        tiny("ltx-091").generate(with_pictures(ask(), 0, -1))
    assert refusal.value.field == "images"


# Guidance of LTX-2


@pytest.mark.parametrize(("name", "runs"), [("ltx2", 2), ("ltx23", 3)])
def test_guidance_of_ltx2_runs_for_what_its_checkpoint_can_do(tiny, ask, name, runs):
    with calls_of(tiny(name).pipeline.transformer) as calls:
        tiny(name).generate(ask(num_inference_steps=2))

    assert len(calls) == 2 * runs
    # The prompts together, then each further kind with the prompt alone.
    assert [len(call["hidden_states"]) for call in calls[:runs]] == [2] + [1] * (runs - 1)


def test_the_generation_is_told_by_the_transformer():
    common = {"num_layers": 48, "perturbed_attn": True}

    assert guidance_of({**common, "cross_attn_mod": False}, 4.0) == {
        "guidance_scale": 4.0,
        "stg_scale": 1.0,
        "modality_scale": 3.0,
        "guidance_rescale": 0.7,
        "audio_guidance_scale": 7.0,
        "audio_stg_scale": 1.0,
        "audio_modality_scale": 3.0,
        "audio_guidance_rescale": 0.7,
        "spatio_temporal_guidance_blocks": [29],
        "use_cross_timestep": False,
    }
    later = guidance_of({**common, "cross_attn_mod": True}, 4.0)
    assert (later["spatio_temporal_guidance_blocks"], later["use_cross_timestep"]) == ([28], True)


def test_without_guidance_every_kind_of_it_is_off():
    off = guidance_of({"num_layers": 48, "perturbed_attn": True, "cross_attn_mod": True}, 0.0)

    assert {off[name] for name in off if name.endswith("guidance_scale")} == {1.0}
    assert {off[name] for name in off if name.endswith(("stg_scale", "rescale"))} == {0.0}
    assert {off[name] for name in off if name.endswith("modality_scale")} == {1.0}


@pytest.mark.parametrize("name", LTX2)
def test_text_to_video_is_what_diffusers_makes_with_the_same_arguments(tiny, ask, name):
    import torch

    [video] = tiny(name).videos([ask(num_frames=9)])
    pipeline = tiny(name).pipeline
    is_20 = name == "ltx2"
    expected = pipeline(
        prompt=["a cat in the rain"],
        negative_prompt=[""],
        num_frames=9,
        height=64,
        width=64,
        frame_rate=8.0,
        num_inference_steps=2,
        guidance_scale=4.0,
        spatio_temporal_guidance_blocks=[1],
        use_cross_timestep=not is_20,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    )

    assert np.abs(video.frames.astype(int) - np.rint(expected.frames[0] * 255).astype(int)).max() <= 1
    length = min(len(video.audio.samples), expected.audio.shape[2])
    assert np.allclose(video.audio.samples[:length], expected.audio[0].T.numpy()[:length], atol=1e-5)


@pytest.mark.parametrize("name", LTX2)
def test_the_prompt_is_never_rewritten(tiny, ask, monkeypatch, name):
    def enhance_prompt(*_args, **_kwargs):
        raise AssertionError("the prompt enhancer was called")

    loaded = tiny(name)
    monkeypatch.setattr(type(loaded.pipeline), "enhance_prompt", enhance_prompt)
    loaded.generate(ask())
    monkeypatch.setattr(type(loaded.model.variant("LTX2ConditionPipeline")), "enhance_prompt", enhance_prompt)
    loaded.generate(with_pictures(ask(), 0))


# Sound


@pytest.mark.parametrize(("name", "rate"), [("ltx2", 24_000), ("ltx23", 48_000)])
@pytest.mark.parametrize(("num_frames", "fps"), [(5, 8.0), (9, 24.0), (10, 23.976)])
def test_the_sound_is_as_long_as_the_video(tiny, ask, name, rate, num_frames, fps):
    [video] = tiny(name).videos([ask(num_frames=num_frames, fps=fps)])

    assert video.audio.sample_rate == rate
    assert video.audio.samples.shape == (round(num_frames / fps * rate), 2)
    assert video.audio.samples.dtype == np.float32
    assert 0.01 < np.abs(video.audio.samples).max() <= 1
    assert video.made["audio"] is True


def test_each_video_of_a_batch_has_its_own_sound(tiny, ask):
    first, second = tiny("ltx23").videos([ask(), ask(seed=2)])
    [alone] = tiny("ltx23").videos([ask(seed=2)])

    assert np.allclose(second.audio.samples, alone.audio.samples, atol=1e-4)
    assert not np.allclose(first.audio.samples, second.audio.samples, atol=1e-2)


def test_a_catalogue_entry_drops_the_sound_and_it_is_not_even_decoded(tiny, tiny_root, ask):
    silent = load_tiny("ltx2", build("ltx2", tiny_root), audio=False)
    with calls_of(silent.pipeline.vocoder) as calls:
        [video] = silent.videos([ask()])

    assert video.audio is None
    assert video.made["audio"] is False
    assert calls == []
    assert np.array_equal(video.frames, tiny("ltx2").generate(ask()))


def test_a_step_cache_is_refused_where_diffusers_has_none_and_forgets_between_passes_where_it_has(tiny_root, ask):
    cached = load_tiny("ltx", build("ltx", tiny_root), step_cache=0.2)
    first = cached.generate(enlarged(ask(), 128, 128))

    assert np.array_equal(cached.generate(enlarged(ask(), 128, 128)), first)
    with pytest.raises(CheckpointUnavailable, match="step_cache"):
        load_tiny("ltx2", build("ltx2", tiny_root), step_cache=0.2)


def test_ltx_video_makes_no_sound(tiny, ask):
    [video] = tiny("ltx").videos([ask()])

    assert video.audio is None
    assert "audio" not in video.made


def test_sound_is_cut_or_followed_by_silence_and_never_louder_than_full():
    samples = np.full((10, 2), 1.5, np.float32)

    shorter, longer = cut(Audio(samples, 10), 0.5), cut(Audio(samples, 10), 1.2)

    assert shorter.samples.tolist() == [[1.0, 1.0]] * 5
    assert longer.samples.tolist() == [[1.0, 1.0]] * 10 + [[0.0, 0.0]] * 2


def test_sound_of_nan_has_failed():
    with pytest.raises(GenerationFailed, match="NaN for the sound"):
        cut(Audio(np.full((4, 2), np.nan, np.float32), 4), 1.0)


# Sizes of LTX-2


@pytest.mark.parametrize(("pixels", "side"), [(1, 64), (32, 64), (64, 64), (65, 96), (512, 512), (928, 928)])
def test_a_side_of_ltx2_is_at_least_two_latents(pixels, side):
    assert legal_side(pixels, None) == side


@pytest.mark.parametrize(
    ("pixels", "side"), [(480, 480), (512, 512), (513, 544), (900, 960), (928, 960), (960, 960), (1370, 1408)]
)
def test_no_tile_of_ltx2_is_a_single_latent(pixels, side):
    # Tiles of 512 px every 448: at 928 px the third would begin at 896 and be 32 wide.
    assert legal_side(pixels, (512, 448)) == side


def test_ltx2_decodes_in_tiles_at_a_size_that_would_leave_a_single_latent(tiny_root, ask):
    placement = Placement(mode="resident", vae_tiling=True)
    folder = build("ltx2", tiny_root)
    model = families()["ltx"].load(Checkpoint(folder), device="cpu", dtype="float32", placement=placement)

    [video] = Loaded("ltx2", folder, model).videos([ask(num_frames=1, width=928, num_inference_steps=1)])

    assert video.frames.shape == (1, 64, 928, 3)
    assert video.made["denoised"] == {"num_frames": 1, "height": 64, "width": 960}


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_decoding_in_tiles_is_told_tile_by_tile(tiny_root, ask, name):
    folder = build(name, tiny_root)
    placement = Placement(mode="resident", vae_tiling=True)
    model = families()["ltx"].load(Checkpoint(folder), device="cpu", dtype="float32", placement=placement)
    seen = []

    Loaded(name, folder, model).videos([ask(num_frames=1, width=960, num_inference_steps=1)], seen.append)

    decoding = [progress.share for progress in seen if progress.stage == "decoding"]
    blocks = len(model.pipeline.vae.decoder.up_blocks)
    assert len(set(decoding)) == 3 * blocks  # 960 px are three tiles
    assert decoding[-1] < 1


# Upscaling


def enlarged(request, height: int, width: int, strength: float = 0.5, steps: int = 4):
    """Return the request with a second pass."""
    return replace(request, upscale=Upscale(height, width, strength, 3.0, steps))


@pytest.mark.parametrize("name", list(UPSAMPLER))
def test_the_upsampler_doubles_the_latents_and_the_file_has_the_target_size(with_upsampler, ask, name):
    loaded = with_upsampler(name)
    calls: list[Any] = []
    handle = loaded.model.keep["upsampler"].register_forward_hook(
        lambda _module, inputs, output: calls.append((inputs[0].shape[2:], output.shape[2:]))
    )
    try:
        [video] = loaded.videos([enlarged(ask(num_frames=10, height=70), 140, 128)])
    finally:
        handle.remove()

    assert calls == [((3, 3, 2), (3, 6, 4))]  # 17 frames of 96 x 64, and 192 x 128
    assert video.frames.shape == (10, 140, 128, 3)
    assert video.made["passes"] == 2
    assert video.made["denoised"] == {"num_frames": 17, "height": 96, "width": 64}
    assert video.made["second_pass"] == {
        "enlarged": "latents",
        "num_inference_steps": 2,
        "height": 192,
        "width": 128,
    }


@pytest.mark.parametrize("name", list(UPSAMPLER))
@pytest.mark.parametrize(("height", "width"), [(96, 96), (200, 330)])
def test_what_is_not_twice_the_size_is_resized_from_it(with_upsampler, ask, name, height, width):
    assert with_upsampler(name).generate(enlarged(ask(), height, width)).shape == (5, height, width, 3)


@pytest.mark.parametrize("name", ["ltx-091", "ltx", "ltx-condition", *LTX2])
def test_without_an_upsampler_the_second_pass_goes_over_enlarged_frames(tiny, ask, name):
    [video] = tiny(name).videos([enlarged(ask(num_frames=10), 100, 130)])

    assert video.frames.shape == (10, 100, 130, 3)
    assert video.made["second_pass"] == {
        "enlarged": "frames",
        "num_inference_steps": 2,
        "height": 128,
        "width": 160,
    }


@pytest.mark.parametrize("name", list(UPSAMPLER))
@pytest.mark.parametrize("upsampler", [False, True])
@pytest.mark.parametrize(("strength", "steps"), [(0.0, 0), (0.01, 1), (0.5, 2), (0.99, 3), (1.0, 4)])
def test_the_second_pass_runs_the_last_steps_of_its_schedule(
    tiny, with_upsampler, ask, name, upsampler, strength, steps
):
    loaded = (with_upsampler if upsampler else tiny)(name)
    asked = enlarged(ask(guidance_scale=1.0), 128, 128, strength)
    asked = replace(asked, upscale=replace(asked.upscale, guidance_scale=1.0))
    seen = []
    with calls_of(loaded.pipeline.transformer) as calls:
        [video] = loaded.videos([asked], seen.append)

    assert len(calls) == 2 + steps
    assert {progress.total_steps for progress in seen} == {2 + steps}
    assert video.made["passes"] == (2 if steps else 1)
    assert video.frames.shape == (5, 128, 128, 3)
    if steps:
        whole = with_steps(loaded, ask(height=128, width=128, num_inference_steps=4, guidance_scale=1.0))
        assert [level(call) for call in calls[2:]] == pytest.approx(whole[-steps:])


def with_steps(loaded: Loaded, request) -> list[float]:
    """Return the noise levels at which a plain request is denoised."""
    with calls_of(loaded.pipeline.transformer) as calls:
        loaded.generate(request)
    return [level(call) for call in calls]


def level(call: dict[str, Any]) -> float:
    return float(call["timestep"].max())


@pytest.mark.parametrize("name", ["ltx", "ltx-091", "ltx2"])
def test_strength_zero_only_resizes_the_first_pass(tiny, with_upsampler, ask, name):
    small = tiny(name).generate(ask())

    for loaded in (tiny(name), with_upsampler(name)):
        assert np.array_equal(loaded.generate(enlarged(ask(), 96, 112, strength=0.0)), enlarge(small, 96, 112))


@pytest.mark.parametrize("name", ["ltx-091", "ltx", "ltx-condition", *LTX2])
def test_the_second_pass_starts_from_the_enlarged_frames_mixed_with_noise(tiny, ask, name):
    import torch

    loaded = tiny(name)
    request = ask(num_frames=9, guidance_scale=1.0)

    def start(request, strength: float) -> tuple[float, Any]:
        with calls_of(loaded.pipeline.transformer) as calls:
            loaded.generate(enlarged(request, 128, 128, strength, steps=8))
        return level(calls[2]) / 1000, calls[2]["hidden_states"][0]

    frames = torch.from_numpy(enlarge(loaded.generate(request), 128, 128))
    with torch.no_grad():
        video = frames.permute(3, 0, 1, 2)[None] / 127.5 - 1  # (1, 3, 9, 128, 128)
        clean = loaded.pipeline.vae.encode(video).latent_dist.mode()[0].flatten(1).T  # (32, C)
    # At strength 1 it starts from noise alone, which another first pass does not change.
    whole, noise = start(request, 1.0)
    assert whole == pytest.approx(1)
    assert torch.equal(start(ask("a dog", num_frames=9, guidance_scale=1.0), 1.0)[1], noise)
    share, mixed = start(request, 0.5)
    assert 0.1 < share < 0.99
    assert torch.allclose(mixed, share * noise + (1 - share) * clean, atol=1e-4)


@pytest.mark.parametrize("upsampler", [False, True])
def test_the_sound_of_the_first_pass_is_kept(tiny, with_upsampler, ask, upsampler):
    [small] = tiny("ltx2").videos([ask()])
    loaded = (with_upsampler if upsampler else tiny)("ltx2")
    with calls_of(loaded.pipeline.vocoder) as calls:
        [large] = loaded.videos([enlarged(ask(), 128, 128)])

    assert np.array_equal(large.audio.samples, small.audio.samples)
    assert len(calls) == 1


@pytest.mark.parametrize("upsampler", [False, True])
@pytest.mark.parametrize(("name", "frames"), [("ltx-091", (0,)), ("ltx", (0, -1)), ("ltx2", (0, -1))])
def test_the_second_pass_sees_the_pictures_again_at_its_size(tiny, with_upsampler, ask, name, frames, upsampler):
    loaded = (with_upsampler if upsampler else tiny)(name)
    with calls_of(loaded.pipeline.transformer) as calls:
        loaded.generate(with_pictures(enlarged(ask(guidance_scale=1.0), 128, 128), *frames))

    # The tokens of the first frame come after those of pictures for later ones in LTX-Video, before them in LTX-2.
    timesteps = calls[-1]["timestep"][0]
    assert (timesteps == 0).sum() == len(frames) * 4 * 4


def test_a_picture_for_the_first_frame_goes_clean_into_the_second_pass_of_the_older_layout(tiny, ask):
    import torch

    loaded = tiny("ltx-091")
    prepared = with_pictures(enlarged(ask(guidance_scale=1.0), 128, 128), 0)
    with calls_of(loaded.pipeline.transformer) as calls:
        loaded.generate(prepared)

    pixels = np.array(cover(prepared.images[0], 128, 128))
    with torch.no_grad():
        video = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, None] / 127.5 - 1  # (1, 3, 1, 128, 128)
        tokens = loaded.pipeline.vae.encode(video).latent_dist.mode()[0].flatten(1).T  # (16, C)
    for call in calls[2:]:
        assert torch.allclose(call["hidden_states"][0, :16], tokens, atol=1e-5)


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_progress_and_cancelling_hold_with_an_upsampler(with_upsampler, ask, name):
    from polyreel.errors import Cancelled

    loaded = with_upsampler(name)
    before = loaded.generate(ask())
    seen = []
    loaded.generate(enlarged(ask(), 128, 128), seen.append)

    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert list(dict.fromkeys(progress.step for progress in seen if progress.step)) == [1, 2, 3, 4]
    assert seen[-1].stage == "decoding"

    def cancel(progress):
        if progress.step == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        loaded.generate(enlarged(ask(), 128, 128), cancel)
    assert np.array_equal(loaded.generate(ask()), before)


@pytest.mark.parametrize("name", ["ltx-091", "ltx-condition", "ltx23"])  # the others below
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(tiny_root, ask, name, dtype):
    half = load_tiny(name, build(name, tiny_root), dtype=dtype)

    assert half.generate(ask(num_frames=1)).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_upscaling_runs_in_half_precision(tiny_root, ask, name, dtype):
    parts = {"upsampler": build(UPSAMPLER[name], tiny_root)}
    half = load_tiny(name, build(name, tiny_root), dtype=dtype, parts=parts)

    assert half.generate(enlarged(ask(num_frames=1), 128, 128)).shape == (1, 128, 128, 3)


@pytest.mark.parametrize("mode", ["cpu_offload", "group_offload"])
@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_offloading_changes_no_byte(with_upsampler, tiny_root, ask, name, mode):
    checkpoint = Checkpoint(build(name, tiny_root), parts={"upsampler": build(UPSAMPLER[name], tiny_root)})
    model = families()["ltx"].load(checkpoint, device="cpu", dtype="float32", placement=Placement(mode=mode))
    asked = with_pictures(enlarged(ask(), 128, 128), 0)

    [video] = Loaded(name, checkpoint.path, model).videos([asked])
    [again] = Loaded(name, checkpoint.path, model).videos([asked])

    [expected] = with_upsampler(name).videos([asked])
    assert np.array_equal(video.frames, expected.frames)
    assert np.array_equal(again.frames, expected.frames)


# The part "upsampler"


def check(folder: Path, upsampler: Path):
    return families()["ltx"].check(Checkpoint(folder, parts={"upsampler": upsampler}))


@pytest.mark.parametrize("name", ["ltx-upsampler", "ltx2-upsampler"])
def test_a_tiny_upsampler_is_the_same_bytes_everywhere(tiny_root, tmp_path, name):
    once, again = build(name, tiny_root), build(name, tmp_path)
    names = sorted(path.name for path in once.iterdir())

    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert [(once / file).read_bytes() for file in names] == [(again / file).read_bytes() for file in names]


def test_an_upsampler_may_lie_in_a_folder_of_its_own_name(tiny_root, tmp_path, ask):
    shutil.copytree(build("ltx-upsampler", tiny_root), tmp_path / "whole" / "latent_upsampler")
    loaded = load_tiny("ltx", build("ltx", tiny_root), parts={"upsampler": tmp_path / "whole"})

    [video] = loaded.videos([enlarged(ask(), 128, 128)])

    assert video.made["second_pass"]["enlarged"] == "latents"


def test_an_upsampler_of_another_generation_is_refused(tiny_root):
    with pytest.raises(CheckpointUnavailable, match=r"parts\.upsampler: .*LTX2LatentUpsamplerModel for latents of 16"):
        check(build("ltx", tiny_root), build("ltx2-upsampler", tiny_root))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"in_channels": 128}, "of 128 channels, and this checkpoint needs LTXLatentUpsamplerModel for 16"),
        ({"temporal_upsample": True}, "adds frames and not pixels"),
    ],
)
def test_an_upsampler_for_something_else_is_refused(tiny_root, tmp_path, values, message):
    folder = changed(build("ltx-upsampler", tiny_root), tmp_path, "config.json", **values)

    with pytest.raises(CheckpointUnavailable, match=message):
        check(build("ltx", tiny_root), folder)


def test_a_missing_or_broken_upsampler_is_named(tiny_root, tmp_path):
    with pytest.raises(CheckpointUnavailable, match=r"parts\.upsampler: .*config\.json is missing"):
        check(build("ltx", tiny_root), tmp_path)

    copy = Path(shutil.copytree(build("ltx-upsampler", tiny_root), tmp_path / "upsampler"))
    [weights] = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointUnavailable, match="incomplete or damaged"):
        check(build("ltx", tiny_root), copy)
    weights.unlink()
    with pytest.raises(CheckpointUnavailable, match="has no safetensors"):
        check(build("ltx", tiny_root), copy)


def test_a_picture_of_any_shape_is_taken(tiny, ask):
    prepared = with_pictures(ask(), 0)
    for height, width in ((1, 1), (500, 20)):
        assert tiny("ltx").generate(replace(prepared, images=(picture(height, width),))).shape == (5, 64, 64, 3)

"""AnimateDiff from what people own: one safetensors file, a folder for images, a motion adapter, an LCM LoRA."""

from __future__ import annotations

import json
import shutil
import struct
import time
from math import prod

import numpy as np
import pytest

from models import AdapterFile, Checkpoint, PreparedRequest, families
from models._motion import SCHEDULER
from models._single_file import BUNDLED_CONFIG, check_single_file, clip_tokenizer
from models.tiny import build
from polyreel.entries import Placement
from polyreel.errors import CheckpointUnavailable

FAMILY = families()["animatediff"]

_CLIP = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
_VAE = "first_stage_model.decoder.conv_in.weight"
_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_TEXT = "model.diffusion_model.input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def parts(tiny_root):
    """The tiny parts by role, and the checkpoints for images as "sd15" and "file"."""
    names = {"motion_adapter": "motion-adapter", "config": "sd15", "sd15": "sd15", "file": "sd15-file"}
    return {role: build(name, tiny_root) for role, name in names.items()}


@pytest.fixture(scope="module")
def tensors(parts):
    from safetensors.numpy import load_file

    return load_file(parts["file"])


def of_file(parts, **fields):
    roles = {role: parts[role] for role in ("motion_adapter", "config")}
    return Checkpoint(parts["file"], name="tiny", **{"parts": roles, **fields})


def of_folder(parts, **more):
    return Checkpoint(parts["sd15"], name="tiny", parts={"motion_adapter": parts["motion_adapter"], **more})


def load(checkpoint, dtype="float32"):
    return FAMILY.load(checkpoint, device="cpu", dtype=dtype, placement=Placement(mode="resident"))


def generate(model, request, **prepared):
    [video] = FAMILY.generate(model, [PreparedRequest(request, **prepared)], lambda progress: None)
    return video.frames


# Forms


def test_a_file_a_folder_for_images_and_a_whole_folder_of_the_same_weights_make_the_same_video(parts, tiny_root, ask):
    # The tiny whole folder's scheduler has diffusers' own default for this, image checkpoints have False.
    settings = {"set_alpha_to_one": True}
    whole = generate(load(Checkpoint(build("animatediff", tiny_root), scheduler=settings)), ask())

    for checkpoint in (of_file(parts), of_folder(parts)):
        model = load(Checkpoint(checkpoint.path, parts=checkpoint.parts, scheduler=settings))
        assert np.array_equal(generate(model, ask()), whole)


def test_every_form_can_do_every_task(parts, tiny_root):
    forms = [of_file(parts), of_folder(parts), Checkpoint(build("animatediff", tiny_root))]

    assert len({FAMILY.check(form) for form in forms}) == 1
    assert {"t2v", "i2v", "first_last", "keyframes", "prompt_travel", "upscale", "improved_sampling"} <= FAMILY.check(
        forms[0]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_file_loads_in_half_precision(parts, ask, dtype):
    import torch

    model = load(of_file(parts), dtype)

    assert {parameter.dtype for parameter in model.pipeline.unet.parameters()} == {getattr(torch, dtype)}
    assert generate(model, ask()).shape == (5, 64, 64, 3)


def test_the_motion_adapter_is_in_memory_once(parts):
    pipeline = load(of_folder(parts)).pipeline

    assert sum(parameter.numel() for parameter in pipeline.motion_adapter.parameters()) == 1
    assert pipeline.motion_adapter.dtype == pipeline.unet.dtype


def test_a_folder_for_images_need_not_have_its_safety_checker(parts, tmp_path, ask):
    folder = shutil.copytree(parts["sd15"], tmp_path / "sd15")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))

    model = load(of_folder({**parts, "sd15": folder}))

    assert np.array_equal(generate(model, ask()), generate(load(of_folder(parts)), ask()))


# Schedulers


def test_a_checkpoint_for_images_gets_the_schedule_that_motion_adapters_were_trained_with(parts):
    scheduler = load(of_file(parts)).pipeline.scheduler

    assert type(scheduler).__name__ == "DDIMScheduler"
    assert {name: scheduler.config[name] for name in SCHEDULER} == {
        "beta_schedule": "linear",
        "clip_sample": False,
        "timestep_spacing": "linspace",
        "steps_offset": 1,
    }


def test_what_the_catalogue_entry_says_of_the_scheduler_comes_on_top(parts, ask):
    model = load(of_file(parts, scheduler={"class": "LCMScheduler", "steps_offset": 0}))

    assert type(model.pipeline.scheduler).__name__ == "LCMScheduler"
    assert model.pipeline.scheduler.config.beta_schedule == "linear"
    assert model.pipeline.scheduler.config.steps_offset == 0
    assert generate(model, ask()).shape == (5, 64, 64, 3)


# The LoRA of AnimateLCM


@pytest.fixture(scope="module")
def with_lcm(parts, tiny_root):
    return load(of_folder(parts, lcm_lora=build("lora-animatediff", tiny_root)))


def test_the_models_own_lora_is_merged_at_four_fifths(with_lcm, parts, tiny_root, ask):
    plain = load(of_folder(parts))
    lora = AdapterFile("style", build("lora-animatediff", tiny_root), strength=0.8)
    as_a_jobs = generate(plain, ask(), loras=(lora,)).astype(int)

    merged = generate(with_lcm, ask())
    assert np.abs(merged - as_a_jobs).max() <= 1
    assert np.abs(merged - generate(plain, ask()).astype(int)).mean() > 1


def test_a_jobs_lora_comes_on_top_of_the_models_own_and_goes_again(with_lcm, tiny_root, ask):
    before = generate(with_lcm, ask())
    lora = AdapterFile("style", build("lora-animatediff", tiny_root), strength=1.0)

    assert not np.array_equal(generate(with_lcm, ask(), loras=(lora,)), before)
    assert np.array_equal(generate(with_lcm, ask()), before)


def test_the_receipt_says_how_much_of_the_models_own_lora_is_in_it(with_lcm, ask):
    [video] = FAMILY.generate(with_lcm, [PreparedRequest(ask(num_frames=1))], lambda progress: None)

    assert video.made["lcm_lora"] == 0.8


def test_a_lora_for_another_model_is_refused_as_the_models_own(parts, tiny_root):
    checkpoint = of_folder(parts, lcm_lora=build("lora-wan", tiny_root))

    with pytest.raises(CheckpointUnavailable, match=r"parts\.lcm_lora"):
        load(checkpoint)


# Refusals, without loading


def replaced(tensors, **changes):
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


#: What a file holds instead -> what is said of it.
FILES = {
    "a Stable Diffusion XL file": (
        lambda t: {**t, "conditioner.embedders.0.transformer.x": np.zeros(1)},
        "Stable Diffusion XL",
    ),
    "a Stable Diffusion 2 file": (
        lambda t: {**t, "cond_stage_model.model.token_embedding.weight": np.zeros(1)},
        "Stable Diffusion 2",
    ),
    "a UNet of Stable Diffusion 2": (lambda t: {**t, _TEXT: np.zeros((8, 1024))}, "Stable Diffusion 2.* 1024 wide"),
    "a UNet of Stable Diffusion XL": (lambda t: {**t, _TEXT: np.zeros((8, 2048))}, "Stable Diffusion XL.* 2048 wide"),
    "an unknown text encoder": (lambda t: {**t, _TEXT: np.zeros((8, 99))}, "another text encoder.* 99 wide, not 16"),
    "an inpainting file": (lambda t: {**t, _UNET: np.zeros((8, 9, 3, 3))}, r"text to image.*\(8, 9, 3, 3\)"),
    "another vocabulary": (lambda t: {**t, _CLIP: np.zeros((49408, 16))}, r"token_embedding.*\(49408, 16\)"),
    "no VAE": (lambda t: {n: v for n, v in t.items() if not n.startswith("first_stage_model.")}, "has no vae"),
    "no text encoder": (lambda t: {n: v for n, v in t.items() if not n.startswith("cond_")}, "has no text_encoder"),
    "a text encoder of an old conversion": (
        lambda t: {n.replace(".text_model.", "."): v for n, v in t.items()},
        "names of an old conversion",
    ),
    "a LoRA": (lambda t: {"lora_unet_down_blocks_0.lora_down.weight": np.zeros(1)}, "is a LoRA"),
    "a motion module": (lambda t: {"down_blocks.0.motion_modules.0.pe": np.zeros(1)}, "a motion module"),
    "something else": (lambda t: {"weight": np.zeros(1)}, "has no unet"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_kind_is_refused_by_its_header(parts, tensors, tmp_path, case):
    from safetensors.numpy import save_file

    change, complaint = FILES[case]
    file = tmp_path / "darkSushi.safetensors"
    save_file({name: np.asarray(tensor, np.float32) for name, tensor in change(tensors).items()}, file)

    with pytest.raises(CheckpointUnavailable, match=f"darkSushi.*{complaint}"):
        FAMILY.check(of_file({**parts, "file": file}))


def test_the_bundled_sizes_are_asked_for_where_no_config_is_named(parts):
    roles = {"motion_adapter": parts["motion_adapter"]}

    with pytest.raises(CheckpointUnavailable, match="16 wide, not 768"):
        FAMILY.check(Checkpoint(parts["file"], parts=roles))


def test_a_truncated_file_is_named(parts, tmp_path):
    file = tmp_path / "darkSushi.safetensors"
    file.write_bytes(parts["file"].read_bytes()[:-100])

    with pytest.raises(CheckpointUnavailable, match=r"darkSushi\.safetensors is incomplete or damaged"):
        FAMILY.check(of_file({**parts, "file": file}))


@pytest.mark.parametrize(
    ("name", "complaint"), [("a.ckpt", "is a pickle"), ("a.PT", "is a pickle"), ("a.zip", "is no checkpoint")]
)
def test_a_pickle_is_not_opened(parts, tmp_path, name, complaint):
    (tmp_path / name).write_bytes(b"\x80\x04")

    with pytest.raises(CheckpointUnavailable, match=complaint):
        FAMILY.check(of_file({**parts, "file": tmp_path / name}))


def test_a_file_that_is_not_there_is_named(parts, tmp_path):
    with pytest.raises(CheckpointUnavailable, match=r"There is no file .*gone\.safetensors"):
        FAMILY.check(of_file({**parts, "file": tmp_path / "gone.safetensors"}))


def test_a_tensor_that_is_missing_deep_inside_is_found_when_loading(parts, tensors, tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "darkSushi.safetensors"
    save_file(replaced(tensors, **{"model.diffusion_model.middle_block.0.in_layers.2.weight": None}), file)

    with pytest.raises(CheckpointUnavailable, match=r"darkSushi.*tensors may be missing"):
        load(of_file({**parts, "file": file}))


#: What is wrong with the parts: a function of the parts and of an empty folder -> what is said.
PARTS = {
    "no motion adapter": (
        lambda p, _: Checkpoint(p["file"], parts={"config": p["config"]}),
        r"parts\.motion_adapter is missing: .*guoyww/animatediff-motion-adapter-v1-5-3",
    ),
    "a folder for images without one": (lambda p, _: Checkpoint(p["sd15"]), r"parts\.motion_adapter is missing"),
    "a motion adapter that is a file": (
        lambda p, _: of_folder({**p, "motion_adapter": p["file"]}),
        r"parts\.motion_adapter: .* is not a folder",
    ),
    "a motion adapter of another class": (
        lambda p, _: of_folder({**p, "motion_adapter": p["sd15"] / "unet"}),
        "says UNet2DConditionModel, not MotionAdapter",
    ),
    "an empty motion adapter": (
        lambda p, empty: of_folder({**p, "motion_adapter": empty}),
        r"config\.json is missing or damaged",
    ),
    "a motion adapter for other widths": (
        lambda p, empty: of_folder({**p, "motion_adapter": adapter(p, empty, block_out_channels=[320, 640, 1280])}),
        r"made for another UNet: its block_out_channels is \[320, 640, 1280\]",
    ),
    "PIA's motion adapter": (
        lambda p, empty: of_folder({**p, "motion_adapter": adapter(p, empty, conv_in_channels=9)}),
        "PIA",
    ),
    "a motion adapter without weights": (
        lambda p, empty: of_folder({**p, "motion_adapter": adapter(p, empty)}),
        "has no diffusion_pytorch_model.safetensors",
    ),
    "an unknown part": (lambda p, _: of_folder(p, vae=p["file"]), r"parts\.vae: AnimateDiff has no such part"),
    "a config for a folder": (lambda p, _: of_folder(p, config=p["config"]), r"parts\.config: .* single files"),
    "a config without tokenizer": (
        lambda p, empty: of_file({**p, "config": without_tokenizer(p, empty)}),
        "has no tokenizer with tokenizer.json or vocab.json",
    ),
    "a LoRA that is a folder": (
        lambda p, _: of_folder(p, lcm_lora=p["sd15"]),
        r"parts\.lcm_lora: .* is not a \.safetensors file",
    ),
}


def adapter(parts, empty, **changes):
    """Return a motion adapter's folder with a changed config and no weights."""
    config = json.loads((parts["motion_adapter"] / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps({**config, **changes}))
    return empty


def without_tokenizer(parts, empty):
    return shutil.copytree(parts["config"], empty / "config", ignore=shutil.ignore_patterns("tokenizer"))


@pytest.mark.parametrize("case", PARTS)
def test_parts_that_do_not_fit_are_refused_by_name(parts, tmp_path, case):
    make, complaint = PARTS[case]

    with pytest.raises(CheckpointUnavailable, match=complaint):
        FAMILY.check(make(parts, tmp_path))


def test_a_whole_folder_takes_no_motion_adapter(parts, tiny_root):
    checkpoint = Checkpoint(build("animatediff", tiny_root), parts={"motion_adapter": parts["motion_adapter"]})

    with pytest.raises(CheckpointUnavailable, match="has motion modules of its own"):
        FAMILY.check(checkpoint)


# The bundled config of Stable Diffusion 1.5


def test_the_bundled_vocabulary_is_clips():
    tokenizer = clip_tokenizer()

    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A Photo, of 3 CATS' кот 猫 🦊 it's").input_ids == [
        *(49406, 320, 1125, 267, 539, 274, 3989, 262, 27152, 13506, 141, 480, 163, 234, 360, 6040, 488, 585, 568),
        49407,
    ]
    assert (tokenizer.model_max_length, tokenizer.pad_token_id) == (77, 49407)


@pytest.fixture(scope="module")
def real_shapes():
    """Names and shapes of a real Stable Diffusion 1.5 file, made from the bundled config without weights."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from models.tiny import sd15_file

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(BUNDLED_CONFIG / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(BUNDLED_CONFIG / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(BUNDLED_CONFIG / "text_encoder"))
    pipeline = StableDiffusionPipeline(vae, text_encoder, None, unet, None, None, None, requires_safety_checker=False)
    return {name: tuple(tensor.shape) for name, tensor in sd15_file.original_names(pipeline).items()}


def test_the_bundled_sizes_are_those_of_stable_diffusion_1_5(real_shapes):
    def numbers(prefix):
        return sum(prod(shape) for name, shape in real_shapes.items() if name.startswith(prefix))

    assert numbers("model.diffusion_model.") == 859_520_964
    assert numbers("first_stage_model.") == 83_653_863
    assert numbers("cond_stage_model.") == 123_060_480
    assert len(real_shapes) == 686 + 248 + 196
    # Names in which every published checkpoint is written.
    assert real_shapes["model.diffusion_model.output_blocks.11.0.skip_connection.weight"] == (320, 640, 1, 1)
    assert real_shapes["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
    assert real_shapes["model.diffusion_model.output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert real_shapes["model.diffusion_model.output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert real_shapes["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert real_shapes["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)


def test_a_file_of_real_size_is_judged_in_well_under_a_second(real_shapes, tmp_path):
    file = tmp_path / "darkSushiMixMix_225D_64380.safetensors"
    write_sparse(file, real_shapes)

    start = time.process_time()
    check_single_file(file, None)

    assert time.process_time() - start < 0.9  # reading 2 GB takes longer
    assert file.stat().st_size > 2_000_000_000


def write_sparse(file, shapes):
    """Write a safetensors file in float16 whose tensors are holes: it has its real length and takes no room."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)

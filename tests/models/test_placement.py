"""Where weights live: what is chosen for how much memory, and that a video does not depend on it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import AdapterFile, Checkpoint, PreparedRequest, families
from models.placement import Weights, choose, weigh
from models.tiny import build
from polyreel.entries import Placement
from polyreel.errors import Cancelled, CheckpointUnavailable, OutOfMemory
from tests.models.conftest import FAMILY_OF, Loaded

GB = 10**9

#: Wan 2.1 14B in bfloat16, in round numbers.
WAN_14B = Weights(
    components={"text_encoder": 11 * GB, "transformer": 28 * GB, "vae": 1 * GB},
    as_fp8={"text_encoder": 11 * GB, "transformer": 15 * GB, "vae": 1 * GB},
    largest_tensor=2 * GB,
)

THREE = ["wan-ti2v", "ltx", "animatediff"]

#: Every offload mode on the checkpoints that are fast, one of them on AnimateDiff.
OFFLOADED = [(name, mode) for name in ("wan-ti2v", "ltx") for mode in ("cpu_offload", "group_offload")]


def choose_for(free_gb: float, working_gb: float = 4, device: str = "cuda", shared=(), **placement: Any) -> tuple:
    chosen = choose(
        Placement(**placement),
        WAN_14B,
        working_bytes=int(working_gb * GB),
        free_bytes=int(free_gb * GB),
        device=device,
        shared=shared,
    )
    return chosen.mode, chosen.fp8


@pytest.mark.parametrize(
    ("free_gb", "fp8", "chosen"),
    [
        (44, None, ("resident", False)),
        (43.9, None, ("resident", True)),
        (31, None, ("resident", True)),
        (30.9, None, ("cpu_offload", True)),  # 28 + 4 do not fit without float8
        (19, None, ("cpu_offload", True)),
        (18.9, None, ("group_offload", False)),
        (8, None, ("group_offload", False)),
        (43.9, False, ("cpu_offload", False)),
        (32, False, ("cpu_offload", False)),
        (31.9, False, ("group_offload", False)),
        (44, True, ("resident", True)),
        (30.9, True, ("cpu_offload", True)),
        (18.9, True, ("group_offload", True)),
    ],
)
def test_the_fastest_placement_that_fits_is_chosen(free_gb, fp8, chosen):
    assert choose_for(free_gb, fp8=fp8) == chosen


def test_a_text_encoder_need_not_fit_beside_the_work():
    sizes = {"text_encoder": 11 * GB, "transformer": 3 * GB}
    small_denoiser = Weights(sizes, {**sizes, "transformer": 2 * GB}, GB)
    chosen = choose(Placement(), small_denoiser, working_bytes=5 * GB, free_bytes=11 * GB, device="cuda")
    assert (chosen.mode, chosen.fp8) == ("cpu_offload", False)


def test_what_another_model_has_on_the_device_is_not_needed_twice():
    assert choose_for(33, shared=["text_encoder"]) == ("resident", False)
    assert choose_for(33) == ("resident", True)


@pytest.mark.parametrize("mode", ["resident", "cpu_offload", "group_offload"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_mode_that_the_entry_names_is_kept_whether_it_fits_or_not(mode, device):
    assert choose_for(0.1, mode=mode, device=device) == (mode, False)
    assert choose_for(0.1, mode=mode, device=device, fp8=True) == (mode, True)


def test_a_cpu_is_always_resident():
    assert choose_for(0.1, device="cpu") == ("resident", False)
    assert choose_for(0.1, device="cpu", fp8=True) == ("resident", True)


def test_the_rest_of_a_placement_is_kept():
    entry = Placement(vae_tiling=True, vae_slicing=True, retry_with_less=False)
    chosen = choose(entry, WAN_14B, working_bytes=0, free_bytes=99 * GB, device="cuda")
    assert chosen == Placement(mode="resident", fp8=False, vae_tiling=True, vae_slicing=True, retry_with_less=False)


def test_when_nothing_fits_the_message_says_what_would():
    with pytest.raises(OutOfMemory) as refused:
        choose_for(7.9)
    assert refused.value.stage == "load"
    assert refused.value.message == (
        "cuda has 7.9 GB free, and this model needs: resident 44.0 GB, resident with fp8 31.0 GB, cpu_offload 32.0 GB, "
        "cpu_offload with fp8 19.0 GB, group_offload 8.0 GB. Free the device, or lower the entry's defaults."
    )


def write_header(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write a safetensors file that says how large it is and has no weights."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    write_header(folder / "text_encoder" / "model-00001-of-00002.safetensors", {"a": ("F32", [1000, 100])})
    write_header(folder / "text_encoder" / "model-00002-of-00002.safetensors", {"b": ("F32", [500])})
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(shards))
    denoiser = {"blocks.0.ffn.weight": ("BF16", [300, 300]), "blocks.0.norm.weight": ("BF16", [300])}
    write_header(folder / "transformer" / "diffusion_pytorch_model.safetensors", denoiser)
    write_header(folder / "vae" / "diffusion_pytorch_model.safetensors", {"x": ("F16", [10, 10]), "n": ("I64", [3])})


def test_a_checkpoint_is_weighed_by_its_headers_in_the_dtypes_that_it_is_loaded_in(tmp_path):
    write_checkpoint(tmp_path / "wan")
    weights = weigh(Checkpoint(tmp_path / "wan"), "bfloat16")
    assert weights.components == {"text_encoder": 201_000, "transformer": 180_600, "vae": 424}
    assert weights.as_fp8 == {"text_encoder": 201_000, "transformer": 90_600, "vae": 424}
    assert weights.largest_tensor == 200_000


def test_a_file_that_is_not_there_is_named(tmp_path):
    write_checkpoint(tmp_path / "wan")
    (tmp_path / "wan" / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointUnavailable, match=r"model-00002-of-00002\.safetensors is incomplete or damaged"):
        weigh(Checkpoint(tmp_path / "wan"), "bfloat16")


def test_a_single_file_and_its_parts_are_weighed_by_what_they_become(tmp_path):
    single = {
        "model.diffusion_model.out.weight": ("F32", [100]),
        "cond_stage_model.a": ("F32", [10]),
        "first_stage_model.b": ("F32", [1]),
        "alphas_cumprod": ("F32", [1000]),
    }
    write_header(tmp_path / "sd.safetensors", single)
    write_header(tmp_path / "motion" / "diffusion_pytorch_model.safetensors", {"m": ("F16", [50])})
    write_header(tmp_path / "lcm.safetensors", {"l": ("F16", [7])})
    parts = {"motion_adapter": tmp_path / "motion", "lcm_lora": tmp_path / "lcm.safetensors"}
    weights = weigh(Checkpoint(tmp_path / "sd.safetensors", parts=parts), "float16")
    assert weights.components == {"unet": 300, "text_encoder": 20, "vae": 4}  # the LoRA is merged


@pytest.mark.parametrize("name", THREE)
def test_what_was_weighed_is_what_is_loaded(name, load_as):
    loaded = load_as(name, Placement(mode="resident"))
    modules = {key: module for key, module in loaded.pipeline.components.items() if hasattr(module, "parameters")}
    weighed = weigh(Checkpoint(loaded.folder), "float32").components
    if name == "animatediff":
        del modules["motion_adapter"]  # the weights are in the U-Net; what is left of it is empty
    assert weighed.keys() == modules.keys()
    for component, module in modules.items():
        parameters = sum(tensor.nbytes for tensor in module.parameters())
        # Tables of positions are made while loading, and are in some files as well.
        buffers = sum(tensor.nbytes for tensor in module.buffers())
        assert parameters <= weighed[component] <= parameters + buffers


@pytest.mark.parametrize("name", THREE)
def test_float8_storage_weighs_what_was_reckoned(name, load_as):
    loaded = load_as(name, Placement(mode="resident", fp8=True))
    weights = weigh(Checkpoint(loaded.folder), "float32")
    is_fp8, plain = sum(weights.as_fp8.values()), sum(weights.components.values())
    assert is_fp8 < plain
    parameters = sum(
        tensor.nbytes
        for module in loaded.pipeline.components.values()
        if hasattr(module, "parameters")
        for tensor in module.parameters()
    )
    assert is_fp8 == pytest.approx(parameters, rel=0.1)


@pytest.fixture
def load_as(tiny_root):
    """Load a tiny checkpoint anew with a placement; keywords are fields of `Checkpoint`."""

    def load_as(name: str, placement: Placement, dtype: str = "float32", **checkpoint: Any) -> Loaded:
        folder = build(name, tiny_root)
        what = Checkpoint(folder, name=f"tiny:{name}", **checkpoint)
        family = families()[FAMILY_OF[name]]
        return Loaded(name, folder, family.load(what, device="cpu", dtype=dtype, placement=placement))

    return load_as


@pytest.mark.parametrize(("name", "mode"), [*OFFLOADED, ("animatediff", "group_offload")])
def test_offload_makes_the_same_video_bit_for_bit(name, mode, load_as, ask):
    expected = load_as(name, Placement(mode="resident")).generate(ask())
    loaded = load_as(name, Placement(mode=mode))
    assert has_hooks(loaded, mode)
    np.testing.assert_array_equal(loaded.generate(ask()), expected)
    np.testing.assert_array_equal(loaded.generate(ask()), expected)


def has_hooks(loaded: Loaded, mode: str) -> bool:
    """Return whether every component with weights carries the hooks of an offload mode."""
    attribute = {"cpu_offload": "_hf_hook", "group_offload": "_diffusers_hook"}[mode]
    modules = [module for module in loaded.pipeline.components.values() if hasattr(module, "modules")]
    return bool(modules) and all(any(hasattr(inner, attribute) for inner in module.modules()) for module in modules)


@pytest.mark.parametrize(("name", "mode"), [*OFFLOADED, ("ltx", "resident"), ("animatediff", "resident")])
def test_float8_storage_runs_in_every_mode_and_stays_close(name, mode, load_as, ask):
    import torch

    expected = load_as(name, Placement(mode="resident"), "bfloat16").generate(ask())
    loaded = load_as(name, Placement(mode=mode, fp8=True), "bfloat16")
    denoiser = getattr(loaded.pipeline, "transformer", None) or loaded.pipeline.unet
    assert torch.float8_e4m3fn in {tensor.dtype for tensor in denoiser.parameters()}
    frames = loaded.generate(ask())
    difference = np.abs(frames.astype(int) - expected)
    assert 0 < difference.mean() < 8  # random weights; without limits to what float8 may do it would be 60
    np.testing.assert_array_equal(loaded.generate(ask()), frames)


@pytest.mark.parametrize(
    "placement",
    [Placement(mode="cpu_offload"), Placement(mode="group_offload"), Placement(mode="group_offload", fp8=True)],
    ids=["cpu_offload", "group_offload", "float8"],
)
def test_a_lora_works_under_every_placement_and_does_not_leak(placement, load_as, ask, tiny_root):
    lora = AdapterFile("style", build("lora-ltx", tiny_root))
    resident = load_as("ltx", Placement(mode="resident", fp8=placement.fp8))
    with_lora = PreparedRequest(ask(), loras=(lora,))
    expected, plain = resident.generate(with_lora), resident.generate(ask())
    assert np.abs(expected.astype(int) - plain).mean() > 2
    loaded = load_as("ltx", placement)
    np.testing.assert_array_equal(loaded.generate(with_lora), expected)
    np.testing.assert_array_equal(loaded.generate(ask()), plain)


@pytest.mark.parametrize("name", THREE)
def test_the_vae_is_told_to_tile_and_to_slice(name, load_as, ask):
    loaded = load_as(name, Placement(mode="resident", vae_tiling=True, vae_slicing=True))
    assert (loaded.pipeline.vae.use_tiling, loaded.pipeline.vae.use_slicing) == (True, True)
    assert loaded.generate(ask()).shape == (5, 64, 64, 3)
    loaded = load_as(name, Placement(mode="resident"))
    assert (loaded.pipeline.vae.use_tiling, loaded.pipeline.vae.use_slicing) == (False, False)


def test_the_receipt_says_what_was_chosen(load_as):
    model = load_as("ltx", Placement(vae_slicing=True)).model
    assert model.placement == Placement(mode="resident", fp8=False, vae_slicing=True)
    facts = model.facts()
    assert [facts[key] for key in ("placement", "fp8", "vae_tiling", "vae_slicing")] == ["resident", False, False, True]
    assert load_as("ltx", Placement(mode="group_offload", fp8=True)).model.facts()["placement"] == "group_offload"


class _Stop:
    """Cancels after so many reports of a stage."""

    def __init__(self, stage: str, reports: int) -> None:
        self.stage, self.reports = stage, reports

    def __call__(self, progress) -> None:
        self.reports -= progress.stage == self.stage
        if self.reports < 0:
            raise Cancelled("stop")


#: Where the checkpoints' blocks are known to diffusers' first-block cache.
CACHED = {"wan-ti2v": 0.5, "ltx": 0.5, "animatediff": 0.0}


@pytest.mark.parametrize(("name", "mode"), [*OFFLOADED, ("ltx", "resident"), ("animatediff", "cpu_offload")])
@pytest.mark.parametrize("stop", [("denoising", 3), ("decoding", 1)], ids=["in a step", "in decoding"])
def test_a_cancelled_job_leaves_hooks_and_caches_as_they_were(name, mode, stop, load_as, ask):
    placement, cache = Placement(mode=mode), {"step_cache": CACHED[name]}
    first, other = ask(num_inference_steps=5), ask(num_inference_steps=5, height=96, width=128, prompt="a red kite")
    used = load_as(name, placement, **cache)
    used.generate(first)
    with pytest.raises(Cancelled):
        used.generate(first, _Stop(*stop))
    frames = used.generate(PreparedRequest(other))
    if mode != "resident":
        assert has_hooks(used, mode)
    np.testing.assert_array_equal(frames, load_as(name, placement, **cache).generate(other))

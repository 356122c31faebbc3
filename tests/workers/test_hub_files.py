"""Which files of a repository are pulled, over the layouts that real repositories have."""

from __future__ import annotations

from typing import Any

import pytest

from polyreel.errors import CheckpointUnavailable
from workers.hub_files import needed_files

INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.33.0",
    "boundary_ratio": 0.875,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
}
SHARDS = {
    "weight_map": {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
        "c": "diffusion_pytorch_model-00001-of-00002.safetensors",
    }
}
JSON: dict[str, Any] = {
    "model_index.json": INDEX,
    "transformer/diffusion_pytorch_model.safetensors.index.json": SHARDS,
}
NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/special_tokens_map.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
]
CLUTTER = [
    ".gitattributes",
    "README.md",
    "LICENSE.txt",
    "assets/video.mp4",
    "image_encoder/config.json",
    "wan2.1_t2v_1.3B_fp16.safetensors",
    "model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.bin.index.json",
    "text_encoder/flax_model.msgpack",
    "text_encoder/older/model.safetensors",
    "tokenizer/tokenizer_wrapper.py",
    "transformer/diffusion_pytorch_model-00001-of-00007.safetensors",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
]


def needed(files: list[str], inside: str = "") -> list[str]:
    return needed_files("somebody/video", inside, files, JSON.__getitem__)


def test_a_diffusers_folder_gives_its_index_and_what_the_index_names() -> None:
    assert needed(CLUTTER + NEEDED) == NEEDED


def test_a_diffusers_folder_inside_a_repository_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JSON, "480p/model_index.json", {"scheduler": ["diffusers", "X"]})
    files = ["480p/model_index.json", "480p/scheduler/scheduler_config.json", "720p/model_index.json", *NEEDED]
    assert needed(files, "480p") == ["480p/model_index.json", "480p/scheduler/scheduler_config.json"]


def test_a_single_model_such_as_a_motion_adapter_gives_its_config_and_its_weights() -> None:
    files = [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    ]
    assert needed([*files, "diffusion_pytorch_model.bin"]) == ["config.json", "diffusion_pytorch_model.safetensors"]
    inside = [f"latent_upsampler/{name}" for name in files]
    assert needed([*files, *inside], "latent_upsampler") == [
        "latent_upsampler/config.json",
        "latent_upsampler/diffusion_pytorch_model.safetensors",
    ]


def test_a_named_file_gives_itself_alone() -> None:
    assert needed(CLUTTER + NEEDED, "model.safetensors") == ["model.safetensors"]


def test_weights_that_are_there_whole_and_in_shards_are_taken_once() -> None:
    assert "text_encoder/model.safetensors.index.json" not in needed(
        [*NEEDED, "text_encoder/model.safetensors.index.json"]
    )
    assert needed([*NEEDED, "transformer/diffusion_pytorch_model.safetensors"]) == NEEDED


@pytest.mark.parametrize(
    ("removed", "added", "inside", "complaint"),
    [
        (
            "text_encoder/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "",
            "only as text_encoder/model.fp16",
        ),
        ("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "", "a pickle may run code"),
        (
            "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
            "x",
            "",
            "transformer/diffusion_pytorch_model.safetensors.index.json names transformer/diffusion",
        ),
        ("scheduler/scheduler_config.json", "x", "", "incomplete on the hub: it has no folder scheduler/"),
        (
            "model_index.json",
            "big.safetensors",
            "",
            "neither model_index.json nor config.json. Its safetensors files: big",
        ),
        ("x", "rain.ckpt", "rain.ckpt", "rain.ckpt is not a .safetensors file"),
        (
            "x",
            "rain.safetensors",
            "rian.safetensors",
            "somebody/video has no rian.safetensors. Its safetensors files: rain",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_it_is_downloaded(
    removed: str, added: str, inside: str, complaint: str
) -> None:
    with pytest.raises(CheckpointUnavailable) as refused:
        needed([added, *(path for path in NEEDED if path != removed)], inside)
    assert complaint in refused.value.message


@pytest.mark.parametrize("content", [{}, [], {"weight_map": ["a"]}])
def test_an_index_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.setitem(JSON, "transformer/diffusion_pytorch_model.safetensors.index.json", content)
    with pytest.raises(CheckpointUnavailable, match="is not an index of weights"):
        needed(NEEDED)

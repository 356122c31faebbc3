"""What a receipt says of a video, and what of it goes into the files that clients get."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import AdapterFile, Checkpoint, PreparedRequest, Video, families
from models._origins import adapter_origin, checkpoint_origin, fingerprint
from models.loaded import LoadedModel
from models.tiny import TINY, build
from polyreel.entries import Placement
from polyreel.request import ImageCondition, Upscale, VideoRequest
from tests.core.jobs import REQUEST
from tests.families.quick import loaded
from workers.receipt import metadata, receipt

COMMIT = "0a1b2c3d4e" * 4

FACTS: dict[str, Any] = {  # Any: JSON
    "prompts": [{"prompt": "a fox", "num_frames": 9}],
    "device": "cuda",
    "dtype": "bfloat16",
    "placement": "resident",
    "fp8": False,
    "vae_tiling": False,
    "vae_slicing": False,
    "seed": 42,
}


def test_a_file_does_not_say_what_changes_no_pixel() -> None:
    elsewhere = {
        **FACTS,
        "device": "cuda:1",
        "placement": "cpu_offload",
        "vae_slicing": True,
        "after_out_of_memory": ["alone", "cpu_offload"],
    }
    assert metadata(elsewhere) == metadata(FACTS)


def test_a_file_says_what_changes_pixels() -> None:
    about = metadata({**FACTS, "fp8": True, "vae_tiling": True, "after_out_of_memory": ["vae_tiling"]})
    assert about["title"] == "a fox"
    assert json.loads(about["comment"]) == {
        "prompts": [{"prompt": "a fox", "num_frames": 9}],
        "device": "cuda",
        "dtype": "bfloat16",
        "fp8": True,
        "vae_tiling": True,
        "seed": 42,
    }


# -- where the weights come from


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A commit in a cache of huggingface_hub: a folder, and a file that is a link to its bytes, named by their hash."""
    snapshot = tmp_path / "home" / "alice" / "hub" / "models--wang--fox" / "snapshots" / COMMIT
    (snapshot / "lora").mkdir(parents=True)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / ("ab" * 32)).write_bytes(b"weights")
    (snapshot / "lora" / "rain.safetensors").symlink_to(blobs / ("ab" * 32))
    return snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of the operator's own."""
    folder = tmp_path / "home" / "alice" / "secret-client" / "my-wan"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(300_000))
    return folder


def model_of(checkpoint: Checkpoint) -> LoadedModel:
    return loaded(checkpoint, "cpu", "float32", Placement(mode="resident"))


def receipt_of(model: LoadedModel, **adapters: Any) -> dict[str, Any]:
    video = Video(np.zeros((9, 64, 96, 3), np.uint8), pipelines=("WanPipeline",))
    return receipt(PreparedRequest(REQUEST, **adapters), video, model)


@pytest.mark.parametrize(
    ("inside", "name", "said"),
    [
        ("", "wang/fox", "wang/fox"),
        ("", "hub:wang/fox", "wang/fox"),
        ("lora/rain.safetensors", "wang/fox/lora/rain.safetensors", "wang/fox/lora/rain.safetensors"),
        ("lora", "/home/alice/hub/models--wang--fox/snapshots/main/lora", "wang/fox/lora"),  # the cache, by its path
    ],
)
def test_what_is_from_the_hub_is_called_by_repository_and_commit(hub: Path, inside: str, name: str, said: str) -> None:
    assert checkpoint_origin(hub / inside, name) == {"checkpoint": said, "revision": COMMIT}


def test_what_we_build_is_called_as_in_the_catalogue(folder: Path) -> None:
    assert checkpoint_origin(folder, "tiny:ltx") == {"checkpoint": "tiny:ltx", "revision": ""}


def test_no_path_of_this_machine_is_in_a_receipt_or_a_file(folder: Path, hub: Path, tmp_path: Path) -> None:
    part, lora = folder / "vae", folder / "rain.safetensors"
    lora.write_bytes(b"weights")
    checkpoint = Checkpoint(
        folder,
        name=str(folder),
        parts={"upsampler": part, "lcm_lora": hub / "lora" / "rain.safetensors"},
        part_names={"upsampler": str(part), "lcm_lora": "wang/fox/lora/rain.safetensors"},
    )
    facts = receipt_of(model_of(checkpoint), loras=(AdapterFile("rain", lora, second=lora, strength=0.5),))
    assert (facts["checkpoint"], facts["revision"], len(facts["fingerprint"])) == ("my-wan", "", 16)
    assert facts["parts"] == {
        "upsampler": {"checkpoint": "vae", "revision": "", "fingerprint": fingerprint(part)},
        "lcm_lora": {"checkpoint": "wang/fox/lora/rain.safetensors", "revision": COMMIT},
    }
    for text in (json.dumps(facts), metadata(facts)["comment"]):
        assert "alice" not in text
        assert str(tmp_path) not in text


def first(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def last(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def renamed(path: Path) -> None:
    path.rename(path.with_name("other.safetensors"))


@pytest.mark.parametrize("change", [first, last, longer, renamed])
def test_other_weights_have_another_fingerprint(folder: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("says nothing of weights")
    assert fingerprint(folder) == before
    change(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert fingerprint(folder) != before


def test_what_is_gone_has_no_fingerprint(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "gone") == ""
    assert fingerprint(tmp_path) == ""


# -- LoRAs and embeddings


def test_loras_and_embeddings_are_told_by_their_content(folder: Path, hub: Path) -> None:
    own, fetched = folder / "hands.safetensors", hub / "lora" / "rain.safetensors"
    own.write_bytes(b"one")
    model = model_of(Checkpoint(folder))
    adapters: dict[str, Any] = {
        "loras": (AdapterFile("rain", fetched, second=own, strength=0.5),),
        "embeddings": (AdapterFile("hands", own, token="bad"),),
    }
    facts = receipt_of(model, **adapters)
    assert facts["loras"] == [
        {
            "name": "rain",
            "strength": 0.5,
            "sha256": "ab" * 8,
            "revision": COMMIT,
            "second": {"sha256": "7692c3ad3540bb80"},
        }
    ]
    assert facts["embeddings"] == [{"name": "hands", "sha256": "7692c3ad3540bb80"}]
    own.write_bytes(b"another")
    assert receipt_of(model, **adapters)["embeddings"] == [{"name": "hands", "sha256": "ae448ac86c4e8e4d"}]


def test_a_file_taken_away_since_does_not_cost_the_video(tmp_path: Path) -> None:
    assert adapter_origin(tmp_path / "gone.safetensors") == {"sha256": ""}


# -- what ran


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("tiny")


SMALL = replace(REQUEST, height=64, width=64, num_inference_steps=2)
PICTURE = replace(SMALL, images=(ImageCondition("in/a.png"),))
LARGER = replace(SMALL, upscale=Upscale(96, 96, strength=0.5, guidance_scale=1.0, num_inference_steps=2))


@pytest.mark.parametrize(
    ("name", "request_", "pipelines"),
    [
        ("wan-ti2v", SMALL, ["WanPipeline"]),
        ("wan-ti2v", PICTURE, ["WanImageToVideoPipeline"]),
        ("wan-ti2v", LARGER, ["WanPipeline", "WanPipeline"]),
        ("ltx-091", SMALL, ["LTXPipeline"]),
        ("ltx-091", PICTURE, ["LTXImageToVideoPipeline"]),
        ("ltx-condition", LARGER, ["LTXConditionPipeline", "LTXConditionPipeline"]),
        ("ltx2", PICTURE, ["LTX2ConditionPipeline"]),
        ("animatediff", LARGER, ["AnimateDiffPipeline", "AnimateDiffVideoToVideoPipeline"]),
    ],
)
def test_the_receipt_names_the_pipelines_that_ran(
    tiny_root: Path, name: str, request_: VideoRequest, pipelines: list[str]
) -> None:
    family = families()[TINY[name].family]
    checkpoint = Checkpoint(build(name, tiny_root), name=f"tiny:{name}")
    model = family.load(checkpoint, device="cpu", dtype="float32", placement=Placement(mode="resident"))
    picture = np.full((64, 64, 3), 128, np.uint8)
    prepared = PreparedRequest(request_, images=(picture,) * len(request_.images))
    for _ in range(2):  # what ran for one job is not said of the next
        [video] = family.generate(model, [prepared], lambda progress: None)
        facts = receipt(prepared, video, model)
        assert facts["pipelines"] == pipelines
    assert json.loads(json.dumps(facts)) == facts


def test_the_receipt_holds_the_catalogues_scheduler_settings(folder: Path) -> None:
    settings = {"beta_schedule": "linear", "class": "EulerDiscreteScheduler"}
    assert receipt_of(model_of(Checkpoint(folder, scheduler=settings)))["scheduler_settings"] == settings
    assert receipt_of(model_of(Checkpoint(folder)))["scheduler_settings"] == {}

"""A component that several checkpoints hold in common is in memory once, and goes with the last model that uses it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from models import Checkpoint, _shared, families
from models.placement import weights_bytes
from models.tiny import build
from polyreel.entries import Placement
from tests.models.conftest import Loaded

RESIDENT = Placement(mode="resident")


@pytest.fixture(autouse=True)
def nothing_in_memory(monkeypatch):
    """Start each test with no component known, whatever models other tests hold."""
    monkeypatch.setattr(_shared, "_held", [])


@pytest.fixture
def load(tiny_root, tmp_path):
    """Load a copy of a tiny Wan checkpoint, so that no two have a file in common."""

    def load(name: str, *, dtype="float32", placement=RESIDENT, change=lambda folder: None) -> Loaded:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(build(name, tiny_root), folder)
        change(folder)
        what = Checkpoint(folder, name=name)
        return Loaded(name, folder, families()["wan"].load(what, device="cpu", dtype=dtype, placement=placement))

    return load


def test_two_wan_models_share_their_text_encoder_and_tokenizer(load):
    a, b = load("wan-ti2v"), load("wan21")
    assert a.pipeline.text_encoder is b.pipeline.text_encoder
    assert a.pipeline.tokenizer is b.pipeline.tokenizer
    assert a.pipeline.transformer is not b.pipeline.transformer
    assert a.pipeline.vae is not b.pipeline.vae


def test_animatediff_shares_nothing_because_embeddings_change_its_text_encoder(tiny_root):
    what = Checkpoint(build("animatediff", tiny_root))
    load = families()["animatediff"].load
    a, b = (load(what, device="cpu", dtype="float32", placement=RESIDENT).pipeline for _ in range(2))
    assert a.text_encoder is not b.text_encoder
    assert a.tokenizer is not b.tokenizer


def test_what_is_made_with_a_shared_text_encoder_is_what_is_made_without(load, ask):
    alone = []
    for name in ("wan-ti2v", "wan21"):
        alone.append(load(name).generate(ask()))
        _shared._held.clear()
    together = [load(name) for name in ("wan-ti2v", "wan21")]
    for expected, model in zip(alone, together, strict=True):
        np.testing.assert_array_equal(model.generate(ask()), expected)
        np.testing.assert_array_equal(model.generate(ask()), expected)


def test_a_shared_component_goes_with_the_last_model(load):
    a, b = load("wan-ti2v"), load("wan21")
    gone = weakref.ref(a.pipeline.text_encoder)
    del a
    gc.collect()
    assert gone() is b.pipeline.text_encoder
    del b
    gc.collect()
    assert gone() is None
    assert [held.component() for held in _shared._held] == [None, None]


def test_what_is_in_memory_is_known_before_loading(load, tiny_root):
    folder = build("wan21", tiny_root)
    assert _shared.in_memory(folder, dtype="float32", device="cpu") == frozenset()
    a = load("wan-ti2v")
    assert _shared.in_memory(folder, dtype="float32", device="cpu") == {"tokenizer", "text_encoder"}
    assert _shared.in_memory(folder, dtype="bfloat16", device="cpu") == {"tokenizer"}
    assert _shared.in_memory(build("ltx", tiny_root), dtype="float32", device="cpu") == frozenset()
    assert weights_bytes(a.pipeline) > 0


def _other_weights(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last bit of one weight's exponent, at the same length
    path.write_bytes(content)


def _other_config(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_epsilon": 1e-3}))


@pytest.mark.parametrize("change", [_other_weights, _other_config])
def test_another_text_encoder_of_the_same_size_is_not_shared(load, change):
    a, b = load("wan-ti2v"), load("wan21", change=change)
    assert a.pipeline.text_encoder is not b.pipeline.text_encoder
    assert a.pipeline.tokenizer is b.pipeline.tokenizer


def test_a_config_that_differs_in_its_origin_alone_is_the_same(load):
    def change(folder: Path) -> None:
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": "x", "transformers_version": "4"}))

    a, b = load("wan-ti2v"), load("wan21", change=change)
    assert a.pipeline.text_encoder is b.pipeline.text_encoder


def test_a_text_encoder_in_another_dtype_is_not_shared(load):
    a, b = load("wan-ti2v"), load("wan21", dtype="bfloat16")
    assert a.pipeline.text_encoder is not b.pipeline.text_encoder


@pytest.mark.parametrize("mode", ["cpu_offload", "group_offload"])
def test_a_component_that_hooks_move_is_never_shared(load, mode):
    offloaded, resident = load("wan-ti2v", placement=Placement(mode=mode)), load("wan21")
    assert offloaded.pipeline.text_encoder is not resident.pipeline.text_encoder
    another = load("wan-ti2v", placement=Placement(mode=mode))
    assert another.pipeline.text_encoder is not resident.pipeline.text_encoder


def test_a_file_that_was_replaced_after_loading_is_not_taken_for_what_is_in_memory(load):
    a = load("wan-ti2v")
    _other_weights(a.folder)
    b = load("wan21", change=_other_weights)
    assert a.pipeline.text_encoder is not b.pipeline.text_encoder


def test_files_of_the_hubs_cache_are_compared_by_name_and_not_read(tmp_path, tiny_root, monkeypatch):
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    shutil.copy(build("wan21", tiny_root) / "text_encoder" / "model.safetensors", blob)
    for name in ("one", "two"):
        shutil.copytree(build("wan21", tiny_root), tmp_path / name)
        weights = tmp_path / name / "text_encoder" / "model.safetensors"
        weights.unlink()
        weights.symlink_to(os.path.relpath(blob, weights.parent))
    hashed = []
    digest = _shared.hashlib.file_digest
    monkeypatch.setattr(
        _shared.hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind)
    )
    family = families()["wan"]
    loaded = [
        family.load(Checkpoint(tmp_path / name), device="cpu", dtype="float32", placement=RESIDENT)
        for name in ("one", "two")
    ]
    assert loaded[0].pipeline.text_encoder is loaded[1].pipeline.text_encoder
    assert not [name for name in hashed if str(name).endswith("model.safetensors")]


def test_nothing_is_hashed_for_a_model_that_is_loaded_alone(load, monkeypatch):
    monkeypatch.setattr(_shared, "_digest", lambda file: pytest.fail(f"{file} was read"))
    load("wan21")

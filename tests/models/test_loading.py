"""A checkpoint that cannot be loaded says why, and names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models import Checkpoint, families
from models.tiny import build
from polyreel.entries import Placement
from polyreel.errors import CheckpointUnavailable, ConfigurationError
from tests.models.conftest import FAMILY_OF, load_tiny


@pytest.fixture(params=["wan-ti2v", "ltx", "animatediff"])
def copy(request, tiny_root, tmp_path) -> Path:
    """A copy of a tiny checkpoint to damage; its name is the checkpoint's."""
    return Path(shutil.copytree(build(request.param, tiny_root), tmp_path / request.param))


def load(folder: Path, dtype: str = "float32"):
    return load_tiny(folder.name, folder, dtype=dtype).model


def test_a_missing_folder_is_named(copy):
    shutil.rmtree(copy)

    with pytest.raises(CheckpointUnavailable, match=f"{copy} is not a folder"):
        load(copy)


def test_a_folder_without_model_index_is_refused(copy):
    (copy / "model_index.json").unlink()

    with pytest.raises(CheckpointUnavailable, match=r"model_index\.json is missing"):
        load(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": '])
def test_a_damaged_model_index_is_refused(copy, text):
    (copy / "model_index.json").write_text(text)

    with pytest.raises(CheckpointUnavailable, match=r"model_index\.json is damaged"):
        load(copy)


def test_a_checkpoint_of_another_class_is_refused(copy):
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxPipeline"}))

    with pytest.raises(CheckpointUnavailable, match=r"model_index\.json says FluxPipeline"):
        load(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.ckpt", "weights.PT"])
def test_a_pickle_is_refused_and_never_read(copy, name):
    (copy / "vae" / name).write_bytes(b"\x80\x04.")

    with pytest.raises(CheckpointUnavailable, match=f"vae/{name} is a pickle"):
        load(copy)


def test_a_truncated_safetensors_file_is_named(copy):
    [weights] = (copy / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(CheckpointUnavailable, match=f"vae/{weights.name} is incomplete or damaged"):
        load(copy)


def test_a_missing_component_is_named(copy):
    shutil.rmtree(copy / "text_encoder")

    with pytest.raises(CheckpointUnavailable, match="text_encoder is missing"):
        load(copy)


def test_missing_weights_are_named(copy):
    [weights] = (copy / "vae").glob("*.safetensors")
    weights.unlink()

    with pytest.raises(CheckpointUnavailable, match="vae"):
        load(copy)


def test_an_unknown_dtype_is_a_configuration_error(copy):
    with pytest.raises(ConfigurationError, match="dtype must be one of float32, bfloat16, float16, got 'fp8'"):
        load(copy, dtype="fp8")


def test_loading_draws_nothing_on_the_terminal(copy, capfd):
    model = load(copy)

    assert "%|" not in capfd.readouterr().err
    assert model.pipeline._progress_bar_config == {"disable": True}


def test_a_checkpoint_can_be_judged_without_loading_it(copy):
    family = families()[FAMILY_OF[copy.name]]
    family.check(Checkpoint(copy))
    (copy / "model_index.json").unlink()
    with pytest.raises(CheckpointUnavailable, match=r"model_index\.json is missing"):
        family.check(Checkpoint(copy))


def test_a_device_that_is_not_there_is_a_reason_and_no_traceback(copy):
    with pytest.raises(CheckpointUnavailable, match="does not fit on nonsense"):
        families()[FAMILY_OF[copy.name]].load(
            Checkpoint(copy), device="nonsense", dtype="float32", placement=Placement()
        )

"""A checkpoint that cannot be loaded says why, and names the file."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest

from models import Checkpoint, families
from models._load import quiet_libraries
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

    with pytest.raises(CheckpointUnavailable, match=f"(There is no file )?{copy}(; give| is not a folder)"):
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


def test_a_tokenizer_that_belongs_to_no_model_needs_no_weights(copy):
    index = copy / "model_index.json"
    tokenizer = {"tokenizer": ["transformers", "TokenizersBackend"]}
    index.write_text(json.dumps({**json.loads(index.read_text()), **tokenizer}))

    assert type(load(copy).pipeline.tokenizer).__name__ == "TokenizersBackend"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def lay_pickles(copy: Path, mark: Path) -> None:
    """Put a pickle beside every component's weights, under the names that diffusers and transformers read."""
    for weights in copy.glob("*/*.safetensors"):
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "weights.PT"):
            (weights.parent / name).write_bytes(pickle.dumps(Bomb(mark)))


def test_pickles_beside_safetensors_are_let_be_and_never_read(copy, tmp_path):
    lay_pickles(copy, tmp_path / "mark")
    load(copy)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
def test_a_pickle_in_the_place_of_safetensors_is_refused_and_never_read(copy, tmp_path, component):
    lay_pickles(copy, tmp_path / "mark")
    for weights in (copy / component).glob("*.safetensors"):
        weights.unlink()

    with pytest.raises(CheckpointUnavailable, match=f"{component}/diffusion_pytorch_model.bin is a pickle"):
        load(copy)
    assert not (tmp_path / "mark").exists()
    pickle.loads((copy / component / "weights.PT").read_bytes())
    assert (tmp_path / "mark").exists()  # it would have been noticed


def test_weights_in_a_variant_alone_are_named(copy):
    [weights] = (copy / "vae").glob("*.safetensors")
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))

    with pytest.raises(CheckpointUnavailable, match=r"found: diffusion_pytorch_model\.fp16\.safetensors"):
        load(copy)


def shard(copy: Path, names: object) -> None:
    """Replace the text encoder's weights by an index that names shards."""
    [weights] = (copy / "text_encoder").glob("*.safetensors")
    weights.rename(weights.with_name("model-00001-of-00002.safetensors"))
    (copy / "text_encoder" / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    )


def test_a_missing_shard_is_named_before_anything_is_loaded(copy):
    shard(copy, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})

    with pytest.raises(CheckpointUnavailable, match=r"text_encoder/model-00002-of-00002\.safetensors is missing"):
        families()[FAMILY_OF[copy.name]].check(Checkpoint(copy))


@pytest.mark.parametrize("names", [None, [], {}, {"a": "../vae/model.safetensors"}, {"a": 1}])
def test_a_damaged_index_of_shards_is_named(copy, names):
    shard(copy, names)

    with pytest.raises(CheckpointUnavailable, match=r"model\.safetensors\.index\.json is damaged"):
        families()[FAMILY_OF[copy.name]].check(Checkpoint(copy))


def test_shards_that_are_all_there_load(copy):
    from safetensors import safe_open

    [weights] = (copy / "text_encoder").glob("*.safetensors")
    with safe_open(weights, "numpy") as file:
        names = list(file.keys())
    shard(copy, dict.fromkeys(names, "model-00001-of-00002.safetensors"))
    load(copy)


def change_index(copy: Path, **fields: object) -> None:
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **fields}))


@pytest.mark.parametrize("library", ["my_vae", "diffusers_modules", "os"])
def test_a_component_of_another_library_is_refused(copy, library):
    change_index(copy, vae=[library, "AutoencoderKL"])

    with pytest.raises(
        CheckpointUnavailable, match=rf"vae is a custom component \({library}\): code from the checkpoint"
    ):
        families()[FAMILY_OF[copy.name]].check(Checkpoint(copy))


def test_code_in_a_components_folder_is_refused(copy):
    (copy / "vae" / "diffusers.py").write_text("raise SystemExit")

    with pytest.raises(CheckpointUnavailable, match=r"vae is a custom component \(diffusers\.py\)"):
        families()[FAMILY_OF[copy.name]].check(Checkpoint(copy))


def test_a_custom_pipeline_is_refused(copy):
    change_index(copy, _class_name=["my_pipeline", "WanPipeline"])

    with pytest.raises(CheckpointUnavailable, match="names the custom pipeline"):
        families()[FAMILY_OF[copy.name]].check(Checkpoint(copy))


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


@pytest.mark.parametrize(
    ("scheduler", "complaint"),
    [
        ({"class": "NoScheduler"}, r"scheduler\.class: diffusers has no scheduler 'NoScheduler'"),
        ({"class": "HeunDiscreteScheduler"}, r"scheduler\.class: HeunDiscreteScheduler takes two calls for a step"),
        (
            {"class": "FlowMatchEulerDiscreteScheduler", "flow_shift": 5},
            r"scheduler\.flow_shift: FlowMatchEulerDiscreteScheduler has no such setting.*shift",
        ),
    ],
)
def test_a_scheduler_or_setting_that_does_not_exist_is_named(tiny_root, scheduler, complaint):
    with pytest.raises(CheckpointUnavailable, match=complaint):
        load_tiny("ltx", build("ltx", tiny_root), scheduler=scheduler)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_library_speaks_through_our_log_and_quotes_no_prompt_there(library, caplog):
    quiet_libraries()
    quiet_libraries()
    pipelines = logging.getLogger(f"{library}.pipelines.any")
    pipelines.warning("The following part of your input was truncated: ['a cat']")
    pipelines.error("it broke")
    assert [record.getMessage() for record in caplog.records] == ["it broke"]
    assert logging.getLogger(library).handlers == []

"""Which pipelines stay loaded, and that one broken model does not keep the others from being served."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

import workers.residency
from models import Checkpoint
from models.loaded import LoadedModel
from polyreel.catalogue import Catalogue
from polyreel.entries import Placement, ServedModel
from polyreel.errors import CheckpointUnavailable, ConfigurationError, OutOfMemory
from tests.families.quick import Quick
from tests.families.unloadable import Unloadable
from workers.residency import Residency

MakeResidency = Callable[..., Residency]
GB = 10**9


def test_a_loaded_pipeline_is_used_again(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(a=family)
    assert residency.get("a") is residency.get("a")
    assert family.loads == ["a"]


def test_the_least_recently_used_pipeline_goes_first(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(capacity=2, a=family, b=family, c=family)
    for model in ("a", "b", "a", "c"):
        residency.get(model)
    assert residency.loaded == ["a", "c"]
    residency.get("b")
    assert residency.loaded == ["c", "b"]
    assert family.loads == ["a", "b", "c", "b"]


def test_nothing_is_loaded_before_it_is_asked_for(make_residency: MakeResidency) -> None:
    family = Quick()
    residency = make_residency(a=family)
    assert residency.prepare() == {"a": ""}
    assert (residency.loaded, family.loads) == ([], [])


def test_a_missing_checkpoint_is_reported_and_the_others_serve(make_residency: MakeResidency) -> None:
    family = Quick()
    ready = make_residency(good=family)
    entries = {**ready.catalogue.models, "gone": ServedModel(family="quick", checkpoint="/not/there")}
    residency = Residency(Catalogue(entries), ready.checkpoints, "cpu", 1)
    state = residency.prepare()
    assert state["good"] == ""
    assert "/not/there" in state["gone"]
    residency.get("good")
    with pytest.raises(CheckpointUnavailable):
        residency.get("gone")


def test_a_model_that_does_not_load_is_not_counted_as_loaded(make_residency: MakeResidency) -> None:
    residency = make_residency(capacity=2, good=Quick(), bad=Unloadable())
    residency.get("good")
    with pytest.raises(CheckpointUnavailable):
        residency.get("bad")
    assert residency.loaded == ["good"]


def test_an_unknown_family_stops_the_start(make_residency: MakeResidency) -> None:
    make_residency(a=Quick())
    with pytest.raises(ConfigurationError) as refused:
        Residency(
            Catalogue({"x": ServedModel(family="quik", checkpoint="tiny:ltx")}),
            checkpoints=None,  # type: ignore[arg-type]
            device="cpu",
            capacity=1,
        )
    assert str(refused.value) == "models.x.family: 'quik' is not a family. Did you mean quick? Families: quick."


class Card(Quick):
    """A family on a simulated GPU: what is loaded takes what the checkpoint's header says.

    Args:
        total_gb: memory of the card.
        refusals: how often loading raises OutOfMemory before it works.
    """

    def __init__(self, total_gb: float, refusals: int = 0) -> None:
        super().__init__()
        self.total_gb = total_gb
        self.refusals = refusals
        self.placements: list[tuple[str, str]] = []
        self.residency: Residency

    def memory(self, device: str) -> tuple[int, int]:
        used = sum(
            model.weights_bytes for model in self.residency._loaded.values() if model.placement.mode == "resident"
        )
        return int(self.total_gb * GB) - used, int(self.total_gb * GB)

    def load(self, checkpoint: Checkpoint, *, device: str, dtype: str, placement: Placement) -> LoadedModel:
        if self.refusals:
            self.refusals -= 1
            raise OutOfMemory("It does not fit.", "load")
        model = super().load(checkpoint, device=device, dtype=dtype, placement=placement)
        model.weights_bytes = int(float(checkpoint.path.name.split("_")[1]) * GB)
        self.placements.append((checkpoint.path.name, placement.mode + ("+fp8" if placement.fp8 else "")))
        return model


@pytest.fixture
def on_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeResidency:
    """Return a factory of residencies on a simulated card; "a_12" is a model whose one transformer takes 12 GB."""

    def make(card: Card, *names: str, capacity: int = 9, **entries: dict[str, Any]) -> Residency:
        monkeypatch.setattr(workers.residency, "families", lambda: {"quick": card})
        models = {}
        for name in names:
            folder = tmp_path / name
            write_checkpoint(folder, int(float(name.split("_")[1]) * GB))
            models[name] = ServedModel(
                family="quick", checkpoint=str(folder), dtype="bfloat16", **entries.get(name, {})
            )
        card.residency = Residency(Catalogue(models), tmp_path / "built", "cuda", capacity, device_memory=card.memory)
        return card.residency

    return make


def write_checkpoint(folder: Path, size: int) -> None:
    """Write a checkpoint whose header says how large it is; it has no weights."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X", "transformer": ["diffusers", "X"]}))
    header = json.dumps({f"blocks.{n}.weight": {"dtype": "BF16", "shape": [size // 8, 1]} for n in range(4)}).encode()
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_models_stay_loaded_while_they_fit(on_card: MakeResidency) -> None:
    residency = on_card(Card(24), "a_8", "b_8", "c_8")
    for name in ("a_8", "b_8", "c_8"):
        residency.get(name)
    assert residency.loaded == ["a_8", "b_8", "c_8"]


def test_only_as_many_go_as_must_and_the_least_recently_used_first(on_card: MakeResidency) -> None:
    residency = on_card(Card(24), "a_4", "b_4", "c_8", "d_13")
    for name in ("a_4", "b_4", "c_8", "a_4", "d_13"):
        residency.get(name)
    assert residency.loaded == ["a_4", "d_13"]  # without b there were 12 GB, which was not enough


def test_a_model_too_large_for_the_card_makes_only_the_room_that_its_placement_needs(on_card: MakeResidency) -> None:
    card = Card(24)
    residency = on_card(card, "a_8", "b_40")
    residency.get("a_8")
    residency.get("b_40")
    # 20 GB as float8 fit into 24 alone, and that is the best that could be had.
    assert card.placements == [("a_8", "resident"), ("b_40", "resident+fp8")]
    assert residency.loaded == ["b_40"]


def test_a_model_that_must_be_offloaded_leaves_the_others_where_they_are(on_card: MakeResidency) -> None:
    card = Card(24)
    residency = on_card(card, "a_4", "b_30", b_30={"placement": Placement(fp8=False)})
    residency.get("a_4")
    residency.get("b_30")
    # Layer by layer: two of its four tensors of 7.5 GB at once.
    assert card.placements == [("a_4", "resident"), ("b_30", "group_offload")]
    assert residency.loaded == ["a_4", "b_30"]


def test_there_must_be_room_for_the_work_of_every_model_that_stays(on_card: MakeResidency) -> None:
    # 1,000 latent tokens of 10 GB: one job of a takes 10 GB beside the 8 of its weights.
    costly = {
        "geometry": {"frames": 1, "pixels": 16},
        "cost": {"mb_per_1k_tokens": 10_000 / 1.024},
        "defaults": {"num_frames": 1, "height": 512, "width": 512},
    }
    residency = on_card(Card(24), "a_8", "b_8", "c_4", a_8=costly)
    residency.get("a_8")
    residency.get("c_4")
    assert residency.loaded == ["a_8", "c_4"]
    residency.get("b_8")
    assert residency.loaded == ["c_4", "b_8"]


def test_a_pinned_model_stays_when_others_must_go(on_card: MakeResidency) -> None:
    residency = on_card(Card(24), "a_12", "b_12", "c_12", a_12={"pinned": True})
    for name in ("a_12", "b_12", "c_12"):
        residency.get(name)
    assert residency.loaded == ["a_12", "c_12"]


def test_a_pinned_model_stays_when_there_are_as_many_as_allowed(on_card: MakeResidency) -> None:
    residency = on_card(Card(99), "a_1", "b_1", "c_1", capacity=2, a_1={"pinned": True})
    for name in ("a_1", "b_1", "c_1"):
        residency.get(name)
    assert residency.loaded == ["a_1", "c_1"]


@pytest.mark.parametrize("mode", ["auto", "resident"])
def test_what_does_not_fit_beside_pinned_models_is_refused(on_card: MakeResidency, mode: str) -> None:
    placement = Placement(mode=mode)
    residency = on_card(Card(24), "a_22", "b_12", a_22={"pinned": True}, b_12={"placement": placement})
    residency.get("a_22")
    with pytest.raises(OutOfMemory) as refused:
        residency.get("b_12")
    assert refused.value.stage == "load"
    assert refused.value.message.startswith("b_12")
    assert "2.0 GB free" in refused.value.message
    assert refused.value.message.endswith("Pinned models stay loaded: a_22; pin fewer.")
    assert residency.loaded == ["a_22"]


def test_a_mode_that_an_entry_names_is_tried_even_where_the_estimate_says_no(on_card: MakeResidency) -> None:
    card = Card(24)
    residency = on_card(card, "a_30", a_30={"placement": Placement(mode="resident")})
    residency.get("a_30")
    assert card.placements == [("a_30", "resident")]


def test_more_goes_when_the_estimate_was_too_low(on_card: MakeResidency) -> None:
    card = Card(99)
    residency = on_card(card, "a_1", "b_1", "c_1", "d_1", b_1={"pinned": True})
    for name in ("a_1", "b_1", "c_1"):
        residency.get(name)
    card.refusals = 2
    residency.get("d_1")
    assert residency.loaded == ["b_1", "d_1"]


def test_out_of_memory_comes_up_when_nothing_may_go_any_more(on_card: MakeResidency) -> None:
    card = Card(99)
    residency = on_card(card, "a_1", "b_1", "c_1", b_1={"pinned": True})
    for name in ("a_1", "b_1"):
        residency.get(name)
    card.refusals = 2
    with pytest.raises(OutOfMemory, match="It does not fit"):
        residency.get("c_1")
    assert residency.loaded == ["b_1"]
    residency.get("c_1")
    assert residency.loaded == ["b_1", "c_1"]


def test_another_placement_is_loaded_anew_and_the_usual_one_comes_back(on_card: MakeResidency) -> None:
    card = Card(24)
    residency = on_card(card, "a_8")
    less = Placement(mode="cpu_offload")
    residency.get("a_8")
    assert residency.loaded_with("a_8") is None
    assert residency.get("a_8", less) is residency.get("a_8", residency.loaded_with("a_8"))
    assert residency.loaded_with("a_8") == less
    residency.get("a_8")
    assert card.placements == [("a_8", "resident"), ("a_8", "cpu_offload"), ("a_8", "resident")]


def test_the_memory_of_the_device_is_told(on_card: MakeResidency, make_residency: MakeResidency) -> None:
    assert on_card(Card(24), "a_8").memory_bytes == 24 * GB
    assert make_residency(a=Quick()).memory_bytes is None


def test_pinned_models_are_loaded_at_the_start(on_card: MakeResidency, tmp_path: Path) -> None:
    card = Card(24)
    residency = on_card(card, "a_8", "b_8", "c_20", a_8={"pinned": True}, c_20={"pinned": True})
    assert residency.prepare() == {"a_8": "", "b_8": "", "c_20": ""}
    assert residency.loaded == []
    failed = residency.load_pinned()
    assert residency.loaded == ["a_8", "c_20"]  # as float8
    assert failed == {}


def test_a_pinned_model_that_does_not_load_is_named_and_the_others_are_loaded(on_card: MakeResidency) -> None:
    card = Card(24, refusals=1)
    residency = on_card(card, "a_8", "b_8", a_8={"pinned": True}, b_8={"pinned": True})
    assert residency.load_pinned() == {"a_8": "It does not fit."}
    assert residency.loaded == ["b_8"]


@pytest.mark.parametrize(
    ("capacity", "pinned", "message"),
    [
        (1, ["a_1"], "1 is too few for the pinned models a_1 and one more; set it to 2 or pin fewer."),
        (2, ["a_1", "b_1"], "2 is too few for the pinned models a_1, b_1 and one more; set it to 3 or pin fewer."),
        (2, ["a_1", "b_1", "c_1"], "2 is too few for the pinned models a_1, b_1, c_1; set it to 3 or pin fewer."),
    ],
)
def test_pinned_models_that_leave_no_room_stop_the_start(
    on_card: MakeResidency, capacity: int, pinned: list[str], message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        on_card(Card(24), "a_1", "b_1", "c_1", capacity=capacity, **{name: {"pinned": True} for name in pinned})
    assert refused.value.message == f"resident_models: {message}"


def test_all_models_may_be_pinned(on_card: MakeResidency) -> None:
    both = {"a_1": {"pinned": True}, "b_1": {"pinned": True}}
    assert on_card(Card(24), "a_1", "b_1", capacity=2, **both).load_pinned() == {}


def test_the_budget_of_loras_is_the_settings(make_residency: MakeResidency) -> None:
    ready = make_residency(a=Quick())
    residency = Residency(ready.catalogue, ready.checkpoints, "cpu", 1, lora_bytes=5e8)
    assert residency.get("a").adapters.budget_bytes == 5e8


def test_each_load_and_unload_is_one_line_in_the_log(on_card: MakeResidency) -> None:
    residency = on_card(Card(24), "a_8", "b_20", b_20={"placement": Placement(fp8=False)})
    with structlog.testing.capture_logs() as lines:
        residency.get("a_8")
        residency.get("b_20")
        residency.get("b_20")
    assert [(line["event"], line["model"], line["bytes"]) for line in lines] == [
        ("model loaded", "a_8", 8 * GB),
        ("model unloaded", "a_8", 8 * GB),
        ("model loaded", "b_20", 20 * GB),
    ]
    assert all(0 <= line["seconds"] < 30 for line in lines)
    assert lines[0]["placement"] == "resident"

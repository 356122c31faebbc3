"""Which pipelines stay loaded, and that one broken model does not keep the others from being served."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyreel.catalogue import Catalogue
from polyreel.entries import ServedModel
from polyreel.errors import CheckpointUnavailable, ConfigurationError
from tests.families.quick import Quick
from tests.families.unloadable import Unloadable
from workers.residency import Residency

MakeResidency = Callable[..., Residency]


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
    assert state["gone"].startswith("There is no folder /not/there")
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

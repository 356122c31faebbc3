"""The catalogue of real checkpoints: it loads, every dialect can use it, and its figures refuse what they should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyreel.admission import check_fits
from polyreel.entries import Placement, ServedModel
from polyreel.errors import InvalidRequest, NotServedYet
from polyreel.profiles import load_settings
from polyreel.request import ImageCondition, PromptSpan, VideoRequest
from server.dialects import dialects
from tests.core.jobs import REQUEST

GPU = load_settings("gpu").settings

#: Bytes of the cards that people have.
GB_24, GB_48, GB_80 = 24_000_000_000, 48_000_000_000, 80_000_000_000

#: All weights on the device as they are, and nothing less when that does not fit.
RESIDENT = Placement(mode="resident", fp8=False, retry_with_less=False)


def ask(model: str, num_frames: int = 81, height: int = 720, width: int = 1280) -> VideoRequest:
    return replace(REQUEST, model=model, prompts=(PromptSpan("a cat", num_frames),), height=height, width=width)


def with_picture(request: VideoRequest, *frame_indices: int) -> VideoRequest:
    return replace(request, images=tuple(ImageCondition(f"in/{index}.png", index) for index in frame_indices))


def by_default(model: str) -> VideoRequest:
    defaults = GPU.models[model].defaults
    return ask(model, defaults.num_frames, defaults.height, defaults.width)


def placed(model: str, placement: Placement) -> ServedModel:
    return GPU.models[model].model_copy(update={"placement": placement})


@pytest.mark.parametrize("profile", ["gpu", "team"])
def test_every_dialect_can_use_the_profile(profile: str) -> None:
    settings = load_settings(profile).settings
    for name, dialect in dialects().items():
        dialect.check(settings.catalogue, dialect.settings.model_validate(settings.dialects.get(name, {})))
        if dialect.example is not None:  # one without takes no jobs
            assert settings.catalogue.public_names(name), f"{name} serves nothing"


def test_the_team_serves_what_one_serves_alone() -> None:
    assert load_settings("team").settings.models == GPU.models


def test_every_name_of_wan_means_the_demonstration_model_in_the_tiny_profile() -> None:
    """So that what is written on a laptop runs on the GPU box as it is."""
    tiny = load_settings("tiny").settings.catalogue
    names = [
        (dialect, name, tiny.find(dialect, name))
        for entry in GPU.models.values()
        if entry.family == "wan"
        for dialect, public in entry.names.items()
        for name in public
    ]
    assert ("huggingface", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "atelier") in names
    assert [name for name in names if name[2] != "atelier"] == []


@pytest.mark.parametrize(
    ("dialect", "public_name", "model"),
    [
        ("huggingface", "Wan-AI/Wan2.1-T2V-1.3B", "wan2.1-1.3b"),
        ("huggingface", "Wan-AI/Wan2.1-T2V-14B", "wan2.1-14b"),
        ("huggingface", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "wan2.2-i2v-a14b"),
        ("huggingface", "Lightricks/LTX-Video", "ltx"),
        ("huggingface", "Lightricks/LTX-2", "ltx2"),
        ("modelslab", "wan2.2", "wan2.2-5b"),
        ("modelslab", "wanx", "wan2.2-5b"),
        ("modelslab", "cogvideox", "wan2.2-5b"),
        ("modelslab", "ltx", "ltx"),
        ("modelslab", "ltx-2.3", "ltx2.3"),
        ("novita", "darkSushiMixMix_225D_64380.safetensors", "darksushi"),
        ("novita", "wan2.2", "wan2.2-5b"),
        ("universal", "wan2.2", "wan2.2-5b"),
        ("universal", "ltx", "ltx"),
        ("universal", "animatediff", "sd15-animatediff"),
        # How it is published is not known, so nothing else answers in its name.
        ("huggingface", "AdamLucek/Wan2.1-T2V-14B-OldBookIllustrations", None),
    ],
)
def test_public_names_mean_these_checkpoints(dialect: str, public_name: str, model: str | None) -> None:
    assert GPU.catalogue.find(dialect, public_name) == model


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        ("wan2.1-1.3b", "wan2.2-5b"),
        ("wan2.1-14b", "wan2.1-i2v-14b-480p"),
        ("wan2.2-t2v-a14b", "wan2.2-i2v-a14b"),
        ("wan2.2-5b", "wan2.2-5b"),
        ("ltx", "ltx"),
        ("darksushi", "darksushi"),
    ],
)
def test_a_picture_is_admitted_on_the_companion_of_a_model_that_takes_text_alone(asked: str, runs: str) -> None:
    assert GPU.catalogue.admit(with_picture(by_default(asked), 0)).model == runs
    assert GPU.catalogue.admit(by_default(asked)).model == asked


def test_no_model_that_takes_text_alone_is_without_a_companion() -> None:
    assert [name for name, entry in GPU.models.items() if "i2v" not in entry.tasks and not entry.i2v] == []


def test_a_last_picture_is_admitted_where_the_checkpoint_was_trained_for_it() -> None:
    assert GPU.catalogue.admit(with_picture(by_default("wan2.2-t2v-a14b"), 0, -1)).model == "wan2.2-i2v-a14b"
    with pytest.raises(NotServedYet, match=r"wan2\.1-i2v-14b-480p cannot do this \(first_last\)"):
        GPU.catalogue.admit(with_picture(by_default("wan2.1-14b"), 0, -1))


def test_a_model_that_starts_from_a_picture_refuses_a_prompt_alone() -> None:
    with pytest.raises(NotServedYet, match=r"image: wan2\.2-i2v-a14b cannot do this \(t2v\)"):
        GPU.catalogue.admit(by_default("wan2.2-i2v-a14b"))


@pytest.mark.parametrize("model", GPU.models)
def test_a_24_gb_card_takes_every_model_at_its_default_size(model: str) -> None:
    # Layer by layer where all of it does not fit: slow, and not to be refused.
    check_fits(GPU.models[model], by_default(model), GB_24)


def test_a_24_gb_card_refuses_14b_at_720p_when_all_of_it_must_be_resident() -> None:
    check_fits(GPU.models["wan2.1-14b"], ask("wan2.1-14b"), GB_24)
    with pytest.raises(InvalidRequest) as refused:
        check_fits(placed("wan2.1-14b", RESIDENT), ask("wan2.1-14b"), GB_24)
    assert str(refused.value) == (
        "81 frames of 1280x720 would need about 54.1 GB of memory on wan2.1-14b, and the largest GPU that serves it "
        "here has 24.0 GB. Nothing near this size fits; use a smaller model."
    )


def test_a_48_gb_card_says_at_which_size_a_resident_14b_fits() -> None:
    with pytest.raises(InvalidRequest, match=r"What fits: 81 frames of \d+x\d+\.$") as refused:
        check_fits(placed("wan2.1-14b", RESIDENT), ask("wan2.1-14b"), GB_48)
    width, height = map(int, str(refused.value).rstrip(".").rsplit(" ", 1)[1].split("x"))
    assert width * height < 1280 * 720
    check_fits(placed("wan2.1-14b", RESIDENT), ask("wan2.1-14b", height=height, width=width), GB_48)


def test_an_80_gb_card_takes_14b_at_720p_resident_and_a14b_only_with_less() -> None:
    check_fits(placed("wan2.1-14b", RESIDENT), ask("wan2.1-14b"), GB_80)
    with pytest.raises(InvalidRequest, match=r"about 82\.\d GB of memory on wan2\.2-t2v-a14b"):
        check_fits(placed("wan2.2-t2v-a14b", RESIDENT), ask("wan2.2-t2v-a14b"), GB_80)
    check_fits(placed("wan2.2-t2v-a14b", Placement(mode="resident", fp8=True)), ask("wan2.2-t2v-a14b"), GB_80)


@pytest.mark.parametrize("model", GPU.models)
def test_an_entry_says_what_admission_and_the_list_of_models_need(model: str) -> None:
    entry = GPU.models[model]
    assert entry.licence
    assert entry.download_gb > 0
    assert entry.geometry.frames > 0
    assert entry.cost.weights_gb > entry.cost.largest_gb > 0
    assert entry.cost.mb_per_1k_tokens > 0
    assert entry.cost.mb_per_megapixel > 0
    assert entry.revision is None, "polyreel pull pins the commit"

"""The catalogue: public names to entries, and what an entry may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter, Limits, Native, ServedModel, Task
from polyreel.errors import ConfigurationError, InvalidRequest, NotServedYet, UnknownModel
from polyreel.request import AdapterUse, ImageCondition, PromptSpan, VideoRequest


def served(*names: str, dialect: str = "modelslab", **values: object) -> ServedModel:
    return ServedModel.model_validate({"family": "ltx", "checkpoint": "tiny:ltx", "names": {dialect: names}, **values})


def test_a_public_name_leads_to_its_entry_whatever_its_case() -> None:
    catalogue = Catalogue({"a": served("LTX", "ltx-2.3"), "b": served("Wan-AI/Wan2.1", dialect="huggingface")})
    assert catalogue.find("modelslab", "ltx") == "a"
    assert catalogue.resolve("modelslab", "LTX-2.3") == "a"
    assert catalogue.resolve("huggingface", "wan-ai/wan2.1") == "b"


def test_a_name_belongs_to_its_dialect_alone() -> None:
    catalogue = Catalogue({"a": served("ltx"), "b": served("ltx", dialect="universal")})
    assert catalogue.find("modelslab", "ltx") == "a"
    assert catalogue.find("universal", "ltx") == "b"
    assert catalogue.find("novita", "ltx") is None
    assert catalogue.find("modelslab", "a") is None, "a catalogue name is no public name"


def test_an_unknown_name_is_refused_with_what_is_served() -> None:
    catalogue = Catalogue({"a": served("wan2.2", "ltx")})
    with pytest.raises(UnknownModel) as refused:
        catalogue.resolve("modelslab", "wan2.1")
    assert str(refused.value) == "Model wan2.1 is not served here. Did you mean wan2.2? Served: ltx, wan2.2."


def test_where_nothing_is_served_the_refusal_says_so() -> None:
    with pytest.raises(UnknownModel) as refused:
        Catalogue({"a": served("wan2.2")}).resolve("novita", "dream.safetensors")
    assert str(refused.value) == "Model dream.safetensors is not served here. Served: none."


def test_public_names_keep_the_operators_order() -> None:
    catalogue = Catalogue({"b": served("two", "one"), "a": served("zero")})
    assert catalogue.public_names("modelslab") == ["two", "one", "zero"]
    assert catalogue.public_names("novita") == []


def test_two_entries_may_not_share_a_name_of_one_dialect() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Catalogue({"a": served("ltx"), "b": served("LTX")})
    assert str(refused.value) == (
        "models.b.names.modelslab: 'LTX' already belongs to a; take it out of one of the two."
    )


def test_our_own_clients_call_entries_by_their_catalogue_names_and_by_any_other() -> None:
    catalogue = Catalogue({"a": served("ltx"), "b": served("Wan-AI/Wan2.1", dialect="huggingface"), "c": served()})
    assert catalogue.public_names("native") == ["a", "b", "c"]
    names = ["C", "ltx", "wan-ai/wan2.1"]
    assert [catalogue.resolve_any(name) for name in names] == ["c", "a", "b"]
    assert catalogue.called("a", "native") == "a"
    with pytest.raises(UnknownModel) as refused:
        catalogue.resolve_any("wan")
    assert str(refused.value) == "Model wan is not served here. Served: a, b, c."


def test_a_name_that_means_two_models_is_refused_with_both() -> None:
    catalogue = Catalogue({"b": served("ltx"), "a": served("LTX", dialect="universal"), "c": served()})
    with pytest.raises(InvalidRequest) as refused:
        catalogue.resolve_any("Ltx")
    assert str(refused.value) == (
        "model: Ltx means several models here: a (universal), b (modelslab). Use one of these."
    )
    assert refused.value.field == "model"


def test_a_catalogue_name_goes_before_another_dialects_word_for_something_else() -> None:
    catalogue = Catalogue({"ltx": served(), "other": served("ltx")})
    assert catalogue.resolve_any("ltx") == "ltx"


def test_our_own_clients_call_loras_by_their_catalogue_names_and_by_any_other() -> None:
    adapter = Adapter.model_validate({"checkpoint": "tiny:lora", "models": ["a"], "names": {"novita": ["Hands_1"]}})
    catalogue = Catalogue({"a": served(), "b": served()}, loras={"hands": adapter})
    assert [catalogue.resolve_lora("native", name, "a") for name in ("hands", "HANDS_1")] == ["hands", "hands"]
    for name, model in (("hands", "b"), ("feet", "a")):
        with pytest.raises(UnknownModel, match=f"LoRA {name} is not served here"):
            catalogue.resolve_lora("native", name, model)


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^models: the catalogue is empty"):
        Catalogue({})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limits": {"num_frames": 16}}, "defaults.num_frames is over limits.num_frames"),
        ({"limits": {"num_inference_steps": 4}}, "defaults.num_inference_steps is over limits.num_inference_steps"),
        ({"limits": {"side": 256}}, "defaults.height is over limits.side"),
        ({"limits": {"side": 512}, "defaults": {"width": 640}}, "defaults.width is over limits.side"),
        ({"limits": {"pixels": 6_553_599}}, r"defaults.num_frames \* height \* width is over limits.pixels"),
    ],
)
def test_a_default_over_its_own_limit_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        served("ltx", **values)


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "int8"},
        {"defaults": {"fps": 0}},
        {"defaults": {"fps": float("inf")}},
        {"defaults": {"guidance_scale": float("nan")}},
        {"defaults": {"height": 63}},
        {"limits": {"side": 63}},
    ],
    ids=str,
)
def test_a_value_that_no_pipeline_could_run_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        served("ltx", **values)


def test_native_sizes_are_pairs_of_height_and_width_and_lengths_rise() -> None:
    entry = served("wan", native={"sizes": [[192, 320], [256, 256]], "num_frames": [25, 49]})
    assert entry.native == Native(sizes=((192, 320), (256, 256)), num_frames=(25, 49))
    assert served("wan").native is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": [], "num_frames": [25]}, r"native\.sizes\n.* must have one at least, got none; leave out"),
        (
            {"sizes": [[64, 64]], "num_frames": []},
            r"native\.num_frames\n.* must have one at least, got none; leave out",
        ),
        ({"sizes": [[64, 72]], "num_frames": [25]}, r"native\.sizes\.0\.1\n.* multiple of 16"),
        ({"sizes": [[0, 64]], "num_frames": [25]}, r"native\.sizes\.0\.0\n.* greater than or equal to 16"),
        ({"sizes": [[64]], "num_frames": [25]}, r"native\.sizes\.0\.1\n.* required"),
        ({"sizes": [[64, 64, 3]], "num_frames": [25]}, r"native\.sizes\.0\n.* at most 2 items"),
        ({"sizes": [[64, 64]], "num_frames": [0]}, r"native\.num_frames\.0\n.* greater than or equal to 1"),
        ({"sizes": [[64, 64]], "num_frames": [49, 25, 25]}, r"got \[49, 25, 25\]; write \[25, 49\]"),
        ({"sizes": [[64, 64]], "num_frames": [25], "fps": 8}, r"native\.fps\n"),
        ({"num_frames": [25]}, r"native\.sizes\n.* required"),
    ],
    ids=str,
)
def test_native_sizes_that_nobody_could_make_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        served("wan", native=values)


def test_a_video_may_have_as_many_pixels_as_its_entry_allows_and_no_more() -> None:
    limits = Limits(pixels=1_000_000)
    limits.check_pixels(num_frames=10, height=250, width=400)
    with pytest.raises(InvalidRequest) as refused:
        limits.check_pixels(num_frames=10, height=250, width=401)
    assert refused.value.message == (
        "frames x width x height must be at most 1000000 pixels in all, got 10 x 401 x 250 = 1002500"
    )


def test_an_entry_allows_a_hundred_million_pixels_unless_it_says_otherwise() -> None:
    assert Limits().pixels == 100_000_000


def with_picture(**fields: object) -> VideoRequest:
    base = VideoRequest(
        model="text",
        prompts=(PromptSpan("a cat", 9),),
        height=64,
        width=64,
        fps=8,
        num_inference_steps=2,
        guidance_scale=4,
        seed=1,
        outputs=(),
        images=(ImageCondition("in/cat"),),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_frames", "most", "made", "advice"),
    [
        (17, 5, 17, "Send at most 5, or ask for more frames."),
        (20, 9, 33, "Send at most 9."),
        (128, 9, 33, "Send at most 9."),
    ],
)
def test_more_prompts_than_a_native_length_can_show_are_refused_at_submit(
    num_frames: int, most: int, made: int, advice: str
) -> None:
    native = Native(sizes=((96, 96),), num_frames=(9, 17, 33))
    entry = ServedModel(family="wan", checkpoint="shipped:atelier", native=native, tasks=("t2v", "prompt_travel"))
    catalogue = Catalogue({"small": entry, "any": entry.model_copy(update={"native": None})})

    def asked(count: int, model: str = "small") -> VideoRequest:
        spans = [PromptSpan("a red circle", 1)] * (count - 1) + [PromptSpan("a star", num_frames - count + 1)]
        return with_picture(model=model, images=(), prompts=tuple(spans))

    assert catalogue.admit(asked(most)) == asked(most)
    assert catalogue.admit(asked(most + 1, "any")) == asked(most + 1, "any"), (
        "what its frames can show is not known here"
    )
    with pytest.raises(InvalidRequest) as refused:
        catalogue.admit(asked(most + 1), words={"prompts": "spans"})
    assert refused.value.field == "spans"
    assert refused.value.message == (
        f"spans has {most + 1} entries; this model makes {made} frames for this video, which show at most {most} "
        f"prompts. {advice}"
    )


COMPANIONS = {
    "text": ServedModel(family="wan", checkpoint="tiny:wan21", i2v="picture"),
    "picture": ServedModel(family="wan", checkpoint="tiny:wan21-i2v", tasks=("i2v", "first_last")),
}


def test_a_picture_moves_a_request_to_the_companion_that_takes_one() -> None:
    catalogue = Catalogue(COMPANIONS)

    assert catalogue.admit(with_picture()).model == "picture"
    assert catalogue.admit(with_picture(images=())).model == "text"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"images": (ImageCondition("in/cat", 4),)},
            "images: picture cannot do this (keyframes). Models that can: none here.",
        ),
        (
            {"closed_loop": True},
            "closed_loop: picture cannot do this (closed_loop). Models that can: none here.",
        ),
        (
            {"loras": (AdapterUse("ink"),)},
            "loras: ink was not made for picture, which runs requests with a picture here; leave one of the two out.",
        ),
    ],
)
def test_what_the_companion_cannot_do_is_refused(fields: dict[str, object], message: str) -> None:
    catalogue = Catalogue(COMPANIONS, loras={"ink": Adapter(checkpoint="ink.safetensors", models=("text",))})

    with pytest.raises(NotServedYet) as refusal:
        catalogue.admit(with_picture(**fields))
    assert refusal.value.message == message


def test_a_refusal_names_models_and_loras_as_the_client_calls_them() -> None:
    def named(tasks: tuple[Task, ...], i2v: str | None = None, **names: tuple[str, ...]) -> ServedModel:
        return ServedModel(family="wan", checkpoint="tiny:wan21", tasks=tasks, i2v=i2v, names=names)

    catalogue = Catalogue(
        {
            "text": named(("t2v", "closed_loop"), novita=("dream.safetensors",), huggingface=("Dream", "Dream-2")),
            "other": named(("t2v",), "picture", novita=("other.safetensors",)),
            "picture": named(("i2v",)),
        },
        loras={"ink": Adapter(checkpoint="ink.safetensors", models=("other",), names={"novita": ("ink_1",)})},
    )

    def refused(dialect: str | None, **fields: Any) -> str:
        with pytest.raises(NotServedYet) as refusal:
            catalogue.admit(with_picture(**fields), dialect)
        return refusal.value.message

    loop: dict[str, Any] = {"images": (), "model": "other", "closed_loop": True}
    assert refused(None) == "image: text cannot do this (i2v). Models that can: other, picture."
    assert refused("novita") == ("image: dream.safetensors cannot do this (i2v). Models that can: other.safetensors.")
    assert refused("huggingface") == "image: this model cannot do this (i2v). Models that can: none here."
    assert refused("novita", **loop) == (
        "closed_loop: other.safetensors cannot do this (closed_loop). Models that can: dream.safetensors."
    )
    assert refused("huggingface", **loop) == (
        "closed_loop: this model cannot do this (closed_loop). Models that can: Dream, Dream-2."
    )
    assert refused("novita", model="other", loras=(AdapterUse("ink"),)) == (
        "loras: ink_1 was not made for the model, which runs requests with a picture here; leave one of the two out."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": (PromptSpan("a cat", 26),)}, "num_frames must be at most 25 for a video from a picture, got 26"),
        ({"height": 513}, "height must be at most 512 for a video from a picture, got 513"),
        ({"width": 520}, "width must be at most 512 for a video from a picture, got 520"),
        ({"num_inference_steps": 31}, "num_inference_steps must be at most 30 for a video from a picture, got 31"),
    ],
)
def test_a_request_with_a_picture_is_held_to_the_companions_limits(fields: dict[str, Any], message: str) -> None:
    limits = Limits(num_frames=25, side=512, num_inference_steps=30)
    picture = COMPANIONS["picture"].model_copy(update={"limits": limits})
    catalogue = Catalogue({**COMPANIONS, "picture": picture})
    most = with_picture(prompts=(PromptSpan("a cat", 25),), height=512, width=512, num_inference_steps=30)

    assert catalogue.admit(most).model == "picture"
    assert catalogue.admit(with_picture(images=(), **fields)).model == "text"
    with pytest.raises(InvalidRequest) as refusal:
        catalogue.admit(replace(most, **fields))
    assert (refusal.value.message, refusal.value.field) == (message, message.split()[0])


@pytest.mark.parametrize(
    ("section", "adapter", "message"),
    [
        ("loras", {"models": ["txt"]}, "loras.ink.models: 'txt' is not served. Did you mean text?"),
        ("embeddings", {"models": ["text"]}, "embeddings.ink.token: name the word by which prompts call it."),
    ],
)
def test_an_adapter_that_refers_to_nothing_stops_the_start(
    section: str, adapter: dict[str, object], message: str
) -> None:
    entry = Adapter.model_validate({"checkpoint": "ink.safetensors", **adapter})

    with pytest.raises(ConfigurationError) as refusal:
        Catalogue(COMPANIONS, **{section: {"ink": entry}})  # type: ignore[arg-type]
    assert str(refusal.value) == message


def test_a_companion_that_takes_no_picture_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"models\.text\.i2v: 'text' is not an entry with the task i2v"):
        Catalogue({"text": ServedModel(family="wan", checkpoint="tiny:wan21", i2v="text")})

"""ModelsLab's text2video: what each field means and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from polyreel.catalogue import Catalogue
from polyreel.request import Upscale, VideoRequest
from server.body import validate
from server.dialects.modelslab import ModelsLabSettings, text_to_video
from server.dialects.modelslab.answers import to_wire
from server.dialects.modelslab.text_to_video import TextToVideo
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed
from tests.dialects.modelslab import SUBMIT, body

FILE_PREFIX = "2be1702e-3a1f-46ee-811c-350cee84b66e"
CLAMP_HINT = " (setting dialects.modelslab.out_of_range: clamp would adjust it)"


@pytest.mark.parametrize("row", golden("modelslab"), ids=str)
def test_a_body_becomes_the_neutral_request_and_the_answer(row: Row, catalogue: Catalogue) -> None:
    request, meta = text_to_video.from_wire(validate(TextToVideo, row.wire), catalogue, ModelsLabSettings())
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)

    assert meta.pop("seed") == request.seed
    assert row.answer["meta"].pop("seed", None) == row.neutral["seed"]
    stored = finished(request, FILE_PREFIX)
    stored.job.vendor["meta"] = meta
    answer = to_wire(stored, row.answer["output"], "http://api.test/fetch", 0)
    assert answer == row.answer


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, None),
        ({"upscale_strength": 0.5}, None),
        ({"upscale_height": 1024, "upscale_width": 768}, (1024, 768)),
        ({"upscale_height": 1024}, (1024, 1024)),
        ({"upscale_width": 1000, "height": 320, "width": 512}, (625, 1000)),
        ({"upscale_height": 999, "height": 512, "width": 256}, (999, 500)),
    ],
)
def test_upscaling_takes_both_sides_or_keeps_the_aspect_of_one(
    fields: dict[str, Any], size: tuple[int, int] | None, catalogue: Catalogue
) -> None:
    wire = validate(TextToVideo, {"prompt": "a cat", **fields})
    request, meta = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())

    assert (request.upscale and (request.upscale.height, request.upscale.width)) == size
    assert (meta["upscale_height"], meta["upscale_width"]) == (size or (None, None))


def test_upscaling_has_the_documented_defaults(catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "a cat", "upscale_height": 768, "upscale_width": 768})
    request, _ = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())

    assert request.upscale == Upscale(768, 768, strength=0.6, guidance_scale=12, num_inference_steps=20)


@pytest.mark.parametrize(
    ("model_id", "fields", "seed"),
    [
        ("animatediff", {"use_improved_sampling": True}, 42),
        ("animatediff", {"use_improved_sampling": "yes", "improved_sampling_seed": 7}, 7),
        ("animatediff", {"improved_sampling_seed": 7}, None),
        ("wan2.2", {"use_improved_sampling": True}, None),
    ],
)
def test_improved_sampling_has_its_own_seed_on_models_that_have_it(
    model_id: str, fields: dict[str, Any], seed: int | None, catalogue: Catalogue
) -> None:
    wire = validate(TextToVideo, {"prompt": "a cat", "model_id": model_id, **fields})
    request, meta = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())

    assert request.improved_sampling_seed == seed
    assert meta["use_improved_sampling"] == ("yes" if "use_improved_sampling" in fields else "no")
    assert meta["improved_sampling_seed"] == fields.get("improved_sampling_seed", 42)


# Fields

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt is required"),
    ({"prompt": "  "}, "prompt must not be blank"),
    ({"prompt": 5}, "prompt must be a string, got 5"),
    ({"height": 63}, f"height must be between 64 and 512, got 63{CLAMP_HINT}"),
    ({"height": 513}, f"height must be between 64 and 512, got 513{CLAMP_HINT}"),
    ({"width": 63}, f"width must be between 64 and 512, got 63{CLAMP_HINT}"),
    ({"width": 1024}, f"width must be between 64 and 512, got 1024{CLAMP_HINT}"),
    ({"width": "wide"}, 'width must be an integer, got "wide"'),
    ({"num_frames": 0}, f"num_frames must be between 1 and 25, got 0{CLAMP_HINT}"),
    ({"num_frames": 30}, f"num_frames must be between 1 and 25, got 30{CLAMP_HINT}"),
    ({"num_frames": 16.5}, "num_frames must be an integer, got 16.5"),
    ({"num_frames": True}, "num_frames must be a number, got true"),
    ({"num_inference_steps": 0}, f"num_inference_steps must be between 1 and 50, got 0{CLAMP_HINT}"),
    ({"num_inference_steps": 51}, f"num_inference_steps must be between 1 and 50, got 51{CLAMP_HINT}"),
    ({"guidance_scale": -0.1}, f"guidance_scale must be between 0 and 8, got -0.1{CLAMP_HINT}"),
    ({"guidance_scale": 8.5}, f"guidance_scale must be between 0 and 8, got 8.5{CLAMP_HINT}"),
    ({"clip_skip": -1}, f"clip_skip must be between 0 and 2, got -1{CLAMP_HINT}"),
    ({"clip_skip": 3}, f"clip_skip must be between 0 and 2, got 3{CLAMP_HINT}"),
    ({"fps": 0}, f"fps must be between 1 and 16, got 0{CLAMP_HINT}"),
    ({"fps": 17}, f"fps must be between 1 and 16, got 17{CLAMP_HINT}"),
    ({"upscale_strength": 1.1}, f"upscale_strength must be between 0 and 1, got 1.1{CLAMP_HINT}"),
    ({"upscale_guidance_scale": 21}, f"upscale_guidance_scale must be between 0 and 20, got 21{CLAMP_HINT}"),
    (
        {"upscale_num_inference_steps": 51},
        f"upscale_num_inference_steps must be between 1 and 50, got 51{CLAMP_HINT}",
    ),
    ({"upscale_height": 1025}, f"upscale_height must be between 64 and 1024, got 1025{CLAMP_HINT}"),
    ({"upscale_width": 1025}, f"upscale_width must be between 64 and 1024, got 1025{CLAMP_HINT}"),
    (
        {"height": 256, "upscale_height": 640},
        "upscale_width must be between 64 and 1024, got 1280, as the aspect of the video asks; send both sides",
    ),
    (
        {"width": 256, "upscale_width": 640},
        "upscale_height must be between 64 and 1024, got 1280, as the aspect of the video asks; send both sides",
    ),
    ({"improved_sampling_seed": -2}, "improved_sampling_seed must be between -1 and 9223372036854775807, got -2"),
    ({"seed": -2}, "seed must be between -1 and 9223372036854775807, got -2"),
    ({"seed": 2**63}, "seed must be between -1 and 9223372036854775807, got 9223372036854775808"),
    ({"output_type": "webm"}, "output_type must be one of 'mp4' or 'gif', got \"webm\""),
    ({"temp": "perhaps"}, 'temp must be true or false, got "perhaps"'),
    ({"use_improved_sampling": 2}, "use_improved_sampling must be true or false, got 2"),
    ({"track_id": 1.5}, "track_id must be a string or an integer, got 1.5"),
    ({"track_id": "x" * 1001}, f'track_id must be at most 1000 characters, got "{"x" * 56}…'),
    ({"track_id": True}, "track_id must be a string or an integer, got true"),
    ({"webhook": "http://example.com/hook"}, "webhook must start with https://, got http://"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
async def test_a_wrong_field_is_refused_in_one_sentence(api: Api, fields: dict[str, Any], message: str) -> None:
    response = await api.http.post(SUBMIT, json=body(api, **fields))
    assert response.status_code == 400
    assert response.json() == {"status": "error", "message": message}
    assert api.records.open_ids() == []


CLAMPED = [
    ({"height": 1024, "width": 8}, {"height": 512, "width": 64}),
    ({"num_frames": 30}, {"num_frames": 25}),
    ({"num_frames": -3}, {"num_frames": 1}),
    ({"num_inference_steps": 100}, {"num_inference_steps": 50}),
    ({"guidance_scale": 9.5}, {"guidance_scale": 8}),
    ({"fps": 24}, {"fps": 16}),
    ({"clip_skip": 12}, {"clip_skip": 2}),
    ({"guidance_scale": 7.5, "num_frames": 24}, {"guidance_scale": 7.5, "num_frames": 24}),
]


@pytest.mark.parametrize(("sent", "runs"), CLAMPED)
def test_the_clamp_setting_takes_the_nearest_allowed_value(
    sent: dict[str, float], runs: dict[str, float], catalogue: Catalogue
) -> None:
    request, meta = text_to_video.from_wire(
        validate(TextToVideo, {"prompt": "x"} | sent), catalogue, ModelsLabSettings(out_of_range="clamp")
    )
    assert {name: getattr(request, name) for name in runs} == runs
    assert {name: meta[name] for name in runs} == runs


@pytest.mark.parametrize("truth", [True, "yes", "TRUE", "true", 1])
@pytest.mark.parametrize("field", ["use_improved_sampling", "instant_response", "temp"])
def test_a_true_boolean_is_echoed_as_yes(field: str, truth: object, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", field: truth})
    assert text_to_video.from_wire(wire, catalogue, ModelsLabSettings())[1][field] == "yes"


@pytest.mark.parametrize("untruth", [False, "no", "FALSE", 0, None])
@pytest.mark.parametrize("field", ["use_improved_sampling", "instant_response", "temp"])
def test_a_false_boolean_is_echoed_as_no(field: str, untruth: object, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", field: untruth})
    assert text_to_video.from_wire(wire, catalogue, ModelsLabSettings())[1][field] == "no"


@pytest.mark.parametrize("seed", [None, -1, "-1"])
def test_a_seed_that_is_not_given_is_drawn_and_reported(seed: object, catalogue: Catalogue) -> None:
    request, meta = text_to_video.from_wire(
        validate(TextToVideo, {"prompt": "x", "seed": seed}), catalogue, ModelsLabSettings()
    )
    assert 0 <= request.seed < 2**32
    assert meta["seed"] == request.seed


@pytest.mark.parametrize("track_id", ["order-7", 7, None])
def test_track_id_is_echoed_as_given(track_id: object, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", "track_id": track_id})
    assert text_to_video.from_wire(wire, catalogue, ModelsLabSettings())[1]["track_id"] == track_id


@pytest.mark.parametrize(
    ("model_id", "entry", "echoed"),
    [
        (None, "atelier", "wan2.2"),
        ("", "atelier", "wan2.2"),
        ("zeroscope", "atelier", "wan2.2"),
        ("wan2.2", "atelier", "wan2.2"),
        ("wanx", "atelier", "wanx"),
        ("cogvideox", "atelier", "cogvideox"),
        ("ltx", "ltx-tiny", "ltx"),
        ("ltx-2.3", "ltx-tiny", "ltx-2.3"),
        ("LTX", "ltx-tiny", "LTX"),
        ("animatediff", "animatediff-tiny", "animatediff"),
    ],
)
def test_a_model_id_is_never_an_error(model_id: str | None, entry: str, echoed: str, catalogue: Catalogue) -> None:
    wire = validate(TextToVideo, {"prompt": "x", "model_id": model_id})
    request, meta = text_to_video.from_wire(wire, catalogue, ModelsLabSettings())
    assert (request.model, meta["model_id"]) == (entry, echoed)


def test_the_operator_chooses_the_default_format_and_model(catalogue: Catalogue) -> None:
    settings = ModelsLabSettings(default_output_type="mp4", default_model="ltx")
    request, meta = text_to_video.from_wire(validate(TextToVideo, {"prompt": "x"}), catalogue, settings)
    assert (request.outputs[0].format, meta["output_type"]) == ("mp4", "mp4")
    assert (request.model, meta["model_id"]) == ("ltx-tiny", "ltx")

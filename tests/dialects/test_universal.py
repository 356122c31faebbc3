"""Hugging Face's universal handler, as its model card and the toolkit that it runs in speak it."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from polyreel.catalogue import Catalogue
from polyreel.errors import ConfigurationError, QueueUnavailable, StorageFailed
from polyreel.request import ImageCondition, VideoRequest, picture_key
from polyreel.settings import Settings
from polyreel.storage.local import LocalStorage
from server.body import validate
from server.dialects.universal.answer import to_wire
from server.dialects.universal.request import UniversalBody, from_wire
from server.services import Services
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed
from tests.server.pictures import noise_png, png

ID = "fa20dff3-18cb-4417-a7f8-269456a35154"


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(api: Api, *, path: str = "/", content: bytes = b"", **inputs: Any) -> httpx2.Response:
    """Send inputs, or `content` as it is; nobody finishes its job."""
    sent: dict[str, Any] = {"content": content} if content else {"json": {"inputs": {"prompt": "a cat"} | inputs}}
    with anyio.fail_after(20):
        return await api.http.post(path, headers=auth(api.key), **sent)


async def generate(
    api: Api, file: bytes = b"GIF89a", submitted: list[VideoRequest] | None = None, **request: Any
) -> httpx2.Response:
    """Send a request while a worker makes its files, all the same; `submitted` learns what it runs."""

    async def work() -> None:
        while not api.records.open_ids():  # noqa: ASYNC110 the job arrives in Redis, which sets no event
            await anyio.sleep(0.01)
        if submitted is not None:
            submitted.append(api.newest().job.request)
        api.finish(api.newest().job.id, file)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        return await ask(api, **request)


# The two translations


@pytest.mark.parametrize("row", golden("universal"), ids=str)
def test_a_body_becomes_the_neutral_request(row: Row, catalogue: Catalogue) -> None:
    request = from_wire(validate(UniversalBody, row.wire), "ltx-tiny", catalogue)
    # A picture is stored first, and its key is in the request that is submitted (tested below).
    without_picture = {name: value for name, value in row.neutral.items() if name != "images"}
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(without_picture)


@pytest.mark.parametrize("row", golden("universal"), ids=str)
def test_the_finished_request_becomes_the_answer(row: Row) -> None:
    stored = finished(VideoRequest.from_dict(row.neutral), ID)
    assert to_wire(stored, row.answer["outputs"]) == row.answer


@pytest.mark.anyio
@pytest.mark.parametrize("row", golden("universal"), ids=str)
async def test_a_request_is_answered_with_the_outputs_that_it_asks_for(api: Api, row: Row) -> None:
    submitted: list[VideoRequest] = []
    answer = await generate(api, submitted=submitted, **row.wire["inputs"])
    assert answer.status_code == 200, answer.text
    assert list(answer.json()["outputs"]) == list(row.answer["outputs"])
    assert submitted[0].images == VideoRequest.from_dict(row.neutral).images


@pytest.mark.anyio
async def test_a_picture_is_stored_as_it_came_under_its_digest(api: Api) -> None:
    content = png(9, 7)
    submitted: list[VideoRequest] = []
    answer = await generate(api, image=base64.b64encode(content).decode(), submitted=submitted)

    assert answer.json()["diagnostics"]["mode"] == "i2v"
    [image] = submitted[0].images
    assert image == ImageCondition(f"in/{hashlib.sha256(content).hexdigest()}", frame_index=0, strength=1.0)
    with api.storage.open(image.key) as file:
        assert file.read() == content


def stored_pictures(api: Api) -> list[str]:
    """Return the keys of all pictures in the storage."""
    return [f"in/{file.name}" for file in (api.scratch / "results").glob("in/*") if file.is_file()]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("max_queued", "tasks", "num_frames", "status"),
    [(0, ("t2v", "i2v"), 9, 429), (9, ("t2v",), 9, 400), (9, ("t2v", "i2v"), 129, 400)],
    ids=["queue full", "takes no picture", "too many pixels"],
)
async def test_the_picture_of_a_refused_request_is_never_stored(
    make_api: Callable[..., Api],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    max_queued: int,
    tasks: tuple[str, ...],
    num_frames: int,
    status: int,
) -> None:
    stored: list[str] = []
    monkeypatch.setattr(LocalStorage, "put", lambda _self, _source, key: stored.append(key))
    models = {**settings.models, "ltx-tiny": settings.models["ltx-tiny"].model_copy(update={"tasks": tasks})}
    api = make_api(models=models, max_queued=max_queued, dialects={"universal": {"endpoint_model": "ltx"}})
    image = base64.b64encode(png(9, 7)).decode()
    answer = await ask(api, image=image, num_frames=num_frames, height=1280, width=1280)

    assert answer.status_code == status
    assert stored == []


@pytest.mark.anyio
async def test_the_picture_of_a_job_that_redis_may_have_taken_stays(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def goes_away(*_: object) -> None:
        raise QueueUnavailable("The queue does not answer.")

    monkeypatch.setattr(api.app.state.services.queue, "submit", goes_away)
    answer = await ask(api, image=base64.b64encode(png(9, 7)).decode())

    assert answer.status_code == 503
    assert stored_pictures(api) == [picture_key(png(9, 7))]


@pytest.mark.anyio
async def test_two_pictures_at_most_are_decoded_at_the_same_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    most, now, lock = 0, 0, threading.Lock()

    def look_at(_field: str, _content: bytes) -> tuple[int, int]:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return 9, 7

    monkeypatch.setattr("server.pictures.look_at", look_at)
    text = base64.b64encode(png(9, 7)).decode()
    shared: Services = api.app.state.services
    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(shared.read_picture, "image", text)

    assert most == 2


@pytest.mark.anyio
async def test_a_picture_in_lines_is_taken_as_the_cards_shell_example_sends_it(api: Api) -> None:
    """`IMG_B64=$(base64 -i my_input.jpg)` has lines on Linux, and the example puts them into JSON as they are."""
    in_lines = base64.encodebytes(noise_png(20))
    submitted: list[VideoRequest] = []

    answer = await generate(
        api, submitted=submitted, content=b'{"inputs": {"prompt": "waves", "image": "' + in_lines + b'"}}'
    )

    assert in_lines.count(b"\n") > 10
    assert answer.status_code == 200, answer.text
    assert submitted[0].images[0].key == picture_key(noise_png(20))


@pytest.mark.anyio
async def test_a_photograph_of_megabytes_fits_into_a_body(api: Api) -> None:
    content = noise_png(1500)

    answer = await generate(api, image=base64.b64encode(content).decode())

    assert len(content) > 6_000_000
    assert answer.status_code == 200, answer.text


@pytest.mark.anyio
async def test_a_picture_for_a_model_that_takes_none_runs_its_companion(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    models = dict(settings.models)
    models["ltx-tiny"] = models["ltx-tiny"].model_copy(update={"tasks": ("t2v",), "i2v": "atelier"})
    api = make_api(models=models, dialects={"universal": {"endpoint_model": "ltx"}})
    submitted: list[VideoRequest] = []
    answer = await generate(api, image=base64.b64encode(png(8, 8)).decode(), submitted=submitted)

    assert answer.status_code == 200
    assert submitted[0].model == "atelier"


@pytest.mark.anyio
async def test_a_picture_for_a_model_that_takes_none_is_refused_without_a_companion(
    make_api: Callable[..., Api], settings: Settings
) -> None:
    models = dict(settings.models)
    models["ltx-tiny"] = models["ltx-tiny"].model_copy(update={"tasks": ("t2v",)})
    api = make_api(models=models, dialects={"universal": {"endpoint_model": "ltx"}})
    answer = await ask(api, image=base64.b64encode(png(8, 8)).decode())

    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "inputs.image: ltx cannot do this (i2v). Models that can: wan2.2, animatediff.",
    )


@pytest.mark.anyio
@pytest.mark.parametrize("row", golden("universal", refused=True), ids=str)
async def test_a_documented_request_that_is_not_served_here_says_so(api: Api, row: Row) -> None:
    answer = await api.http.post("/", json=row.wire, headers=auth(api.key))
    assert (answer.status_code, answer.json()) == (400, {"ok": False, "error": row.error, "field": "inputs.image"})
    assert api.records.open_ids() == []


# The answer


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/predict"])
async def test_the_answer_holds_the_file_and_how_long_it_took(api: Api, path: str) -> None:
    response = await generate(api, b"GIF89a", path=path)
    assert len(response.headers["x-request-id"]) == 36, "the job's id"
    answer = response.json()
    assert list(answer) == ["ok", "outputs", "diagnostics"]
    assert answer["ok"] is True
    assert answer["outputs"] == {"gif_base64": "R0lGODlh"}
    assert answer["diagnostics"]["mode"] == "t2v"
    timing_ms = answer["diagnostics"]["timing_ms"]
    assert list(timing_ms) == ["queue", "load", "generate", "encode", "store", "total"]
    assert {stage: timing_ms[stage] for stage in ("load", "generate", "encode", "store")} == {
        "load": 100.0,
        "generate": 1250.0,
        "encode": 500.0,
        "store": 10.0,
    }
    assert 0 <= timing_ms["queue"] <= timing_ms["total"] < 10_000


@pytest.mark.anyio
@pytest.mark.parametrize("length", [0, 1, 2, 3, 786_431, 786_432, 786_433, 2_000_000])
async def test_a_file_of_any_length_survives_base64_in_one_line(api: Api, length: int) -> None:
    content = bytes(range(256)) * (length // 256 + 1)
    answer = await generate(api, content[:length], outputs=["webm", "zip"])
    outputs = answer.json()["outputs"]
    assert list(outputs) == ["webm_base64", "zip_base64"]
    for text in outputs.values():
        assert base64.b64decode(text, validate=True) == content[:length]


@pytest.mark.anyio
async def test_several_outputs_are_one_job(api: Api) -> None:
    await generate(api, outputs=["gif", "webm", "zip"])
    assert len(list(api.storage.folder.glob("out/*"))) == 1


@pytest.mark.anyio
async def test_without_base64_the_files_are_behind_links_that_need_no_key(api: Api) -> None:
    answer = (await generate(api, b"bytes", outputs=["gif", "zip"], return_base64=False)).json()
    assert list(answer["outputs"]) == ["gif_url", "zip_url"]
    for link in answer["outputs"].values():
        assert link.startswith("http://api.test/files/")
        assert (await api.http.get(link)).content == b"bytes"


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_endpoints_probe_is_answered_without_a_key(api: Api, method: str) -> None:
    answer = await api.http.request(method, "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text == ("Ok" if method == "GET" else "")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("endpoint_model", "model"), [("ltx", "ltx-tiny"), ("AnimateDiff", "animatediff-tiny"), (None, "atelier")]
)
async def test_the_operator_chooses_the_model_and_else_it_is_the_first(
    make_api: Callable[..., Api], endpoint_model: str | None, model: str
) -> None:
    api = make_api(dialects={"universal": {"endpoint_model": endpoint_model, "wait_s": 0}})
    await ask(api)
    assert api.newest().job.request.model == model


def test_an_endpoint_model_that_is_not_in_the_catalogue_stops_the_start(make_api: Callable[..., Api]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_api(dialects={"universal": {"endpoint_model": "sora"}})
    assert caught.value.message == (
        "dialects.universal.endpoint_model: 'sora' is not a model of this endpoint. "
        "The catalogue's universal names: wan2.2, ltx, animatediff."
    )


@pytest.mark.anyio
async def test_a_catalogue_without_a_model_for_the_endpoint_serves_the_other_dialects(
    make_api: Callable[..., Api], catalogue: Catalogue
) -> None:
    nameless = catalogue["atelier"].model_copy(update={"names": {"modelslab": ("wan2.2",)}})
    answer = await ask(make_api(models={"atelier": nameless}, loras={}, embeddings={}, dialects={}))
    assert answer.status_code == 500
    assert answer.json() == {
        "ok": False,
        "error": "dialects.universal.endpoint_model: '' is not a model of this endpoint. "
        "The catalogue's universal names: none.",
    }


@pytest.mark.anyio
@pytest.mark.parametrize("seed", [None, -1])
async def test_a_seed_that_is_not_given_is_drawn(make_api: Callable[..., Api], seed: int | None) -> None:
    api = make_api(dialects={"universal": {"wait_s": 0}})
    await ask(api, seed=seed)
    await ask(api, seed=seed)
    first, second = (api.records.get(job_id) for job_id in api.records.open_ids())
    assert first is not None
    assert second is not None
    assert first.job.request.seed != second.job.request.seed


# Refusals

MOST = "9223372036854775807"
KNOWN = 'inputs.outputs must hold only "gif", "webm", "zip", got '
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "inputs.prompt is required"),
    ({"prompt": " "}, "inputs.prompt must not be blank"),
    ({"prompt": 7}, "inputs.prompt must be a string, got 7"),
    ({"image": ""}, "inputs.image must be a picture in base64 or an https:// link to one, got nothing"),
    (
        {"image": "cat!"},
        "inputs.image must be a picture in base64 or an https:// link to one, got text that is neither",
    ),
    ({"image": "QUJDREVGRw=="}, "inputs.image must be a picture (PNG, JPEG, WEBP, GIF, BMP), got something else"),
    ({"image": 7}, "inputs.image must be a string, got 7"),
    ({"negative_prompt": 7}, "inputs.negative_prompt must be a string, got 7"),
    (
        {"negative_prompt": [7]},
        "inputs.negative_prompt must be a string or a list of strings, got a list of 1",
    ),
    ({"num_frames": 0}, "inputs.num_frames must be between 1 and 129, got 0"),
    ({"num_frames": 130}, "inputs.num_frames must be between 1 and 129, got 130"),
    ({"num_frames": 1.5}, "inputs.num_frames must be an integer, got 1.5"),
    ({"num_frames": True}, "inputs.num_frames must be a number, got true"),
    ({"fps": 0}, "inputs.fps must be between 1 and 100, got 0"),
    ({"fps": 101}, "inputs.fps must be between 1 and 100, got 101"),
    ({"fps": 12.5}, "inputs.fps must be an integer, got 12.5"),
    ({"height": 32}, "inputs.height must be between 64 and 1280, got 32"),
    ({"height": 1312}, "inputs.height must be between 64 and 1280, got 1312"),
    ({"height": 500}, "inputs.height must be divisible by 32, got 500; nearest: 512"),
    ({"width": 0}, "inputs.width must be between 64 and 1280, got 0"),
    ({"width": 65}, "inputs.width must be divisible by 32, got 65; nearest: 64"),
    ({"width": "wide"}, 'inputs.width must be an integer, got "wide"'),
    ({"seed": -2}, f"inputs.seed must be between -1 and {MOST}, got -2"),
    ({"seed": 2**63}, f"inputs.seed must be between -1 and {MOST}, got 9223372036854775808"),
    ({"num_inference_steps": 0}, "inputs.num_inference_steps must be between 1 and 100, got 0"),
    ({"num_inference_steps": 101}, "inputs.num_inference_steps must be between 1 and 100, got 101"),
    ({"guidance_scale": -1}, "inputs.guidance_scale must be between 0 and 100, got -1"),
    ({"guidance_scale": 101}, "inputs.guidance_scale must be between 0 and 100, got 101"),
    ({"guidance_scale": "high"}, 'inputs.guidance_scale must be a number, got "high"'),
    ({"outputs": []}, 'inputs.outputs must name at least one of "gif", "webm", "zip", got an empty list'),
    ({"outputs": ["mp4"]}, KNOWN + '"mp4"'),
    ({"outputs": ["gif", "GIF"]}, KNOWN + '"GIF"'),
    ({"outputs": "gif"}, 'inputs.outputs must be a list, got "gif"'),
    ({"outputs": [7]}, "inputs.outputs.0 must be a string, got 7"),
    ({"return_base64": "perhaps"}, 'inputs.return_base64 must be true or false, got "perhaps"'),
    ({"gif": 7}, "inputs.gif must be an object, got 7"),
    ({"gif": {"fps": 0}}, "inputs.gif.fps must be between 1 and 100, got 0"),
    ({"webm": {"fps": 101}}, "inputs.webm.fps must be between 1 and 100, got 101"),
    ({"webm": {"quality": "super"}}, "inputs.webm.quality must be one of 'fast', 'good' or 'best', got \"super\""),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
async def test_a_wrong_field_is_refused_in_one_sentence(api: Api, fields: dict[str, Any], message: str) -> None:
    answer = await ask(api, **fields)
    body = answer.json()
    assert (answer.status_code, body["ok"], body["error"]) == (400, False, message)
    assert api.records.open_ids() == []


BODIES: list[tuple[bytes, str]] = [
    (b"", "The request body is not valid JSON: Expecting value (line 1)."),
    (b"[]", "The request body must be a JSON object."),
    (b"{}", "Body needs to provide a inputs key, received: []"),
    (
        b'{"prompt": "a secret", "num_frames": 24}',
        'Body needs to provide a inputs key, received: ["prompt", "num_frames"]',
    ),
    (b'{"inputs": null}', "inputs must be an object, got null"),
    (b'{"inputs": []}', "inputs must be an object, got a list of 0"),
    (b'{"inputs": {}}', "inputs.prompt is required"),
    (
        b'{"inputs": "a cat"}',
        'inputs must be an object with a "prompt"; inputs that are a text go to POST /models/{model}',
    ),
    (
        b'{"inputs": {"prompt": "a", "guidance_scale": Infinity}}',
        "The request body holds Infinity, which is not a number in JSON.",
    ),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "message"), BODIES, ids=[message[:60] for _, message in BODIES])
async def test_a_wrong_body_is_refused_in_one_sentence(api: Api, body: bytes, message: str) -> None:
    answer = await api.http.post("/", content=body, headers=auth(api.key))
    assert (answer.status_code, answer.json()["ok"], answer.json()["error"]) == (400, False, message)


@pytest.mark.anyio
async def test_a_file_that_cannot_be_read_is_an_error_and_not_half_an_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_storage: object, _key: str) -> None:
        raise StorageFailed("No such file.")

    monkeypatch.setattr(type(api.storage), "open", lost)
    answer = await generate(api)
    assert (answer.status_code, answer.json()) == (500, {"ok": False, "error": "A result file could not be read."})

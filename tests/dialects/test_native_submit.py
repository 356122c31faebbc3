"""Making jobs in our own words: what a body means, and how one is refused."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import pytest

from polyreel.catalogue import Catalogue
from polyreel.errors import InvalidRequest
from polyreel.estimates import Estimate
from polyreel.request import ImageCondition, VideoRequest, picture_key
from server.body import validate
from server.dialects.native.answer import JobAnswer, to_wire
from server.dialects.native.fields import NewJob
from server.dialects.native.problems import Problem
from server.dialects.native.video import from_wire
from server.pictures import Picture
from server.services import Services
from tests.conftest import Api
from tests.dialects.golden import Row, finished, golden, without_drawn_seed
from tests.server.pictures import png

pytestmark = pytest.mark.anyio

ID = "7b1e0000-0000-4000-8000-000000000000"


async def post(api: Api, body: dict[str, Any], key: str | None = None, **headers: str) -> httpx2.Response:
    mine = {"Authorization": f"Bearer {key or api.key}", **headers}
    return await api.http.post("/polyreel/v1/jobs", json=body, headers=mine)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "ltx-tiny", "prompt": "Waves", "num_frames": 9, **more}


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("row", golden("native"), ids=str)
async def test_a_body_becomes_the_neutral_request(row: Row, catalogue: Catalogue) -> None:
    request = from_wire(validate(NewJob, row.wire), catalogue)
    assert without_drawn_seed(request, row.neutral) == VideoRequest.from_dict(row.neutral)


@pytest.mark.parametrize("row", golden("native"), ids=str)
async def test_the_finished_request_becomes_the_answer(row: Row) -> None:
    request = VideoRequest.from_dict({**row.neutral, "seed": row.neutral["seed"] or 0})
    stored = finished(request, ID)
    links = ["https://api.test/file"] * len(request.outputs)
    answer = to_wire(stored, links, Estimate(0, 0.0), 60)
    assert {name: answer[name] for name in row.answer} == row.answer
    assert [output["format"] for output in answer["outputs"]] == [spec.format for spec in request.outputs]
    assert answer["expires_at"] == stored.job.ended_at + 60
    assert JobAnswer.model_validate(answer).model_dump(mode="json") == answer


async def test_each_submit_is_accepted_and_says_where_to_ask(api: Api) -> None:
    """And answers hold only documented fields (RELIABILITY.md, A4), whatever the body holds."""
    for row in golden("native"):
        answer = await post(api, row.wire)
        assert answer.status_code == 202, answer.text
        made = api.newest()
        assert answer.headers["location"] == f"http://api.test/polyreel/v1/jobs/{made.job.id}"
        assert set(answer.json()) == set(JobAnswer.model_fields)
        assert (made.job.owner, made.job.status, made.job.dialect, made.job.keep_s) == (
            "alice",
            "queued",
            "native",
            row.wire.get("keep_s", 0.0),
        )
        read = await api.http.get(answer.headers["location"], headers={"Authorization": f"Bearer {api.key}"})
        assert read.json() == answer.json()


async def test_each_wrong_body_is_refused_and_told_what_is_allowed(api: Api) -> None:
    rows = golden("native", refused=True)
    answers = {row.name: await post(api, row.wire) for row in rows}
    assert {name: answer.json()["detail"] for name, answer in answers.items()} == {row.name: row.error for row in rows}
    for answer in answers.values():
        is_unknown = answer.json()["detail"].startswith(("Model ", "LoRA "))
        assert answer.status_code == (404 if is_unknown else 400)
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) <= set(Problem.model_fields)
    assert api.records.open_ids() == []


async def test_a_name_that_means_two_models_is_refused_with_both(api: Api, make_api: Any, settings: Any) -> None:
    models = dict(settings.models)
    models["atelier"] = models["atelier"].model_copy(update={"names": {"novita": ("ltx",), "modelslab": ("wan2.2",)}})
    api = make_api(models=models, dialects={"universal": {"endpoint_model": "ltx"}})
    answer = await post(api, body(model="LTX"))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("model: LTX means several models here: atelier (novita), ltx-tiny (")
    assert answer.json()["detail"].endswith("). Use one of these.")
    assert answer.json()["field"] == "model"


async def test_pictures_are_stored_and_come_in_the_order_of_their_frames(api: Api) -> None:
    first, middle, last = png(9, 7), png(8, 8), png(7, 9)
    answer = await post(
        api,
        body(
            last_image=f"data:image/png;base64,{text(last)}",
            keyframes=[{"frame_index": 4, "image": text(middle), "strength": 0.5}],
            image=text(first),
        ),
    )
    assert answer.status_code == 202, answer.text
    made = api.newest().job
    assert made.request.images == (
        ImageCondition(picture_key(first), 0),
        ImageCondition(picture_key(middle), 4, 0.5),
        ImageCondition(picture_key(last), -1),
    )
    for content in (first, middle, last):
        with api.storage.open(picture_key(content)) as file:
            assert file.read() == content
    assert answer.json()["request"]["images"] == [
        {"frame_index": 0, "strength": 1.0},
        {"frame_index": 4, "strength": 0.5},
        {"frame_index": -1, "strength": 1.0},
    ]


async def test_a_keyframe_for_the_last_frame_is_the_last_image(api: Api) -> None:
    await post(api, body(image=text(png(9, 7)), keyframes=[{"frame_index": 8, "image": text(png(7, 9))}]))
    assert [image.frame_index for image in api.newest().job.request.images] == [0, -1]


async def test_the_same_picture_twice_is_stored_once(api: Api) -> None:
    answer = await post(api, body(image=text(png(9, 7)), last_image=text(png(9, 7))))
    assert answer.status_code == 202, answer.text
    assert len(list((api.storage.folder / "in").iterdir())) == 1


async def test_a_picture_goes_to_the_entry_that_takes_one_or_is_refused(api: Api) -> None:
    refused = await post(api, body(model="atelier", num_frames=17, last_image=text(png(9, 7))))
    assert (refused.status_code, refused.json()["field"]) == (400, "last_image")
    assert not (api.storage.folder / "in").exists()


async def test_a_webhook_stands_in_the_record_and_in_no_answer(api: Api) -> None:
    answer = await post(api, body(webhook="https://hooks.example.com/done?token=secret"))
    assert answer.status_code == 202, answer.text
    assert api.newest().job.webhook == "https://hooks.example.com/done?token=secret"
    assert "hooks.example.com" not in answer.text


async def test_the_links_keep_the_address_that_the_submit_came_to(api: Api) -> None:
    await post(api, body())
    assert api.newest().job.base_url == "http://api.test"


async def test_a_job_kept_for_a_minute_has_links_for_a_minute(api: Api) -> None:
    location = (await post(api, body(keep_s=60))).headers["location"]
    job = api.finish(api.newest().job.id)
    answer = (await api.http.get(location, headers={"Authorization": f"Bearer {api.key}"})).json()
    assert answer["expires_at"] == job.ended_at + 60
    assert f"exp={int(job.ended_at + 60)}&" in answer["outputs"][0]["url"]
    assert 0 < api.records.client.ttl(f"polyreel:job:{job.id}") <= 60


async def test_a_job_is_found_again_though_the_link_of_its_picture_is_dead(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetched(self: Services, wanted: list[tuple[str, str]]) -> list[Picture]:
        return [await self.check_picture(field, png(9, 7)) for field, _ in wanted]

    async def dead(_self: Services, wanted: list[tuple[str, str]]) -> list[Picture]:
        raise InvalidRequest(f"{wanted[0][0]}: nothing is there", wanted[0][0])

    link = body(image="https://pictures.example.com/cat.png")
    monkeypatch.setattr(Services, "fetch_pictures", fetched)
    first = await post(api, link, **{"Idempotency-Key": "retry"})
    monkeypatch.setattr(Services, "fetch_pictures", dead)
    again = await post(api, link, **{"Idempotency-Key": "retry"})
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    new = await post(api, link)
    assert (new.status_code, new.json()["detail"]) == (400, "image: nothing is there")

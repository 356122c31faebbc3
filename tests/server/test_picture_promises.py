"""A picture is stored for whoever is promised its video, and stays for all of them, whichever process they asked."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import httpx2
import pytest

from polyreel.request import picture_key
from tests.conftest import Api
from tests.server.pictures import png

pytestmark = pytest.mark.anyio

PICTURE, OTHER = png(9, 7), png(7, 9)


async def submit(api: Api, content: bytes, key: str) -> httpx2.Response:
    body = {"model": "atelier", "prompt": "Waves", "num_frames": 9, "image": base64.b64encode(content).decode()}
    return await api.http.post("/polyreel/v1/jobs", json=body, headers={"Authorization": f"Bearer {key}"})


def stored(api: Api) -> list[str]:
    return [f"in/{file.name}" for file in (api.scratch / "results").glob("in/*")]


async def test_the_picture_of_a_key_that_may_have_no_more_jobs_is_never_stored(make_api: Callable[..., Api]) -> None:
    api = make_api(max_queued_per_key=1)
    assert (await submit(api, PICTURE, api.key)).status_code == 202
    assert (await submit(api, OTHER, api.key)).status_code == 429
    assert stored(api) == [picture_key(PICTURE)]


async def test_who_is_refused_at_the_last_moment_takes_no_picture_from_who_was_promised_it_meanwhile(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_api(max_queued_per_key=1), make_api(max_queued_per_key=1)
    take_in, answers = one.app.state.services.queue.submit, []

    async def others_come() -> None:
        answers.append((await submit(two, PICTURE, two.other_key)).status_code)
        answers.append((await submit(two, OTHER, two.key)).status_code)

    def later(*args: Any) -> object:
        anyio.from_thread.run(others_come)
        return take_in(*args)

    monkeypatch.setattr(one.app.state.services.queue, "submit", later)
    assert (await submit(one, PICTURE, one.key)).status_code == 429
    assert answers == [202, 202]
    assert sorted(stored(one)) == sorted(map(picture_key, (PICTURE, OTHER)))

"""Pictures by link, whatever the dialect: only from public addresses, and once for a submit and its repetitions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import KEY, Api
from tests.dialects.links import LINK, answering
from tests.server.pictures import png

pytestmark = pytest.mark.anyio

#: The least submit with a link of each route that takes one; the two that hold their client are told not to.
SUBMITS: dict[str, dict[str, Any]] = {
    "/models/Lightricks/LTX-Video/pipeline/image-to-video": {"inputs": LINK},
    "/": {"inputs": {"prompt": "a fox", "image": LINK, "num_frames": 9, "height": 64, "width": 64}},
    "/api/v6/video/img2video": {"key": KEY, "init_image": LINK},
    "/v1/videos": {"prompt": "a fox", "input_reference": {"image_url": LINK}},
    "/polyreel/v1/jobs": {"model": "ltx-tiny", "prompt": "a fox", "image": LINK},
    "/v3/async/wan-i2v": {"prompt": "a fox", "image_url": LINK},
    "/v3/async/img2video": {
        "model_name": "SVD",
        "image_file": LINK,
        "frames_num": 14,
        "frames_per_second": 6,
        "image_file_resize_mode": "ORIGINAL_RESOLUTION",
        "steps": 20,
    },
}


@pytest.mark.parametrize("path", SUBMITS)
async def test_a_repetition_gets_its_job_also_when_its_picture_has_gone(api: Api, path: str) -> None:
    headers = {"Authorization": f"Bearer {api.key}", "Idempotency-Key": "one", "x-scale-up-timeout": "0"}
    recorder = answering(api, "200 OK", png(64, 64))
    first = await api.http.post(path, json=SUBMITS[path], headers=headers)
    assert (first.status_code in (200, 202, 504), len(recorder.connects)) == (True, 1), first.text
    job_id = api.newest().job.id
    api.finish(job_id)

    recorder = answering(api, "404 Not Found", b"")
    again = await api.http.post(path, json=SUBMITS[path], headers=headers)
    assert (again.status_code in (200, 202), recorder.connects) == (True, []), again.text
    assert (api.records.open_ids(), api.records.usage("alice").submits) == ([], 1)


@pytest.mark.parametrize("path", SUBMITS)
async def test_a_name_that_leads_inside_is_refused_and_nothing_is_connected_to(api: Api, path: str) -> None:
    recorder = answering(api, "200 OK", png(64, 64), names={"pictures.example": ["93.184.216.34", "10.0.0.5"]})
    answer = await api.http.post(path, json=SUBMITS[path], headers={"Authorization": f"Bearer {api.key}"})
    assert (answer.status_code in (400, 422), recorder.connects) == (True, []), answer.text
    assert "must lead to a public address" in answer.text
    assert api.records.open_ids() == []

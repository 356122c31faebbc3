"""ModelsLab v6, as its documents and real clients speak it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Api

pytestmark = pytest.mark.anyio
SUBMIT = "/api/v6/video/text2video"


def body(api: Api, **fields: Any) -> dict[str, Any]:
    return {"key": api.key, "prompt": "A sunset over the ocean", **fields}


async def test_the_documented_loop_ends_with_a_link_to_the_video(api: Api) -> None:
    submitted = (await api.http.post(SUBMIT, json=body(api, num_frames=25))).json()
    assert submitted["status"] == "processing"
    fetch = f"/api/v6/video/fetch/{submitted['id']}"
    assert (await api.http.post(fetch, json={"key": api.key})).json()["status"] == "processing"
    api.finish(api.newest().job.id, b"mp4 bytes")
    result = (await api.http.post(fetch, json={"key": api.key})).json()
    assert result["status"] == "success"
    assert result["output"] == submitted["future_links"] == result["proxy_links"]
    assert (await api.http.get(result["output"][0])).content == b"mp4 bytes"

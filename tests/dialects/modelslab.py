"""Calls ModelsLab's routes as a client of alice's would, for the tests of that dialect."""

from __future__ import annotations

from typing import Any

from tests.conftest import Api

SUBMIT, IMAGE, FETCH = "/api/v6/video/text2video", "/api/v6/video/img2video", "/api/v6/video/fetch"


def body(api: Api, **fields: Any) -> dict[str, Any]:
    """Return the body of a text2video."""
    return {"key": api.key, "prompt": "A sunset over the ocean", **fields}


async def submit(api: Api, path: str = SUBMIT, **fields: Any) -> dict[str, Any]:
    """Return the answer to a submit that is taken."""
    response = await api.http.post(path, json=body(api, **fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def fetch(api: Api, job_id: object, status: int = 200) -> dict[str, Any]:
    """Return the answer to a fetch."""
    response = await api.http.post(f"{FETCH}/{job_id}", json={"key": api.key})
    assert response.status_code == status, response.text
    return dict(response.json())

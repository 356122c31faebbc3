"""The native API over a whole server: what a job's events tell while a real pipeline works, and a deletion."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx2

from tests.conftest import LiveServer
from tests.live.decode import decode


def events_of(client: httpx2.Client, url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and data of each event until the stream ends."""
    with client.stream("GET", url) as stream:
        assert stream.status_code == 200
        name = ""
        for line in stream.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


def test_a_job_is_made_followed_fetched_and_deleted(live: LiveServer) -> None:
    # So large that its steps take many looks of a stream (four in a second), on a fast machine as well.
    body = {"model": "atelier", "prompt": "waves", "num_frames": 33, "height": 320, "width": 448, "seed": 7}
    headers = {"Authorization": f"Bearer {live.key}"}
    with httpx2.Client(base_url=live.base_url, headers=headers, timeout=60, trust_env=False) as client:
        made = client.post("/polyreel/v1/jobs", json={**body, "num_inference_steps": 50})
        assert made.status_code == 202, made.text
        told = list(events_of(client, made.headers["location"] + "/events"))
        assert told[-1][0] == "end"
        job, before = told[-1][1], [data for name, data in told if name == "progress"]
        assert (job["status"], job["request"]["seed"], job["model"]) == ("succeeded", 7, "atelier")
        steps = [data["step"] for data in before]
        assert steps == sorted(steps)
        assert any(0 < step < 50 for step in steps)
        assert {data["total_steps"] for data in before if data["step"]} == {50}
        pictures = [data["preview"] for data in before if data["preview"]]
        assert pictures, "a worker shows what it denoises"
        assert base64.b64decode(pictures[-1].removeprefix("data:image/jpeg;base64,")).startswith(b"\xff\xd8")
        file = client.get(job["outputs"][0]["url"])
        assert decode(file.content).shape == (33, 448, 320)
        assert job["id"] in [one["id"] for one in client.get("/polyreel/v1/jobs?model=atelier").json()["jobs"]]
        models = {model["name"]: model["state"] for model in client.get("/polyreel/v1/models").json()["models"]}
        assert models["atelier"] == "loaded"
        assert client.delete(f"/polyreel/v1/jobs/{job['number']}").json()["deleted"] is True
        assert client.get(job["outputs"][0]["url"]).status_code == 404
        results = live.state_dir / "results" / "out" / job["id"]
        assert not results.exists()

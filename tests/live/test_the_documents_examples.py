"""The example requests of the vendors' pages, unmodified, run end to end at their own size."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.conftest import LiveServer
from tests.live.decode import decode, decode_zip

GOLDEN = Path(__file__).parents[1] / "golden"

#: Which document each golden file stands for; refused examples (an image, upscaling) are specified in tests/dialects.
EXAMPLES = {
    "huggingface/inputs_alone": [(25, 256, 256)],
    "huggingface/every_documented_parameter": None,
    "universal/t2v_of_the_card": [(32, 512, 512)],
    "universal/curl_1": [(24, 512, 512)],
    "universal/curl_3": [(48, 512, 512)],
    "modelslab/openapi_page_body": [(25, 512, 512)],
    "modelslab/older_page_without_upscaling": [(16, 512, 512)],
    "novita/example_of_the_page": [(128, 512, 512)],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def client(live: LiveServer) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {live.key}"}
    with httpx2.Client(base_url=live.base_url, timeout=290, headers=headers) as client:
        yield client


def huggingface(client: httpx2.Client, wire: dict[str, Any], _key: str) -> list[np.ndarray]:
    answer = client.post(f"/models/{wire['model']}", json=wire["body"])
    assert answer.status_code == 200, answer.text
    return [decode(answer.content).frames]


def universal(client: httpx2.Client, wire: dict[str, Any], _key: str) -> list[np.ndarray]:
    answer = client.post("/", json=wire).json()
    assert answer["ok"], answer
    files = {name: base64.b64decode(text) for name, text in answer["outputs"].items()}
    return [decode_zip(file) if name == "zip_base64" else decode(file).frames for name, file in files.items()]


def modelslab(client: httpx2.Client, wire: dict[str, Any], key: str) -> list[np.ndarray]:
    answer = client.post("/api/v6/video/text2video", json={**wire, "key": key}).json()
    while answer["status"] == "processing":
        time.sleep(0.5)
        answer = client.post(f"/api/v6/video/fetch/{answer['id']}", json={"key": key}).json()
    assert answer["status"] == "success", answer
    return [decode(httpx2.get(link).content).frames for link in answer["output"]]


def novita(client: httpx2.Client, wire: dict[str, Any], _key: str) -> list[np.ndarray]:
    submitted = client.post("/v3/async/txt2video", json=wire)
    assert submitted.status_code == 200, submitted.text
    progress = [0]
    while True:
        result = client.get("/v3/async/task-result", params=submitted.json()).json()
        assert result["task"]["status"] != "TASK_STATUS_FAILED", result
        progress.append(result["task"]["progress_percent"])
        if result["task"]["status"] == "TASK_STATUS_SUCCEED":
            break
        time.sleep(0.5)
    assert progress == sorted(progress)
    assert progress[-1] == 100
    return [decode(httpx2.get(video["video_url"]).content).frames for video in result["videos"]]


SEND = {"huggingface": huggingface, "universal": universal, "modelslab": modelslab, "novita": novita}


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_documents_example_runs_unmodified_at_its_own_size(
    client: httpx2.Client, live: LiveServer, example: str
) -> None:
    row = json.loads((GOLDEN / f"{example}.json").read_text())
    made = SEND[example.partition("/")[0]](client, row["wire"], live.key)
    shapes = [(frames.shape[0], frames.shape[2], frames.shape[1]) for frames in made]
    neutral = row["neutral"]
    asked = (sum(span["num_frames"] for span in neutral["prompts"]), neutral["width"], neutral["height"])
    assert shapes == [asked] * len(neutral["outputs"])
    assert EXAMPLES[example] in (None, shapes)
    for frames in made:
        assert frames.std() > 5, "the video shows nothing"

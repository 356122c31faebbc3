"""A whole server shows what it denoises, and does with its models what it is told."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from polyreel.broker import queue_of
from polyreel.commands import Commands
from polyreel.previews import Preview, parse_preview, preview_key
from polyreel.queue import Queue
from polyreel.request import PromptSpan
from tests.conftest import LiveServer
from tests.core.jobs import REQUEST, queued


@pytest.fixture
def queue(live: LiveServer) -> Iterator[Queue]:
    with queue_of(live.state_dir) as url:
        queue = Queue(url, retention_s=600, max_open=100, job_timeout_s=600, patient=False)
        yield queue
        queue.records.client.close()


def until(find: Callable[[], Any], timeout_s: float = 60) -> Any:  # Any: whatever it finds
    deadline = time.monotonic() + timeout_s
    while not (found := find()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s"
        time.sleep(0.02)
    return found


def test_a_job_can_be_watched_until_it_ends(queue: Queue) -> None:
    request = replace(
        REQUEST, model="atelier", height=128, width=192, prompts=(PromptSpan("x", 9),), num_inference_steps=20
    )
    job = queue.submit(queued(request)).job

    def shown() -> Preview | None:
        return parse_preview(queue.records.client.get(preview_key(job.id)))

    preview: Preview = until(shown)
    assert 1 <= preview.step <= 20
    image = Image.open(io.BytesIO(preview.jpeg))
    # Of what is made for 192x128, the model's nearest size of 144x80: a latent is eight pixels a side.
    assert (image.format, image.size) == ("JPEG", (18, 10))
    ended = until(lambda: (stored := queue.records.get(job.id)) and stored.job.status.is_terminal and stored.job)
    assert (ended.status.value, shown()) == ("succeeded", None)


def test_a_model_is_pinned_and_unloaded_on_command(queue: Queue) -> None:
    commands = Commands(queue.records.client)

    def about() -> dict[str, Any]:  # Any: JSON
        [name] = queue.records.client.hkeys("polyreel:residents")
        return json.loads(queue.records.client.get(f"polyreel:worker:{name}") or "{}")

    def ended(command_id: str) -> dict[str, Any]:
        [state] = until(
            lambda: [one for one in about()["commands"] if one["id"] == command_id and one["state"] != "waiting"]
        )
        return state

    commands.give("pin", "ltx-tiny")
    refused = ended(commands.give("unload", "ltx-tiny").id)
    assert (refused["state"], refused["reason"]) == (
        "refused", "ltx-tiny is pinned, so it stays loaded; unpin it first."
    )  # fmt: skip
    assert ("ltx-tiny" in about()["loaded"], about()["pinned"]) == (True, ["ltx-tiny"])
    commands.give("unpin", "ltx-tiny")
    assert ended(commands.give("unload", "ltx-tiny").id)["state"] == "done"
    assert ("ltx-tiny" in about()["loaded"], about()["pinned"]) == (False, [])

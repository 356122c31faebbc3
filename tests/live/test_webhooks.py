"""Webhooks of a whole server: told by its own courier, in each dialect's words, and proven to whoever verifies them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook

from tests.conftest import LiveServer
from tests.drop_in.running import run_node
from tests.server.receivers import Received, Receiver, answering

#: What a receiver does in Node, as `docs/webhooks.md` shows it.
_VERIFY = """
import { Webhook } from "standardwebhooks";
const [secret, headers, body] = process.argv.slice(2);
const verifier = new Webhook(secret);
const event = verifier.verify(body, JSON.parse(headers));
let altered = "taken";
try { verifier.verify(body + " ", JSON.parse(headers)); } catch (error) { altered = error.name; }
console.log(JSON.stringify({ type: event.type, altered }));
"""


def _native(url: str) -> tuple[str, dict[str, Any]]:
    body = {"model": "ltx-tiny", "prompt": "a cat", "num_frames": 9, "num_inference_steps": 1, "webhook": url}
    return "/polyreel/v1/jobs", body


def _modelslab(url: str) -> tuple[str, dict[str, Any]]:
    body = {"prompt": "a cat", "model_id": "ltx", "num_frames": 8, "height": 64, "width": 64, "num_inference_steps": 1}
    return "/api/v6/video/text2video", body | {"webhook": url, "track_id": "order 7", "instant_response": True}


def _novita(url: str) -> tuple[str, dict[str, Any]]:
    body = {
        "model_name": "darkSushiMixMix_225D_64380.safetensors", "height": 256, "width": 256, "steps": 1,
        "prompts": [{"frames": 8, "prompt": "a cat"}], "extra": {"webhook": {"url": url}},
    }  # fmt: skip
    return "/v3/async/txt2video", body


def _video_of_native(said: dict[str, Any]) -> str:
    assert said["type"] == "job.succeeded"
    return str(said["data"]["outputs"][0]["url"])


def _video_of_modelslab(said: dict[str, Any]) -> str:
    assert (said["status"], said["track_id"]) == ("success", "order 7")
    return str(said["output"][0])


def _video_of_novita(said: dict[str, Any]) -> str:
    assert said["event_type"] == "ASYNC_TASK_RESULT"
    assert said["payload"]["task"]["status"] == "TASK_STATUS_SUCCEED"
    return str(said["payload"]["videos"][0]["video_url"])


def told(live: LiveServer, submit: Callable[[str], tuple[str, dict[str, Any]]]) -> Received:
    """Submit a job and return what its receiver was told."""
    bearer = {"Authorization": f"Bearer {live.key}"}
    with Receiver(answering(200)) as receiver:
        path, body = submit(receiver.url)
        body = body if "/v6/" not in path else body | {"key": live.key}
        answer = httpx2.post(live.base_url + path, json=body, headers=bearer, timeout=30)
        assert answer.is_success, answer.text
        deadline = time.monotonic() + 60
        while not receiver.count():
            assert time.monotonic() < deadline, "nobody was told within 60 s"
            time.sleep(0.05)
        return receiver.received[0]


def secret_of(live: LiveServer) -> str:
    bearer = {"Authorization": f"Bearer {live.key}"}
    return str(httpx2.get(f"{live.base_url}/polyreel/v1/webhooks/secret", headers=bearer).json()["secret"])


@pytest.mark.parametrize(
    ("submit", "video"),
    [(_native, _video_of_native), (_modelslab, _video_of_modelslab), (_novita, _video_of_novita)],
    ids=["native", "modelslab", "novita"],
)
def test_the_end_of_a_job_is_told_in_its_dialects_words_with_a_link_that_works(
    live: LiveServer,
    submit: Callable[[str], tuple[str, dict[str, Any]]],
    video: Callable[[dict[str, Any]], str],
) -> None:
    got = told(live, submit)
    said = Webhook(secret_of(live)).verify(got.body, got.headers)
    file = httpx2.get(video(said), timeout=30)
    assert file.status_code == 200
    assert file.headers["content-type"] in ("video/mp4", "image/gif")


@pytest.mark.slow
def test_a_receiver_in_node_verifies_what_we_sign(live: LiveServer) -> None:
    got = told(live, _native)
    headers = {name: got.headers[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    said = run_node(_VERIFY, ["standardwebhooks@1.1.1"], secret_of(live), json.dumps(headers), got.body.decode())
    assert said == {"type": "job.succeeded", "altered": "WebhookVerificationError"}

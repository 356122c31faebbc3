"""How the dialects are asked, and how their answers are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from tests.faults.asks import Ask, Kept

#: Sends one request over a client's connections.
Send = Callable[[httpx2.AsyncClient], Awaitable[httpx2.Response]]


def _post(ask: Ask, url: str, body: dict[str, Any], read_s: float = 20, **headers: str) -> Send:
    keyed = {"Idempotency-Key": ask.name} if ask.is_keyed else {}
    sent = {"Authorization": f"Bearer {ask.key}", **keyed, **headers, **ask.headers}
    return lambda http: http.post(url, json=body, headers=sent, timeout=httpx2.Timeout(10, read=read_s, pool=None))


def _huggingface(ask: Ask, base: str) -> Send:
    body = {"inputs": ask.prompt, "parameters": {"num_inference_steps": ask.steps, "num_frames": 2}}
    return _post(ask, f"{base}/models/faults/{ask.model}", body, 300, **{"x-use-cache": "false"})


def _universal(ask: Ask, base: str) -> Send:
    inputs = {
        "prompt": ask.prompt, "num_frames": 2, "height": 64, "width": 64, "num_inference_steps": ask.steps,
        "return_base64": False,
    }  # fmt: skip
    return _post(ask, f"{base}/", {"inputs": inputs}, 300)


def _modelslab(ask: Ask, base: str) -> Send:
    body = {
        "key": ask.key, "prompt": ask.prompt, "model_id": ask.model, "num_frames": 2, "height": 64, "width": 64,
        "num_inference_steps": ask.steps, "instant_response": True, "output_type": "gif",
        "webhook": ask.webhook or None,
    }  # fmt: skip
    return _post(ask, f"{base}/api/v6/video/text2video", body)


def _novita(ask: Ask, base: str) -> Send:
    extra = {"response_video_type": "mp4"} | ({"webhook": {"url": ask.webhook}} if ask.webhook else {})
    body = {
        "model_name": f"{ask.model}.safetensors", "height": 256, "width": 256, "steps": ask.steps,
        "prompts": [{"frames": 8, "prompt": ask.prompt}], "extra": extra,
    }  # fmt: skip
    return _post(ask, f"{base}/v3/async/txt2video", body)


#: Dialect to its submit.
SUBMIT: dict[str, Callable[[Ask, str], Send]] = {
    "huggingface": _huggingface, "universal": _universal, "modelslab": _modelslab, "novita": _novita,
}  # fmt: skip


def get(http: httpx2.AsyncClient, url: str) -> Awaitable[httpx2.Response]:
    """Fetch a file."""
    return http.get(url)


def _poll_modelslab(kept: Kept, base: str) -> Send:
    return lambda http: http.post(f"{base}/api/v6/video/fetch/{kept.number}", json={"key": kept.ask.key})


def _poll_novita(kept: Kept, base: str) -> Send:
    headers = {"Authorization": f"Bearer {kept.ask.key}"}
    url = f"{base}/v3/async/task-result"
    return lambda http: http.get(url, params={"task_id": kept.job_id}, headers=headers)


#: The synchronous dialects have no poll of their own; Novita's knows every job of its owner.
POLL: dict[str, Callable[[Kept, str], Send]] = {
    "huggingface": _poll_novita, "universal": _poll_novita, "modelslab": _poll_modelslab, "novita": _poll_novita,
}  # fmt: skip


def read_modelslab(kept: Kept, said: dict[str, Any]) -> None:
    """Note what a poll was told. Any: JSON."""
    kept.see({"processing": 0}.get(said["status"], 2), 0)
    if said["status"] == "success":
        if said["output"] != [kept.link]:
            kept.wrong.append(f"promised {kept.link}, gave {said['output']}")
        kept.end = "succeeded"
    elif said["status"] != "processing":
        kept.end, kept.reason = "failed", said["message"]


def read_novita(kept: Kept, said: dict[str, Any]) -> None:
    """As `read_modelslab`."""
    task = said["task"]
    rank = {"TASK_STATUS_QUEUED": 0, "TASK_STATUS_PROCESSING": 1}.get(task["status"], 2)
    kept.see(rank, task["progress_percent"])
    if task["status"] == "TASK_STATUS_SUCCEED":
        kept.end = "succeeded"
        kept.link = kept.link or said["videos"][0]["video_url"]
    elif rank == 2:
        kept.end, kept.reason = "failed", task["reason"]

"""Starts a whole server, makes one clip through each dialect with plain HTTP, and saves the files in `demo/`.

`make demo` runs this. Nothing here knows Polyreel's code: it is what a client of each hosted API does. At a terminal,
or with `--stay`, the server goes on after that, so that the lines which are printed can be pasted, until Ctrl-C.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

DEMO = Path(__file__).resolve().parent.parent / "demo"
KEY = f"demo_{secrets.token_urlsafe(16)}"

#: Seconds that the first start may take: torch is read from the disk, tiny checkpoints are built.
READY_S = 180
#: Seconds that one clip may take before the demo gives up.
CLIP_S = 280


@dataclass(frozen=True)
class Clip:
    """One request in a vendor's own words, and how its client gets the files from the answer.

    Args:
        dialect: whose API it is.
        note: what is particular about the request.
        save: client and answer to the saved files.
        saves_to: name of the file that the curl line saves, where the answer is the video itself.
    """

    dialect: str
    note: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    save: Callable[[httpx2.Client, httpx2.Response], list[Path]]
    saves_to: str = ""


def save_bytes(_client: httpx2.Client, answer: httpx2.Response) -> list[Path]:
    """Hugging Face answers with the video itself."""
    return [_write("huggingface.mp4", answer.content)]


def save_base64(_client: httpx2.Client, answer: httpx2.Response) -> list[Path]:
    """The universal handler answers with base64 texts."""
    outputs = answer.json()["outputs"]
    return [
        _write(f"universal.{name.removesuffix('_base64')}", base64.b64decode(text)) for name, text in outputs.items()
    ]


def save_modelslab(client: httpx2.Client, answer: httpx2.Response) -> list[Path]:
    """ModelsLab's documented loop: fetch until the status is success or failed."""
    result = answer.json()
    while result["status"] == "processing":
        time.sleep(1)
        result = client.post(f"/api/v6/video/fetch/{result['id']}", json={"key": KEY}).raise_for_status().json()
    if result["status"] != "success":
        raise SystemExit(f"modelslab: {result}")
    return [_write("modelslab.mp4", client.get(result["output"][0]).raise_for_status().content)]


def save_novita(client: httpx2.Client, answer: httpx2.Response) -> list[Path]:
    """Novita's clients ask for the task's result until it is there."""
    task_id = answer.json()["task_id"]
    while True:
        result = client.get(
            "/v3/async/task-result", params={"task_id": task_id}, headers={"Authorization": f"Bearer {KEY}"}
        )
        task = result.raise_for_status().json()["task"]
        if task["status"] == "TASK_STATUS_SUCCEED":
            return [
                _write("novita.mp4", client.get(result.json()["videos"][0]["video_url"]).raise_for_status().content)
            ]
        if task["status"] == "TASK_STATUS_FAILED":
            raise SystemExit(f"novita: {task['reason']}")
        time.sleep(1)


def save_openai(client: httpx2.Client, answer: httpx2.Response) -> list[Path]:
    """OpenAI's clients poll the video and download its content, of which there are three."""
    video = answer.json()
    while video["status"] in ("queued", "in_progress"):
        time.sleep(1)
        video = client.get(f"/v1/videos/{video['id']}", headers=BEARER).raise_for_status().json()
    if video["status"] != "completed":
        raise SystemExit(f"openai: {video}")
    content = {"openai.mp4": "video", "openai.webp": "thumbnail", "openai.jpg": "spritesheet"}
    url = f"/v1/videos/{video['id']}/content"
    return [
        _write(name, client.get(url, params={"variant": variant}, headers=BEARER).raise_for_status().content)
        for name, variant in content.items()
    ]


def save_native(client: httpx2.Client, answer: httpx2.Response) -> list[Path]:
    """Polyreel's own clients follow the job's events to its end, and fetch its file by the link."""
    job: dict[str, Any] = {}
    with client.stream("GET", f"{answer.headers['location']}/events", headers=BEARER) as events:
        event = ""
        for line in events.raise_for_status().iter_lines():
            name, _, value = line.partition(": ")
            event = value if name == "event" else event
            if name == "data" and event == "end":
                job = json.loads(value)
    if job.get("status") != "succeeded":
        raise SystemExit(f"native: {job}")
    return [_write("native.webm", client.get(job["outputs"][0]["url"]).raise_for_status().content)]


BEARER = {"Authorization": f"Bearer {KEY}"}

#: What each of them is asked for, in words that the demonstration model of the default profile knows.
PROMPT = "a red circle moving right on a black background"

CLIPS = (
    Clip(
        "Hugging Face Inference",
        "the bare request of the API page; the rest is the model's own",
        "/models/Wan-AI/Wan2.1-T2V-1.3B",
        BEARER,
        {"inputs": PROMPT},
        save_bytes,
        saves_to="circle.mp4",
    ),
    Clip(
        "Hugging Face universal handler",
        "gif, webm and zip of one video",
        "/",
        BEARER,
        {"inputs": {"prompt": PROMPT, "num_frames": 17, "outputs": ["gif", "webm", "zip"]}},
        save_base64,
    ),
    Clip(
        "ModelsLab v6",
        "the fields of its own example",
        "/api/v6/video/text2video",
        {},
        {
            "key": KEY,
            "prompt": PROMPT,
            "negative_prompt": "low quality, blurry, static",
            "model_id": "wan2.2",
            "height": 512,
            "width": 512,
            "num_frames": 17,
            "num_inference_steps": 20,
            "guidance_scale": 7,
            "output_type": "mp4",
            "webhook": None,
            "track_id": None,
        },
        save_modelslab,
    ),
    Clip(
        "Novita v3",
        "the fields of its own example, one prompt instead of four",
        "/v3/async/txt2video",
        BEARER,
        {
            "model_name": "wan2.2",
            "height": 256,
            "width": 256,
            "steps": 20,
            "seed": -1,
            "prompts": [{"frames": 17, "prompt": PROMPT}],
            "negative_prompt": "low quality",
        },
        save_novita,
    ),
    Clip(
        "OpenAI Videos",
        "one second",
        "/v1/videos",
        BEARER,
        {"model": "sora-2", "prompt": PROMPT, "seconds": "1", "size": "256x256"},
        save_openai,
    ),
    Clip(
        "Polyreel's own API",
        "followed by its events to the end",
        "/polyreel/v1/jobs",
        BEARER,
        {
            "model": "atelier",
            "prompt": PROMPT,
            "num_frames": 17,
            "height": 256,
            "width": 384,
            "outputs": [{"format": "webm"}],
        },
        save_native,
    ),
)


def main(arguments: list[str]) -> int:
    """Run every clip; return 0 when all files are there.

    Args:
        arguments: `--stay` serves on until Ctrl-C, as it does at a terminal.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends with it
    stays = "--stay" in arguments or (sys.stdin.isatty() and sys.stdout.isatty())
    DEMO.mkdir(exist_ok=True)
    print("starting polyreel up (embedded queue, API, worker)", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="polyreel-demo-") as state,
        serving(Path(state)) as base_url,
        httpx2.Client(base_url=base_url, timeout=CLIP_S, trust_env=False) as client,
    ):
        print(f"asking each API for {PROMPT!r}", flush=True)
        for clip in CLIPS:
            make(client, clip)
        print(
            "\nThe clips are of a demonstration model of a few megabytes, whose world is shapes that move before a "
            "background;\ndocs/models.md lists its words. Models that know more: docs/models.md, configs/gpu.yaml."
        )
        if stays:
            print(f"To send these yourself, in another terminal:\n\nexport BASE={base_url} KEY={KEY}\n")
            print("\n".join(curl(clip) for clip in CLIPS))
            print("\nThe server goes on until Ctrl-C.", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
        else:
            print("To send these yourself: `make up`, then paste what it prints.")
    return 0


def make(client: httpx2.Client, clip: Clip) -> None:
    """Send one request, save its files, and print what happened."""
    start = time.monotonic()
    answer = client.post(clip.path, headers=clip.headers, json=clip.body)
    if not answer.is_success:
        raise SystemExit(f"{clip.dialect}: {answer.status_code} {answer.text}")
    files = clip.save(client, answer)
    print(f"\n{clip.dialect} ({clip.note}): {time.monotonic() - start:.1f} s")
    for file in files:
        print(f"  {file}  {file.stat().st_size:,} bytes", flush=True)


def curl(clip: Clip) -> str:
    """Return the request as a command line with $BASE and $KEY left open."""
    headers = {**clip.headers, "Content-Type": "application/json"}
    parts = ["curl", "-sS", f'"$BASE{clip.path}"']
    for name, value in headers.items():
        parts += ["-H", _open(f"{name}: {value}")]
    parts += ["-d", _open(json.dumps(clip.body))]
    return " ".join([*parts, "-o", clip.saves_to] if clip.saves_to else parts)


def _open(text: str) -> str:
    """Quote for the shell with the key as a variable."""
    return '"$KEY"'.join(shlex.quote(part) for part in text.split(KEY))


@contextmanager
def serving(state: Path) -> Iterator[str]:
    """Run `polyreel up` for the time of the block; no process of it is left after."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = state / "up.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("POLYREEL_")}
    inherited.pop("REDIS_URL", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "polyreel", "up", "--state-dir", str(state / "state"), "--port", str(port)],
            # Whoever presses Ctrl-C here waits for no job.
            env={**inherited, "POLYREEL_API_KEYS": f"demo:{KEY}", "POLYREEL_DRAIN_S": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        base_url = f"http://127.0.0.1:{port}"
        start = time.monotonic()
        _wait_until_ready(base_url, process, log)
        print(f"ready after {time.monotonic() - start:.1f} s", flush=True)
        yield base_url
    finally:
        process.terminate()
        process.wait(120)


def _wait_until_ready(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{base_url}/ready", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise SystemExit(f"polyreel up did not become ready:\n{log.read_text('utf-8', 'replace')}")


def _write(name: str, content: bytes) -> Path:
    path = DEMO / name
    path.write_bytes(content)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

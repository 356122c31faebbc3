"""The vendors' own client libraries, with nothing changed but the base URL and the key."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import LiveServer
from tests.live.decode import decode

pytestmark = pytest.mark.slow


def run_script(script: str, *arguments: str) -> Any:
    """Run a client in an interpreter of its own (clients print, warn and patch); return the JSON of its last line."""
    # Offline mode, which the model tests set for this process, refuses even a loopback address.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


HUGGINGFACE = """
import sys, json, hashlib
from huggingface_hub import InferenceClient
from huggingface_hub.inference._providers import PROVIDERS, HFInferenceTask
# The one line that no released client can do without: a URL means provider hf-inference, which lists no video task.
PROVIDERS["hf-inference"]["text-to-video"] = HFInferenceTask("text-to-video")
base, key, out = sys.argv[1:]
client = InferenceClient(base_url=f"{base}/models/Wan-AI/Wan2.1-T2V-1.3B", api_key=key)
video = client.text_to_video(
    "a cat", num_frames=9, num_inference_steps=2, guidance_scale=5.5, negative_prompt=["blurry", "low quality"],
    seed=42, extra_body={"width": 64, "height": 64, "fps": 8},
)
open(out, "wb").write(video)
print(json.dumps({"bytes": len(video)}))
"""

HUGGINGFACE_ASYNC = (
    HUGGINGFACE.replace("InferenceClient", "AsyncInferenceClient")
    .replace("video = client.text_to_video(", "import asyncio\nvideo = asyncio.run(client.text_to_video(")
    .replace('"fps": 8},\n)', '"fps": 8},\n))')
)

HUGGINGFACE_UNPATCHED = """
import sys, json
from huggingface_hub import InferenceClient
base, key, out = sys.argv[1:]
client = InferenceClient(base_url=f"{base}/models/Wan-AI/Wan2.1-T2V-1.3B", api_key=key)
video = client.text_to_speech(
    "a cat",
    extra_body={"num_frames": 9, "num_inference_steps": 2, "seed": 42, "width": 64, "height": 64, "fps": 8},
)
open(out, "wb").write(video)
print(json.dumps({"bytes": len(video)}))
"""

HUGGINGFACE_WRONG_KEY = """
import sys, json
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.inference._providers import PROVIDERS, HFInferenceTask
PROVIDERS["hf-inference"]["text-to-video"] = HFInferenceTask("text-to-video")
client = InferenceClient(base_url=f"{sys.argv[1]}/models/Wan-AI/Wan2.1-T2V-1.3B", api_key="hf_wrong")
try:
    client.text_to_video("a cat")
except HfHubHTTPError as err:
    print(json.dumps({"status": err.response.status_code, "message": err.server_message}))
"""

MODELSLAB = """
import sys, json
from modelslab_py.core.apis.video import Video
from modelslab_py.core.client import Client
from modelslab_py.schemas.video import Text2Video
base, key = sys.argv[1:]
client = Client(api_key=key)
client.base_url = f"{base}/api/"  # after Client(), before Video(), which copies it
video = Video(client)
schema = Text2Video(
    key=key, prompt="a cat", model_id="ltx", num_frames=9, num_inference_steps=2, height=64, width=64, fps=8,
    output_type="mp4",
)
answer = video.text_to_video(schema)
while answer["status"] == "processing":
    answer = video.fetch(str(answer["id"]))
print(json.dumps(answer))
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "video.mp4"


@pytest.mark.parametrize(
    "script", [HUGGINGFACE, HUGGINGFACE_ASYNC, HUGGINGFACE_UNPATCHED], ids=["sync", "async", "unpatched"]
)
def test_huggingface_hub_gets_a_video_of_nine_frames(live: LiveServer, out: Path, script: str) -> None:
    run_script(script, live.base_url, live.key, str(out))
    clip = decode(out.read_bytes())
    assert (clip.shape, clip.fps) == ((9, 64, 64), 8.0)


def test_huggingface_hub_shows_our_message_for_a_wrong_key(live: LiveServer) -> None:
    assert run_script(HUGGINGFACE_WRONG_KEY, live.base_url) == {
        "status": 401,
        "message": "Invalid credentials in Authorization header",
    }


def test_modelslab_py_gets_a_link_to_a_video_of_nine_frames(live: LiveServer) -> None:
    answer = run_script(MODELSLAB, live.base_url, live.key)
    assert answer["status"] == "success"
    assert decode(httpx2.get(answer["output"][0]).content).shape == (9, 64, 64)


#: The polling pattern of ModelsLab's page, unchanged but for the host.
MODELSLAB_PAGE = """
import requests
import time

def generate_video(prompt, api_key):
    # 1. Submit the request
    response = requests.post(
        "https://modelslab.com/api/v6/video/text2video",
        json={
            "key": api_key,
            "prompt": prompt,
            "num_frames": 25
        }
    )
    data = response.json()

    if data["status"] == "error":
        raise Exception(data["message"])

    request_id = data["id"]

    # 2. Poll for results
    while True:
        fetch = requests.post(
            f"https://modelslab.com/api/v6/video/fetch/{request_id}",
            json={"key": api_key}
        )
        result = fetch.json()

        if result["status"] == "success":
            return result["output"][0]
        elif result["status"] == "failed":
            raise Exception(result.get("message", "Generation failed"))

        # Still processing, wait and retry
        time.sleep(5)

# Usage
video_url = generate_video("A sunset over the ocean", "your_api_key")
print(f"Video ready: {video_url}")
"""


def test_the_python_pattern_of_modelslabs_page_runs_with_host_and_key_replaced(live: LiveServer) -> None:
    script = MODELSLAB_PAGE.replace("https://modelslab.com", live.base_url).replace("your_api_key", live.key)
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=250, check=True)
    url = done.stdout.strip().removeprefix("Video ready: ")
    clip = decode(io.BytesIO(httpx2.get(url).content).getvalue())
    assert clip.shape == (25, 512, 512)

"""The vendors' own client libraries, with nothing changed but the base URL and the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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

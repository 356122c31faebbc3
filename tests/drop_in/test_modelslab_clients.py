"""Clients that speak ModelsLab's API, and its pages' snippets, with nothing changed but the base URL and the key."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import LiveServer, start_live_server, stop_live_server
from tests.drop_in.running import php, python_with, run_script
from tests.live.decode import Clip, decode
from tests.server.pictures import png
from tests.server.receivers import Receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: agno, phidata, the old SDK and the CLI want other versions of what we use ourselves.
CLIENTS = Path(__file__).with_name("modelslab_clients.txt")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that answers "processing" at once, so that clients poll; it may call this machine."""
    folder = tmp_path_factory.mktemp("hasty")
    environment = {"POLYREEL_DIALECTS__MODELSLAB__HOLD_S": "0", "POLYREEL_WEBHOOK_ALLOW": "127.0.0.1"}
    server = start_live_server(folder / "state", folder / "up.log", **environment)
    yield server
    stop_live_server(server.process)


@pytest.fixture(scope="module")
def apart() -> Path:
    return python_with(CLIENTS)


def wait_for(server: LiveServer, number: object) -> dict[str, Any]:
    """Poll as the pages' pattern does, until a job has ended."""
    while True:
        answer = httpx2.post(f"{server.base_url}/api/v6/video/fetch/{number}", json={"key": server.key}).json()
        if answer["status"] != "processing":
            return dict(answer)
        time.sleep(0.1)


def clip_of(link: str) -> Clip:
    return decode(httpx2.get(link).content)


# modelslab-py 0.2.3, the official SDK

MODELSLAB_PY = """
import sys, json
from modelslab_py.core.apis.video import Video
from modelslab_py.core.client import Client
from modelslab_py.schemas.video import Image2Video, Text2Video
base, key, picture = sys.argv[1:]
client = Client(api_key=key, fetch_timeout=1)  # seconds between two fetches; its own are 60
client.base_url = f"{base}/api/"  # after Client(), before Video(), which copies it
small = {"num_frames": 9, "num_inference_steps": 2, "height": 64, "width": 64, "fps": 8}
video = Video(client)
text = video.text_to_video(Text2Video(prompt="a cat", model_id="ltx", output_type="mp4", **small))
image = video.image_to_video(Image2Video(prompt="a cat", model_id="wan2.2", init_image=picture, **small))
enterprise = Video(client, enterprise=True)
print(json.dumps({
    "submitted": [text, image],
    "fetched": [video.fetch(str(text["id"])), enterprise.fetch(str(image["id"]))],
    "details": enterprise.system_details(),
}))
"""


@pytest.mark.parametrize(("server", "first"), [("live", {"success", "processing"}), ("hasty", {"processing"})])
def test_modelslab_py_makes_videos_from_text_and_from_a_picture(
    server: str, first: set[str], request: pytest.FixtureRequest
) -> None:
    running: LiveServer = request.getfixturevalue(server)
    picture = base64.b64encode(png(80, 60)).decode()
    said = run_script(MODELSLAB_PY, running.base_url, running.key, picture)
    assert {answer["status"] for answer in said["submitted"]} <= first  # held for 20 s, which a busy machine may need
    text, image = said["fetched"]
    assert (text["status"], image["status"]) == ("success", "success")
    assert clip_of(text["output"][0]).shape == (9, 64, 64)
    assert clip_of(image["output"][0]).shape == (9, 64, 64)  # a gif, as the SDK names no format
    assert said["details"]["status"] == "ok"


MODELSLAB_PY_REFUSED = """
import sys, json
from modelslab_py.core.apis.video import Video
from modelslab_py.core.client import Client
from modelslab_py.schemas.video import Text2Video
said = []
for key in sys.argv[2:]:
    client = Client(api_key=key)
    client.base_url = f"{sys.argv[1]}/api/"
    try:
        Video(client).text_to_video(Text2Video(prompt="a cat", model_id="ltx"))
    except Exception as err:
        said.append(str(err))
print(json.dumps(said))
"""


def test_modelslab_py_shows_what_was_wrong_and_where_to_change_it(live: LiveServer) -> None:
    assert run_script(MODELSLAB_PY_REFUSED, live.base_url, live.key, "a wrong key") == [
        'Request failed with status code 400: {"status":"error","message":"num_frames must be between 1 and 25, got 30 '
        '(setting dialects.modelslab.out_of_range: clamp would adjust it)"}',
        'Request failed with status code 401: {"status":"error","message":"Invalid API key"}',
    ]


MODELSLAB_PY_LINKED = """
import sys, json
from modelslab_py.core.apis.video import Video
from modelslab_py.core.client import Client
from modelslab_py.schemas.video import Image2Video
base, key, here = sys.argv[1:]
client = Client(api_key=key)
client.base_url = f"{base}/api/"
schema = Image2Video(
    prompt="a cat", model_id="wan2.2", init_image=f"{here}/cat.png", num_frames=9, num_inference_steps=2, height=64,
    width=64, webhook=f"{here}/hook", track_id="video_001",
)
print(json.dumps(Video(client).image_to_video(schema)))
"""


def serving_a_picture(_receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    content = png(80, 60) if handler.command == "GET" else b""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def test_modelslab_py_names_a_picture_by_its_link_and_its_webhook_is_called(hasty: LiveServer) -> None:
    with Receiver(serving_a_picture) as receiver:
        here = receiver.url.removesuffix("/hook")
        submitted = run_script(MODELSLAB_PY_LINKED, hasty.base_url, hasty.key, here)
        done = wait_for(hasty, submitted["id"])
        deadline = time.monotonic() + 30
        while receiver.count() < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    asked, called = receiver.received
    assert (asked.path, called.path) == ("/cat.png", "/hook")
    assert called.headers["content-type"] == "application/json"
    assert json.loads(called.body) == {
        "status": "success",
        "id": submitted["id"],
        "output": done["output"],
        "generationTime": done["generationTime"],
        "track_id": "video_001",
        "meta": done["meta"],
    }


# modelslab-cli 0.2.2, which speaks v7


def cli(apart: Path, server: LiveServer, *arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(apart.with_name("modelslab")), "--base-url", server.base_url, "--api-key", key or server.key]
    return subprocess.run(
        [*command, "--no-update-check", "generate", *arguments], capture_output=True, text=True, timeout=250
    )


@pytest.mark.parametrize("server", ["live", "hasty"])
def test_the_cli_waits_for_its_video_and_saves_it_once(
    server: str, apart: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running: LiveServer = request.getfixturevalue(server)
    size = ["--width", "64", "--height", "64", "--output-dir", str(tmp_path)]
    done = cli(apart, running, "video", "--prompt", "a cat", "--model", "ltx", *size)
    assert done.returncode == 0, done.stderr
    [saved] = tmp_path.iterdir()
    assert saved.suffix == ".mp4"
    assert decode(saved.read_bytes()).shape == (25, 64, 64)


def test_the_cli_animates_a_picture_and_fetches_it_again_later(apart: Path, hasty: LiveServer, tmp_path: Path) -> None:
    picture = base64.b64encode(png(64, 64)).decode()
    flags = ["--init-image", picture, "--prompt", "waves", "--no-wait"]
    queued = cli(apart, hasty, "image-to-video", *flags)
    assert queued.returncode == 0, queued.stderr
    number = queued.stdout.split("Job queued: ")[1].split()[0]
    wait_for(hasty, number)
    fetched = cli(apart, hasty, "fetch", "--type", "video", "--id", number, "--output-dir", str(tmp_path))
    assert fetched.returncode == 0, fetched.stderr
    [saved] = tmp_path.iterdir()
    assert decode(saved.read_bytes()).shape == (16, 512, 512)


def test_the_cli_ends_with_the_exit_codes_that_it_documents(apart: Path, live: LiveServer) -> None:
    wrong_key = cli(apart, live, "video", "--prompt", "a cat", key="a wrong key")
    wrong_width = cli(apart, live, "video", "--prompt", "a cat", "--width", "1000")
    unknown_job = cli(apart, live, "fetch", "--type", "video", "--id", "1")
    not_served = cli(apart, live, "video-to-video", "--init-video", "https://example.com/a.mp4")
    assert (wrong_key.returncode, wrong_key.stderr.strip()) == (3, "Error: Invalid API key")
    assert (wrong_width.returncode, unknown_job.returncode, not_served.returncode) == (1, 5, 5)
    assert "width must be between 64 and 512, got 1000" in wrong_width.stderr


# agno 3.1.10 and phidata 2.7.10, toolkits of agents

AGNO = """
import sys, json
from agno.models.response import FileType
from agno.tools.models_labs import ModelsLabTools
base, key = sys.argv[1:]

def ask(file_type, key=key):
    tool = ModelsLabTools(
        api_key=key, file_type=file_type, width=64, height=64, wait_for_completion=True, add_to_eta=1, max_wait_time=3
    )
    tool.url, tool.fetch_url = f"{base}/api/v6/video/text2video", f"{base}/api/v6/video/fetch"
    result = tool.generate_media("a cat")
    return result.content, [one.url for one in (result.videos or []) + (result.images or [])]

print(json.dumps([ask(FileType.MP4), ask(FileType.GIF), ask(FileType.MP4, "a wrong key")]))
"""


def test_agno_gets_links_to_an_mp4_and_a_gif_though_it_polls_for_an_id_of_its_own(
    apart: Path, live: LiveServer
) -> None:
    mp4, gif, refused = run_script(AGNO, live.base_url, live.key, python=apart)
    assert mp4[0] == "Mp4 has been generated successfully and will be ready in 0 seconds"
    for _, links in (mp4, gif):
        assert len(links) == 1
        assert clip_of(links[0]).shape == (25, 64, 64)
    assert "401 Client Error: Unauthorized" in refused[0]


PHIDATA = """
import sys, json
from phi.tools.models_labs import ModelsLabs
base, key = sys.argv[1:]

class Agent:
    def __init__(self):
        self.videos = []

    def add_video(self, video):
        self.videos.append([video.url, video.eta])

agent = Agent()
tool = ModelsLabs(api_key=key, url=f"{base}/api/v6/video/text2video", fetch_url=f"{base}/api/v6/video/fetch")
print(json.dumps([tool.generate_media(agent, "a cat"), agent.videos]))
"""


def test_phidata_finds_eta_and_future_links_also_in_a_success(apart: Path, live: LiveServer) -> None:
    said, [[link, eta]] = run_script(PHIDATA, live.base_url, live.key, python=apart)
    assert said == f"Video has been generated successfully and will be ready in {eta} seconds"
    assert eta.isdigit()
    assert link.startswith(f"{live.base_url}/files/")


# modelslab 0.2, the old SDK

MODELSLAB_OLD = """
import sys, json
from modelslab.ai_video import AIVideo
base, key, picture = sys.argv[1:]
video = AIVideo()
video.base_url = f"{base}/api/v6/video"
text = video.text2video(key, "wanx", "a cat", "blurry", 64, 64, 9, 2, 7, 128, 96, 0.6, 12, 20, "mp4")
image = video.img2video(key, "svd", picture, 64, 64, 9, 2, 1, 3, 127, 0.02, base64=True)
ids = [json.loads(answer)["id"] for answer in (text, image)]
print(json.dumps([json.loads(video.fetch_queued(key, id)) for id in ids] + [json.loads(video.system_details(key))]))
"""


def test_the_old_sdk_upscales_a_text_and_animates_a_picture(apart: Path, live: LiveServer) -> None:
    picture = base64.b64encode(png(64, 64)).decode()
    text, image, details = run_script(MODELSLAB_OLD, live.base_url, live.key, picture, python=apart)
    assert clip_of(text["output"][0]).shape == (9, 96, 128)
    assert clip_of(image["output"][0]).shape == (9, 64, 64)
    assert (image["meta"]["model_id"], image["meta"]["motion_bucket_id"]) == ("wan2.2", 127)
    assert details["status"] == "ok"


# The pages' snippets

#: The polling pattern of the OpenAPI page, unchanged.
PATTERN = """
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


def test_the_python_pattern_of_the_page_runs(live: LiveServer) -> None:
    script = PATTERN.replace("https://modelslab.com", live.base_url).replace("your_api_key", live.key)
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert clip_of(done.stdout.strip().removeprefix("Video ready: ")).shape == (25, 512, 512)


#: The body of the older page, as its snippets write it; each has its own way to say that there is no webhook.
OLDER_BODY = """
"key":"",
"model_id":"ltx",
"prompt":"An astronaut riding a horse",
"negative_prompt":"low quality",
"height":512,
"width":512,
"num_frames":16,
"num_inference_steps":20,
"guidance_scale":7,
"upscale_height":640,
"upscale_width":1024,
"upscale_strength":0.6,
"upscale_guidance_scale":12,
"upscale_num_inference_steps":20,
"output_type":"gif",
"webhook":null,
"track_id":null
"""

OLDER_PYTHON = f"""
import requests
import json
url = "https://modelslab.com/api/v6/video/text2video"
payload = json.dumps({{{OLDER_BODY.replace("null", "None")}}})
headers = {{
'Content-Type': 'application/json'
}}
response = requests.request("POST", url, headers=headers, data=payload)
print(response.text)
"""

OLDER_JS = f"""
var myHeaders = new Headers();
myHeaders.append("Content-Type", "application/json");
var raw = JSON.stringify({{{OLDER_BODY}}});
var requestOptions = {{
method: 'POST',
headers: myHeaders,
body: raw,
redirect: 'follow'
}};
fetch("https://modelslab.com/api/v6/video/text2video", requestOptions)
.then(response => response.text())
.then(result => console.log(result))
.catch(error => console.log('error', error));
"""

OLDER_PHP = f"""<?php
$payload = [{OLDER_BODY.replace(":", " => ")}];
$curl = curl_init();
curl_setopt_array($curl, array(
CURLOPT_URL => 'https://modelslab.com/api/v6/video/text2video',
CURLOPT_RETURNTRANSFER => true,
CURLOPT_ENCODING => '',
CURLOPT_MAXREDIRS => 10,
CURLOPT_TIMEOUT => 0,
CURLOPT_FOLLOWLOCATION => true,
CURLOPT_HTTP_VERSION => CURL_HTTP_VERSION_1_1,
CURLOPT_CUSTOMREQUEST => 'POST',
CURLOPT_POSTFIELDS => json_encode($payload),
CURLOPT_HTTPHEADER => array(
'Content-Type: application/json'
),
));
$response = curl_exec($curl);
curl_close($curl);
echo $response;
"""

#: The request line of both pages. curl sends a body as a form when nobody says what it is.
CURL = ["--request", "POST", "-d"]


def addressed(text: str, server: LiveServer) -> str:
    """Return a snippet with this server's host and key in it."""
    return re.sub(
        r'("key" ?(?::|=>) ?)""', rf'\1"{server.key}"', text.replace("https://modelslab.com", server.base_url)
    )


def snippet(name: str, server: LiveServer, folder: Path) -> list[str]:
    """Return the command that runs a snippet, or skip where nothing is installed that does.

    Args:
        folder: for what must be a file.
    """
    submit = f"{server.base_url}/api/v6/video/text2video"
    if name == "php":
        (folder / "snippet.php").write_text(addressed(OLDER_PHP, server))
        return [*php(), str(folder / "snippet.php")]
    command = {
        "python": [sys.executable, "-P", "-c", addressed(OLDER_PYTHON, server)],
        "js": ["node", "-e", addressed(OLDER_JS, server)],
        "curl": ["curl", "-sS", *CURL, addressed(f"{{{OLDER_BODY}}}", server), submit],
    }[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return command


@pytest.mark.parametrize("name", ["python", "js", "php", "curl"])
def test_a_snippet_of_the_older_page_submits_what_it_says(name: str, hasty: LiveServer, tmp_path: Path) -> None:
    done = subprocess.run(snippet(name, hasty, tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # PHP 8.5 writes before it that curl_close, which the page uses, is deprecated.
    answer = json.loads(done.stdout[done.stdout.index("{") :])
    assert answer["status"] == "processing"
    meta = answer["meta"]
    assert (meta["model_id"], meta["num_frames"], meta["output_type"]) == ("ltx", 16, "gif")
    assert (meta["upscale_width"], meta["upscale_height"], meta["webhook"]) == (1024, 640, None)
    # tests/live makes this video once; each of these would take a minute.
    cancelled = httpx2.post(
        f"{hasty.base_url}/polyreel/v1/jobs/{answer['id']}/cancel", headers={"Authorization": f"Bearer {hasty.key}"}
    )
    assert cancelled.json()["status"] == "cancelled"
    assert wait_for(hasty, answer["id"])["status"] == "failed"

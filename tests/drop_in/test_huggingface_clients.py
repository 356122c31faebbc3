"""Hugging Face's clients and snippets, with nothing changed but base URL, key and the lines that our page names.

No released client lists a video task for a URL of one's own; that the documented lines are still needed is tested too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from tests.conftest import LiveServer
from tests.drop_in.running import run_node, run_script
from tests.live.decode import Clip, decode
from tests.server.pictures import noise_png, png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "compatibility" / "huggingface.md"
NPM = ["@huggingface/inference@4.13.30"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture in it; clients put their videos beside it."""
    (tmp_path / "cat.png").write_bytes(png(40, 30))
    return tmp_path


def clip_in(folder: Path, name: str) -> Clip:
    return decode((folder / name).read_bytes())


# huggingface_hub 2.4.0

REGISTERED = """
import sys, json, asyncio, pathlib
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from huggingface_hub.inference._providers import PROVIDERS, HFInferenceBinaryInputTask, HFInferenceTask
base, key, folder = sys.argv[1:]
url, folder = f"{base}/models/Wan-AI/Wan2.1-T2V-1.3B", pathlib.Path(folder)
try:
    InferenceClient(base_url=url, api_key=key).text_to_video("a cat")
except ValueError as err:
    unregistered = str(err)
PROVIDERS["hf-inference"]["text-to-video"] = HFInferenceTask("text-to-video")
PROVIDERS["hf-inference"]["image-to-video"] = HFInferenceBinaryInputTask("image-to-video")

sent = dict(
    num_frames=9, num_inference_steps=2, guidance_scale=5.5, negative_prompt=["blurry", "low quality"], seed=42,
    extra_body={"width": 64, "height": 64, "fps": 8},
)
client = InferenceClient(base_url=url, api_key=key)
(folder / "sync.mp4").write_bytes(client.text_to_video("a cat", **sent))
picture = dict(
    prompt="it runs", negative_prompt="blurry", num_frames=5, num_inference_steps=2, guidance_scale=5.5, seed=42,
    target_size={"width": 96, "height": 64},
)
(folder / "picture.mp4").write_bytes(client.image_to_video(str(folder / "cat.png"), **picture))
(folder / "path.mp4").write_bytes(client.image_to_video(str(folder / "cat.png")))
(folder / "bytes.mp4").write_bytes(client.image_to_video((folder / "cat.png").read_bytes()))

async def later():
    client = AsyncInferenceClient(base_url=url, api_key=key)
    (folder / "async.mp4").write_bytes(await client.text_to_video("a cat", **sent))
    (folder / "async_picture.mp4").write_bytes(await client.image_to_video(str(folder / "cat.png"), **picture))
asyncio.run(later())

try:
    client.text_to_video("a cat", num_frames=1000)
except BadRequestError as err:
    refused = err.server_message
try:
    InferenceClient(base_url=url, api_key="hf_wrong").text_to_video("a cat")
except HfHubHTTPError as err:
    wrong_key = [err.response.status_code, err.server_message]
try:
    InferenceClient(base_url=f"{base}/models/tencent/HunyuanVideo", api_key=key).text_to_video("a cat")
except HfHubHTTPError as err:
    unknown = [err.response.status_code, err.server_message]
asks = InferenceClient(provider="hf-inference", api_key=key)
print(json.dumps({
    "unregistered": unregistered, "refused": refused, "wrong_key": wrong_key, "unknown": unknown,
    "health": asks.health_check(model=url), "info": asks.get_endpoint_info(model=url),
}))
"""


def test_huggingface_hub_makes_videos_of_texts_and_pictures_and_shows_our_errors(
    live: LiveServer, folder: Path
) -> None:
    said = run_script(REGISTERED, live.base_url, live.key, str(folder))

    for name in ("sync.mp4", "async.mp4"):
        clip = clip_in(folder, name)
        assert (clip.shape, clip.fps) == ((9, 64, 64), 8.0)
    for name in ("picture.mp4", "async_picture.mp4"):
        clip = clip_in(folder, name)
        assert (clip.shape, clip.fps) == ((5, 96, 64), 16.0)
    assert clip_in(folder, "path.mp4").shape == (17, 256, 256), "the catalogue's defaults"
    assert (folder / "bytes.mp4").read_bytes() == (folder / "path.mp4").read_bytes(), "the same picture: the cache"
    assert said["unregistered"].startswith("Task 'text-to-video' not supported for provider 'hf-inference'")
    assert said["refused"] == "parameters.num_frames must be between 1 and 129, got 1000"
    assert said["wrong_key"] == [401, "Invalid credentials in Authorization header"]
    assert said["unknown"][0] == 404
    assert said["unknown"][1].startswith("Model tencent/HunyuanVideo is not served here. Served: ")
    assert said["health"] is True
    assert said["info"] == {"model_id": "Wan-AI/Wan2.1-T2V-1.3B", "pipeline_tag": "text-to-video", "family": "wan"}


UNREGISTERED = """
import sys, json, asyncio, pathlib
from huggingface_hub import AsyncInferenceClient, InferenceClient
base, key, folder = sys.argv[1:]
sent = dict(extra_body={"num_frames": 9, "num_inference_steps": 2, "seed": 7, "width": 64, "height": 64, "fps": 8})
url = f"{base}/models/Wan-AI/Wan2.1-T2V-1.3B"
video = InferenceClient(base_url=url, api_key=key).text_to_speech("a cat", **sent)
later = asyncio.run(AsyncInferenceClient(base_url=url, api_key=key).text_to_speech("a cat", **sent))
(pathlib.Path(folder) / "video.mp4").write_bytes(video)
print(json.dumps(video == later))
"""


def test_huggingface_hub_gets_a_video_unpatched_through_text_to_speech(live: LiveServer, folder: Path) -> None:
    assert run_script(UNREGISTERED, live.base_url, live.key, str(folder)) is True
    clip = clip_in(folder, "video.mp4")
    assert (clip.shape, clip.fps) == ((9, 64, 64), 8.0)


# @huggingface/inference 4.13.30

JAVASCRIPT = """
import { InferenceClient } from "@huggingface/inference";
import { readFileSync, writeFileSync } from "node:fs";
const [base, key, folder] = process.argv.slice(2);
const endpointUrl = `${base}/models/Wan-AI/Wan2.1-T2V-1.3B`;
const parameters = { num_frames: 9, num_inference_steps: 2, seed: 11, width: 64, height: 64, fps: 8 };
const picture = readFileSync(`${folder}/cat.png`);
const client = new InferenceClient(key).endpoint(endpointUrl);
const said = {};
const save = async (name, blob) => {
  writeFileSync(`${folder}/${name}`, Buffer.from(await blob.arrayBuffer()));
  said[name] = blob.type;
};
const fails = (promise) => promise.then(() => "no error", (err) => err);

await save("request.mp4", await client.request({ inputs: "a cat", parameters }));
await save("audio.mp4", await new InferenceClient(key).textToAudio({ endpointUrl, inputs: "a cat", parameters }));
await save("url.mp4", await new InferenceClient(key, { endpointUrl }).request({ inputs: "a cat", parameters }));
await save("base64.mp4", await client.request({
  inputs: picture.toString("base64"), parameters: { ...parameters, prompt: "it runs" },
}));
await save("blob.mp4", await client.request({ data: new Blob([picture], { type: "image/png" }) }));

// Headers go by a fetch of one's own; the client has no option for them.
const types = [];
const withHeader = (headers) => async (url, init) => {
  const answer = await fetch(url, { ...init, headers: { ...init.headers, ...headers } });
  types.push(answer.headers.get("x-compute-type"));
  return answer;
};
await client.request({ inputs: "a cat", parameters }, { fetch: withHeader({}) });
await client.request({ inputs: "a cat", parameters }, { fetch: withHeader({ "x-use-cache": "false" }) });
said.types = types;

const object = await client.request({ inputs: { prompt: "a cat", num_frames: 4, num_inference_steps: 2,
  width: 64, height: 64, outputs: ["gif"] } });
writeFileSync(`${folder}/object.gif`, Buffer.from(object.outputs.gif_base64, "base64"));

said.unregistered = (await fails(new InferenceClient(key).textToVideo({ endpointUrl, inputs: "a cat" }))).message;
const refused = await fails(client.request({ inputs: "a cat", parameters: { num_frames: 1000 } }));
said.refused = [refused.message, refused.httpResponse.status];
said.wrongKey = (await fails(new InferenceClient("hf_wrong").endpoint(endpointUrl).request({ inputs: "a" }))).message;
console.log(JSON.stringify(said));
"""


def test_huggingface_js_makes_videos_of_texts_and_pictures_and_shows_our_errors(live: LiveServer, folder: Path) -> None:
    said = run_node(JAVASCRIPT, NPM, live.base_url, live.key, str(folder))

    for name in ("request.mp4", "audio.mp4", "url.mp4", "base64.mp4"):
        assert said[name] == "video/mp4"
        clip = clip_in(folder, name)
        assert (clip.shape, clip.fps) == ((9, 64, 64), 8.0)
    assert clip_in(folder, "blob.mp4").shape == (17, 256, 256), "the catalogue's defaults"
    assert clip_in(folder, "object.gif").shape == (4, 64, 64)
    assert said["types"] == ["cache", "cpu"]
    assert said["unregistered"].startswith("Task 'text-to-video' not supported for provider 'hf-inference'")
    assert said["refused"] == [
        "Failed to perform inference: parameters.num_frames must be between 1 and 129, got 1000",
        400,
    ]
    assert said["wrongKey"] == "Failed to perform inference: Invalid credentials in Authorization header"


# The lines that our own page tells users to write


def documented(language: str, live: LiveServer, **replaced: str) -> list[str]:
    """Return the page's code of a language, with this server's address and key."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    found = [block.replace("http://127.0.0.1:8000", live.base_url) for block in blocks]
    return [re.sub(r"\bKEY\b", json.dumps(live.key), block) for block in found]


def test_the_pages_own_python_lines_work(live: LiveServer, folder: Path) -> None:
    registered, provider = documented("python", live)
    here = f"import os, json\nos.chdir({str(folder)!r})\n"
    write = 'open("video.mp4", "wb").write(video)\nprint(json.dumps(len(video)))\n'
    run_script(f'{here}{registered}\nopen("moving.mp4", "wb").write(moving)\n{write}')
    assert clip_in(folder, "video.mp4").shape == (17, 256, 256)
    assert clip_in(folder, "moving.mp4").shape == (17, 256, 256)
    (folder / "video.mp4").unlink()
    run_script(f"{here}{provider}\n{write}")
    assert clip_in(folder, "video.mp4").shape == (17, 256, 256)


def test_the_pages_own_javascript_lines_work(live: LiveServer, folder: Path) -> None:
    [lines] = documented("js", live)
    out = folder / "video.mp4"
    write = (
        'import { writeFileSync } from "node:fs";\n'
        f"writeFileSync({str(out)!r}, Buffer.from(await video.arrayBuffer()));\nconsole.log(video.size);\n"
    )
    run_node(lines + write, NPM)
    assert decode(out.read_bytes()).shape == (17, 256, 256)


# Snippets as the hub shows them for a model of hf-inference (huggingface.js, packages/tasks/src/snippets)

CURL = """
curl https://router.huggingface.co/hf-inference/models/Wan-AI/Wan2.1-T2V-1.3B \\
	-X POST \\
	-d '{"inputs": "A young man walking on the street"}' \\
	-H 'Content-Type: application/json' \\
	-H 'Authorization: Bearer hf_xxx'
"""  # fmt: skip

PYTHON = """
import requests

API_URL = "https://router.huggingface.co/hf-inference/models/Wan-AI/Wan2.1-T2V-1.3B"
headers = {"Authorization": "Bearer hf_xxx"}

def query(payload):
	response = requests.post(API_URL, headers=headers, json=payload)
	return response.content
video_bytes = query({
	"inputs": "A young man walking on the street",
})
"""  # fmt: skip

FETCH = """
async function query(data) {
	const response = await fetch(
		"https://router.huggingface.co/hf-inference/models/Wan-AI/Wan2.1-T2V-1.3B",
		{
			headers: {
				Authorization: "Bearer hf_xxx",
				"Content-Type": "application/json",
			},
			method: "POST",
			body: JSON.stringify(data),
		}
	);
	const result = await response.blob();
	return result;
}
query({"inputs": "A young man walking on the street"}).then((response) => {
	// Use video
"""  # fmt: skip


def test_the_hubs_snippets_run_with_host_and_key_replaced_and_share_one_video(live: LiveServer, folder: Path) -> None:
    def ours(snippet: str) -> str:
        return snippet.replace("https://router.huggingface.co", live.base_url).replace("hf_xxx", live.key)

    (folder / "curl.mp4").write_bytes(shell(ours(CURL), folder))
    run_script(f'{ours(PYTHON)}\nopen({str(folder / "python.mp4")!r}, "wb").write(video_bytes)\nprint(0)\n')
    save = f"response.arrayBuffer().then((b) => fs.writeFileSync({str(folder / 'js.mp4')!r}, Buffer.from(b)))"
    run_node(f'import fs from "node:fs";{ours(FETCH)}{save};console.log(0)}});', NPM)

    videos = {name: (folder / f"{name}.mp4").read_bytes() for name in ("curl", "python", "js")}
    assert decode(videos["curl"]).shape == (17, 256, 256)
    assert videos["python"] == videos["js"] == videos["curl"], "identical requests are answered from the cache"


# The universal handler's card, its three examples

CARD_TEXT = """
curl -sS -X POST "https://<ENDPOINT>.aws.endpoints.huggingface.cloud" \\
-H "Authorization: Bearer <TOKEN>" \\
-H "Content-Type: application/json" \\
-d '{
"inputs": {
"prompt": "a cyberpunk street in rain, neon lights",
"num_frames": 24,
"outputs": ["gif"]
}
}' \\
| jq -er '.outputs.gif_base64' | base64 --decode > output.gif
"""

CARD_PICTURE = """
# MacOS/Linux: Convert image to base64
IMG_B64=$(base64 -i my_input.jpg)
curl -sS -X POST "https://<ENDPOINT>.aws.endpoints.huggingface.cloud" \\
-H "Authorization: Bearer <TOKEN>" \\
-H "Content-Type: application/json" \\
-d "{
\\"inputs\\": {
\\"prompt\\": \\"waves crashing on the shore, moving water\\",
\\"image\\": \\"$IMG_B64\\",
\\"num_frames\\": 32,
\\"outputs\\": [\\"gif\\"]
}
}" \\
| jq -er '.outputs.gif_base64' | base64 --decode > animated.gif
"""

CARD_WEBM = """
curl -sS -X POST "https://<ENDPOINT>.aws.endpoints.huggingface.cloud" \\
-H "Authorization: Bearer <TOKEN>" \\
-H "Content-Type: application/json" \\
-d '{
"inputs": {
"prompt": "slow pan over a mars landscape",
"num_frames": 48,
"fps": 24,
"outputs": ["webm"],
"webm": { "quality": "best" }
}
}' \\
| jq -er '.outputs.webm_base64' | base64 --decode > output.webm
"""

CARD: list[tuple[str, str, tuple[int, int, int], float]] = [
    (CARD_TEXT, "output.gif", (24, 512, 512), 12.0),
    (CARD_PICTURE, "animated.gif", (32, 512, 512), 12.0),
    (CARD_WEBM, "output.webm", (48, 512, 512), 24.0),
]


def shell(script: str, folder: Path) -> bytes:
    """Run a snippet where curl, jq and base64 are; return what it prints."""
    missing = [tool for tool in ("bash", "curl", "jq", "base64") if shutil.which(tool) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    done: Any = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, capture_output=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return bytes(done.stdout)


@pytest.mark.parametrize(("snippet", "name", "shape", "fps"), CARD, ids=[row[1] for row in CARD])
def test_the_cards_examples_run_with_host_and_key_replaced(
    live: LiveServer, folder: Path, snippet: str, name: str, shape: tuple[int, int, int], fps: float
) -> None:
    (folder / "my_input.jpg").write_bytes(noise_png(60))  # more than one line of base64
    host = "https://<ENDPOINT>.aws.endpoints.huggingface.cloud"
    shell(snippet.replace(host, live.base_url).replace("<TOKEN>", live.key), folder)
    assert clip_in(folder, name).shape == shape
    assert rate(folder / name) == pytest.approx(fps, abs=0.05)


def rate(file: Path) -> float:
    """Return frames per second over the whole file: a gif's frames last 8 or 9 hundredths each at 12 a second."""
    if file.suffix != ".gif":
        return decode(file.read_bytes()).fps
    with Image.open(file) as gif:
        delays_ms = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    return 1000 * len(delays_ms) / sum(delays_ms)

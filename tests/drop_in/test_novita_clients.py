"""Clients that speak Novita's API, with nothing changed but the base URL and the key."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import LiveServer
from tests.drop_in.running import run_node, run_script
from tests.live.decode import decode
from tests.server.pictures import png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NOVITA_CLIENT = """
import sys, json
from novita_client import NovitaClient, Txt2VideoPrompt
base, key, picture, out = sys.argv[1:]
client = NovitaClient(key, base)
text = client.txt2video(
    model_name="darkSushiMixMix_225D_64380.safetensors", prompts=[Txt2VideoPrompt(frames=8, prompt="a cat")],
    height=256, width=256, steps=2, guidance_scale=7.5, loras=[], embeddings=[],
)
open(out, "wb").write(text.video_bytes[0])
image = client.img2video(picture, "SVD", steps=1, frames_num=14, image_file_resize_mode="ORIGINAL_DIMENSION")
open(out + ".2", "wb").write(image.video_bytes[0])
print(json.dumps({
    "type": text.videos[0].video_type,
    "seed": text.extra.seed,
    "models": [[model.sd_name, model.type.name] for model in client.models_v3()],
    "credits": client.user_info().credit_balance,
}))
"""

NOVITA_CLIENT_ERRORS = """
import sys, json
from novita_client import NovitaClient, Txt2VideoPrompt
base, key = sys.argv[1:]
said = []
for client, model in ((NovitaClient(key, base), "nope.safetensors"), (NovitaClient("a wrong key", base), "x")):
    try:
        client.async_txt2video(
            model_name=model, prompts=[Txt2VideoPrompt(frames=8, prompt="a cat")], height=256, width=256, steps=2,
            guidance_scale=7.5, loras=[], embeddings=[],
        )
    except Exception as err:
        said.append([type(err).__name__, str(err)])
print(json.dumps(said))
"""

#: The unofficial novita-sdk for Python rents GPUs and makes no videos: what it makes of our errors is all there is.
NOVITA_SDK_PYTHON = """
import sys, json
from novita import NovitaClient
base, key = sys.argv[1:]
try:
    NovitaClient(api_key=key, base_url=base).gpu.instances.list()
except Exception as err:
    print(json.dumps([type(err).__name__, str(err)]))
"""

NOVITA_SDK_NPM = """
import { NovitaSDK } from "novita-sdk";
const [base, key, image] = process.argv.slice(2);
const sdk = new NovitaSDK(key);
sdk.setBaseUrl(base);
const done = async (task_id) => {
  for (;;) {
    const result = await sdk.progress({ task_id });
    if (!["TASK_STATUS_QUEUED", "TASK_STATUS_PROCESSING"].includes(result.task.status)) return result;
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
};
const text = await sdk.txt2Video({
  model_name: "darkSushiMixMix_225D_64380.safetensors", height: 256, width: 256, steps: 2, seed: 7,
  prompts: [{ frames: 8, prompt: "a cat" }], guidance_scale: 7.5,
});
const wan = await sdk.wanT2v({ model_name: "wan2.1-t2v", prompt: "a cat", width: 832, height: 480, steps: 1, seed: 7 });
const picture = await sdk.img2Video({
  model_name: "SVD", image_file: image, frames_num: 14, frames_per_second: 6, seed: 7,
  image_file_resize_mode: "ORIGINAL_RESOLUTION", steps: 1,
});
let refusal;
try {
  await sdk.txt2Video({ model_name: "nope", height: 256, width: 256, steps: 2, prompts: [{ frames: 8, prompt: "a" }] });
} catch (error) {
  refusal = { code: error.code, reason: error.reason, message: error.message ?? error.msg };
}
console.log(JSON.stringify({
  results: [await done(text.task_id), await done(wan.task_id), await done(picture.task_id)],
  models: (await sdk.getModels({ filter: { types: "lora" }, pagination: { limit: 10 } })).models.map((m) => m.sd_name),
  refusal,
}));
"""

HUGGINGFACE_PYTHON = """
import sys, json
from huggingface_hub import InferenceClient
from huggingface_hub.inference._providers import PROVIDERS
from huggingface_hub.hf_api import InferenceProviderMapping
from huggingface_hub.inference._providers._common import HARDCODED_MODEL_INFERENCE_MAPPING
base, key, out = sys.argv[1:]
model = "Lightricks/LTX-Video"
PROVIDERS["novita"]["text-to-video"].base_url = base
mapping = InferenceProviderMapping(
    provider="novita", hf_model_id=model, providerId=model, task="text-to-video", status="live"
)
HARDCODED_MODEL_INFERENCE_MAPPING["novita"] = {model: mapping}
video = InferenceClient(provider="novita", api_key=key).text_to_video(
    "a cat", model=model, num_frames=9, num_inference_steps=2, extra_body={"width": 64, "height": 64, "fps": 8}
)
open(out, "wb").write(video)
print(json.dumps(len(video)))
"""

HUGGINGFACE_JAVASCRIPT = """
import { InferenceClient } from "@huggingface/inference";
import { writeFileSync } from "node:fs";
const [base, key, out] = process.argv.slice(2);
const model = "Lightricks/LTX-Video";
const plain = globalThis.fetch;
globalThis.fetch = (url, options) => {
  if (String(url).startsWith("https://huggingface.co/api/models/")) {  // which the hub would answer
    const mapping = { novita: { providerId: model, status: "live", task: "text-to-video" } };
    return Promise.resolve(Response.json({ inferenceProviderMapping: mapping }));
  }
  return plain(String(url).replace("https://api.novita.ai", base), options);
};
const alive = setInterval(() => {}, 1000);  // the client's own timers do not keep Node running
const video = await new InferenceClient(key).textToVideo({
  provider: "novita", model, inputs: "a cat",
  parameters: { num_inference_steps: 2, num_frames: 9, width: 64, height: 64 },
});
clearInterval(alive);
writeFileSync(out, Buffer.from(await video.arrayBuffer()));
console.log(JSON.stringify(video.size));
"""


#: The page's own commands, one after the other. The apostrophe of its "girl's" ends the shell's quotes, so no shell
#: takes the command as it is printed: it is escaped here.
PAGE_SUBMIT = r"""curl --location 'https://api.novita.ai/v3/async/txt2video' \
--header 'Authorization: Bearer {{API Key}}' \
--header 'Content-Type: application/json' \
--data '{
    "model_name": "darkSushiMixMix_225D_64380.safetensors",
    "height": 512,
    "width": 512,
    "steps": 20,
    "seed": -1,
    "prompts": [
        {
            "frames": 32,
            "prompt": "In the wintry dusk, a little girl holds matches tightly."
        },
        {
            "frames": 32,
            "prompt": "A little girl, barefoot on the frosty pavement, seeks solace."
        },
        {
            "frames": 32,
            "prompt": "A little girl with each match experiences a fleeting dance of warmth and hope."
        },
        {
            "frames": 32,
            "prompt": "In the quiet night, a little girl'\''s silent story unfolds."
        }
    ],
    "negative_prompt": "nsfw, ng_deepnegative_v1_75t, badhandv4, (worst quality:2), (low quality:2), (normal quality:2), lowres, ((monochrome)), ((grayscale)), watermark"
}'"""  # noqa: E501 as the page has it

PAGE_RESULT = """curl --location --request GET 'https://api.novita.ai/v3/async/task-result?task_id={task_id}' \\
--header 'Authorization: Bearer {{API Key}}'"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "video.mp4"


def test_novita_client_makes_videos_of_texts_and_pictures_and_lists_models(live: LiveServer, out: Path) -> None:
    picture = out.with_name("picture.png")
    picture.write_bytes(png(128, 96))
    said = run_script(NOVITA_CLIENT, live.base_url, live.key, str(picture), str(out))
    clip, of_picture = decode(out.read_bytes()), decode(out.with_name("video.mp4.2").read_bytes())
    assert (clip.shape, clip.fps, said["type"]) == ((8, 256, 256), 8.0, "mp4")
    assert (of_picture.shape, of_picture.fps) == ((14, 128, 96), 6.0)
    assert 0 <= int(said["seed"]) < 2**32
    assert said["models"] == [
        ["wan2.2", "checkpoint"],
        ["darkSushiMixMix_225D_64380.safetensors", "checkpoint"],
        ["outline", "lora"],
        ["neon", "lora"],
        ["GoodHands-beta2_39807", "lora"],
        ["badhandv4_16755", "textualinversion"],
    ]
    assert said["credits"] == 0


def test_novita_client_raises_what_we_say(live: LiveServer) -> None:
    unknown, wrong = run_script(NOVITA_CLIENT_ERRORS, live.base_url, live.key)
    assert unknown[0] == wrong[0] == "NovitaResponseError"
    assert "Request failed with status 400" in unknown[1]
    assert "Model nope.safetensors is not served here." in unknown[1]
    assert "Request failed with status 403" in wrong[1]


def test_the_python_sdk_for_gpus_learns_that_there_is_no_such_api(live: LiveServer) -> None:
    name, text = run_script(NOVITA_SDK_PYTHON, live.base_url, live.key)
    assert (name, text.startswith("Resource not found: ")) == ("NotFoundError", True)


def test_the_npm_sdk_submits_polls_and_lists(live: LiveServer) -> None:
    image = base64.b64encode(png(128, 96)).decode()
    said = run_node(NOVITA_SDK_NPM, ["novita-sdk@3.1.3"], live.base_url, live.key, image)
    assert [result["task"]["task_type"] for result in said["results"]] == [
        "TXT_TO_VIDEO",
        "WAN_TXT_TO_VIDEO",
        "IMG_TO_VIDEO",
    ]
    assert [result["extra"]["seed"] for result in said["results"]] == ["7", "7", "7"]
    clips = [decode(httpx2.get(result["videos"][0]["video_url"]).content) for result in said["results"]]
    assert [(clip.shape, clip.fps) for clip in clips] == [
        ((8, 256, 256), 8.0),
        ((81, 832, 480), 16.0),
        ((14, 128, 96), 6.0),
    ]
    assert said["models"] == ["outline", "neon", "GoodHands-beta2_39807"]
    assert said["refusal"]["code"] == 400
    assert said["refusal"]["reason"] == "INVALID_REQUEST_BODY"


def test_hugging_faces_python_client_with_the_provider_novita(live: LiveServer, out: Path) -> None:
    run_script(HUGGINGFACE_PYTHON, live.base_url, live.key, str(out))
    clip = decode(out.read_bytes())
    assert (clip.shape, clip.fps) == ((9, 64, 64), 8.0)


def test_hugging_faces_javascript_client_with_the_provider_novita(live: LiveServer, out: Path) -> None:
    run_node(HUGGINGFACE_JAVASCRIPT, ["@huggingface/inference@4.13.30"], live.base_url, live.key, str(out))
    assert decode(out.read_bytes()).shape == (9, 64, 64)


def test_the_pages_own_curl_commands_submit_and_poll(live: LiveServer) -> None:
    def said(command: str) -> dict[str, Any]:
        ours = command.replace("https://api.novita.ai", live.base_url).replace("{{API Key}}", live.key)
        done = subprocess.run(["bash", "-c", ours], capture_output=True, text=True, timeout=60, check=True)
        return dict(json.loads(done.stdout))

    task_id = said(PAGE_SUBMIT)["task_id"]
    result = said(PAGE_RESULT.replace("{task_id}", task_id))
    assert result["task"]["task_type"] == "TXT_TO_VIDEO"
    assert result["task"]["status"] in ("TASK_STATUS_QUEUED", "TASK_STATUS_PROCESSING")
    # tests/live makes this video once; it takes minutes.
    cancel = f"{live.base_url}/polyreel/v1/jobs/{task_id}/cancel"
    assert httpx2.post(cancel, headers={"Authorization": f"Bearer {live.key}"}).json()["status"] == "cancelled"

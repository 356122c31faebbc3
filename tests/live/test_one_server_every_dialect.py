"""The whole server, as a client of each hosted API meets it: real queue, real worker, real pipelines, real files."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.conftest import LiveServer
from tests.live.decode import decode, decode_zip
from tests.server.pictures import noise_png, png


@pytest.fixture
def client(live: LiveServer) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {live.key}"}
    with httpx2.Client(base_url=live.base_url, timeout=280, headers=headers) as client:
        yield client


def modelslab(client: httpx2.Client, **body: Any) -> dict[str, Any]:
    """Submit to ModelsLab's dialect and follow its documented loop; return the last answer."""
    answer = client.post(
        "/api/v6/video/text2video", json={"prompt": "A cat walking across a sunny room", **body}
    ).json()
    while answer["status"] == "processing":
        time.sleep(0.2)
        answer = client.post(f"/api/v6/video/fetch/{answer['id']}", json={}).json()
    return answer


def novita(client: httpx2.Client, **body: Any) -> dict[str, Any]:
    """Submit to Novita's dialect and wait for the task's end; return the task result."""
    request = {
        "model_name": "darkSushiMixMix_225D_64380.safetensors",
        "height": 256,
        "width": 256,
        "steps": 2,
        "prompts": [{"frames": 8, "prompt": "a cat"}],
        **body,
    }
    submitted = client.post("/v3/async/txt2video", json=request)
    assert submitted.status_code == 200, submitted.text
    while True:
        result = client.get("/v3/async/task-result", params=submitted.json()).json()
        if result["task"]["status"] in ("TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED"):
            return result
        time.sleep(0.2)


def test_the_modelslab_example_is_a_25_frame_mp4_of_512_by_512_at_7_fps(client: httpx2.Client) -> None:
    answer = modelslab(
        client,
        prompt="A majestic space station orbiting Earth, with the sun rising behind it, cinematic, 4K",
        negative_prompt="low quality, blurry, static",
        model_id="wan2.2",
        height=512,
        width=512,
        num_frames=25,
        num_inference_steps=20,
        guidance_scale=7,
        output_type="mp4",
        webhook=None,
        track_id=None,
    )
    assert answer["status"] == "success"
    assert answer["meta"]["model_id"] == "wan2.2"
    clip = decode(httpx2.get(answer["output"][0]).content)
    assert (clip.shape, clip.fps) == ((25, 512, 512), 7.0)


def test_a_bare_hugging_face_request_is_answered_with_the_videos_bytes(client: httpx2.Client) -> None:
    answer = client.post("/models/Lightricks/LTX-Video", json={"inputs": "An astronaut riding a horse"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    clip = decode(answer.content)
    assert (clip.shape, clip.fps) == ((25, 256, 256), 24.0)


@pytest.mark.parametrize(
    "name",
    [
        "Wan-AI/Wan2.1-T2V-1.3B",
        "Wan-AI/Wan2.1-T2V-14B",
        "AdamLucek/Wan2.1-T2V-14B-OldBookIllustrations",
        "Lightricks/LTX-Video",
    ],
)
def test_every_hugging_face_name_of_the_documents_is_served(client: httpx2.Client, name: str) -> None:
    parameters = {"num_frames": 5, "num_inference_steps": 2, "height": 64, "width": 64, "seed": 7}
    answer = client.post(f"/models/{name}", json={"inputs": "a cat", "parameters": parameters})
    assert answer.status_code == 200, answer.text
    assert decode(answer.content).shape == (5, 64, 64)


@pytest.mark.parametrize("model_id", ["wan2.2", "ltx-2.3", "ltx", "wanx", "cogvideox", "animatediff", "never-heard-of"])
def test_every_modelslab_name_of_the_documents_is_served(client: httpx2.Client, model_id: str) -> None:
    answer = modelslab(
        client, model_id=model_id, num_frames=5, num_inference_steps=2, height=64, width=64, output_type="mp4"
    )
    assert answer["status"] == "success", answer
    assert answer["meta"]["model_id"] == ("wan2.2" if model_id == "never-heard-of" else model_id)
    assert decode(httpx2.get(answer["output"][0]).content).shape == (5, 64, 64)


def test_the_universal_handlers_first_example_is_a_24_frame_gif_at_12_fps(client: httpx2.Client) -> None:
    inputs = {"prompt": "a cyberpunk street in rain, neon lights", "num_frames": 24, "outputs": ["gif"]}
    answer = client.post("/", json={"inputs": inputs}).json()
    assert answer["ok"] is True
    assert list(answer["outputs"]) == ["gif_base64"]
    clip = decode(base64.b64decode(answer["outputs"]["gif_base64"]))
    assert clip.shape == (24, 512, 512)


def test_one_universal_job_makes_a_gif_a_webm_and_a_zip_of_the_same_frames(client: httpx2.Client) -> None:
    inputs = {
        "prompt": "slow pan over a mars landscape",
        "num_frames": 10,
        "height": 96,
        "width": 160,
        "num_inference_steps": 2,
        "seed": 3,
        "outputs": ["gif", "webm", "zip"],
        "webm": {"quality": "best", "fps": 24},
    }
    outputs = client.post("/", json={"inputs": inputs}).json()["outputs"]
    frames = decode_zip(base64.b64decode(outputs["zip_base64"]))
    gif = decode(base64.b64decode(outputs["gif_base64"]))
    webm = decode(base64.b64decode(outputs["webm_base64"]))
    assert frames.shape == (10, 96, 160, 3)
    assert gif.shape == (10, 160, 96)
    assert (webm.shape, webm.fps) == ((10, 160, 96), 24.0)
    difference = np.abs(webm.frames.astype(int) - frames).mean()
    assert difference < 20, "the webm shows other pictures than the zip"


def test_the_universal_handler_animates_a_picture(client: httpx2.Client) -> None:
    inputs = {"prompt": "slow zoom in", "num_frames": 9, "height": 64, "width": 96, "num_inference_steps": 2, "seed": 3}
    inputs |= {"outputs": ["zip"]}
    videos = []
    for picture in (png(40, 30), noise_png(32)):
        answer = client.post("/", json={"inputs": inputs | {"image": base64.b64encode(picture).decode()}}).json()
        assert answer["diagnostics"]["mode"] == "i2v"
        videos.append(decode_zip(base64.b64decode(answer["outputs"]["zip_base64"])))
    assert videos[0].shape == videos[1].shape == (9, 64, 96, 3)
    assert not np.array_equal(videos[0], videos[1])


def test_modelslabs_older_example_is_upscaled_to_the_size_that_it_asks_for(client: httpx2.Client) -> None:
    answer = modelslab(
        client,
        model_id="ltx",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        upscale_height=80,
        upscale_width=128,
        upscale_strength=0.6,
        upscale_guidance_scale=12,
        upscale_num_inference_steps=4,
        output_type="mp4",
    )
    assert answer["status"] == "success", answer
    assert decode(httpx2.get(answer["output"][0]).content).shape == (9, 128, 80)


def test_modelslabs_improved_sampling_changes_the_video_with_its_own_seed(client: httpx2.Client) -> None:
    body = {"model_id": "animatediff", "height": 64, "width": 64, "num_frames": 8, "num_inference_steps": 2, "seed": 3}
    body |= {"output_type": "gif"}
    videos = [
        httpx2.get(modelslab(client, **body, **fields)["output"][0]).content
        for fields in (
            {},
            {"use_improved_sampling": True},
            {"use_improved_sampling": True, "improved_sampling_seed": 7},
            {"use_improved_sampling": True, "improved_sampling_seed": 42},
        )
    ]
    assert len({*videos}) == 3
    assert videos[1] == videos[3]  # 42 is the default


def test_novita_takes_loras_embeddings_a_loop_and_clip_skip_and_leaves_no_trace_of_them(client: httpx2.Client) -> None:
    plain = {"seed": 5, "negative_prompt": "(worst quality:2), badhandv4, ((monochrome))"}
    extras = [
        {"loras": [{"model_name": "GoodHands-beta2_39807", "strength": 0.7}]},
        {"embeddings": [{"model_name": "badhandv4_16755"}]},
        {"closed_loop": True, "prompts": [{"frames": 16, "prompt": "a cat"}]},
        {"clip_skip": 2},
    ]
    videos = []
    for fields in ({}, *extras, {}):
        result = novita(client, **plain, **fields)
        assert result["task"]["status"] == "TASK_STATUS_SUCCEED", result
        videos.append(httpx2.get(result["videos"][0]["video_url"]).content)
    assert videos[-1] == videos[0]
    assert len({*videos}) == 5


def test_novitas_prompt_spans_add_up_to_exactly_their_frames(client: httpx2.Client) -> None:
    prompts = [{"frames": 8, "prompt": f"scene {n}"} for n in range(4)]
    result = novita(client, prompts=prompts, seed=42)
    assert result["task"]["status"] == "TASK_STATUS_SUCCEED", result
    assert result["extra"]["seed"] == "42"
    clip = decode(httpx2.get(result["videos"][0]["video_url"]).content)
    assert (clip.shape, clip.fps) == ((32, 256, 256), 8.0)


def test_novita_delivers_a_gif_of_a_size_that_is_no_multiple_of_anything(client: httpx2.Client) -> None:
    result = novita(client, height=257, width=299, extra={"response_video_type": "gif"})
    assert result["videos"][0]["video_type"] == "gif"
    assert decode(httpx2.get(result["videos"][0]["video_url"]).content).shape == (8, 299, 257)


@pytest.mark.parametrize(
    ("model_id", "num_frames", "width", "height"),
    [
        ("wan2.2", 6, 70, 90),
        ("ltx", 16, 100, 64),
        ("ltx", 1, 65, 67),
        ("animatediff", 7, 71, 65),
        ("wan2.2", 25, 96, 64),
    ],
)
def test_frames_and_size_are_delivered_exactly_whatever_the_familys_multiples(
    client: httpx2.Client, model_id: str, num_frames: int, width: int, height: int
) -> None:
    answer = modelslab(
        client,
        model_id=model_id,
        num_frames=num_frames,
        width=width,
        height=height,
        num_inference_steps=2,
        fps=5,
        output_type="mp4",
    )
    clip = decode(httpx2.get(answer["output"][0]).content)
    assert (clip.shape, clip.fps) == ((num_frames, width, height), 5.0)


@pytest.mark.parametrize("model_id", ["wan2.2", "ltx", "animatediff"])
@pytest.mark.parametrize("output_type", ["mp4", "gif"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_frames(
    client: httpx2.Client, model_id: str, output_type: str
) -> None:
    def make(seed: int) -> bytes:
        answer = modelslab(
            client,
            model_id=model_id,
            seed=seed,
            num_frames=5,
            num_inference_steps=2,
            height=64,
            width=64,
            output_type=output_type,
        )
        return httpx2.get(answer["output"][0]).content

    first, again, other = make(7), make(7), make(8)
    assert first == again
    assert not np.array_equal(decode(first).frames, decode(other).frames)


@pytest.mark.parametrize(("path", "picture"), [("wan-t2v", {}), ("wan-i2v", {"image_url": "picture"})])
def test_novitas_own_wan_defaults_are_made_at_the_models_native_size_and_delivered_as_asked(
    client: httpx2.Client, path: str, picture: dict[str, str]
) -> None:
    body = {"prompt": "a red circle moving right on a black background"}
    body |= {name: base64.b64encode(png(320, 180)).decode() for name in picture}
    task_id = client.post(f"/v3/async/{path}", json=body).raise_for_status().json()["task_id"]
    with client.stream("GET", f"/polyreel/v1/jobs/{task_id}/events") as events:
        events.read()
    job = client.get(f"/polyreel/v1/jobs/{task_id}").json()
    assert job["status"] == "succeeded", job
    receipt = job["receipt"]
    assert receipt["denoised"] == {"num_frames": 33, "height": 80, "width": 144}
    assert (receipt["scaled"], receipt["spread_over_time"], receipt["flow_shift"]) == ("lanczos", "linear", 5.0)
    width = 832 if path == "wan-t2v" else 848  # the picture's aspect, in multiples of 16
    assert decode(httpx2.get(job["outputs"][0]["url"]).content).shape == (81, width, 480)


def test_a_job_made_in_one_dialect_is_read_in_the_others_by_its_owner_alone(
    client: httpx2.Client, live: LiveServer
) -> None:
    answer = client.post(
        "/api/v6/video/text2video",
        json={"prompt": "a cat", "model_id": "ltx", "num_frames": 5, "height": 64, "width": 64, "output_type": "mp4"},
    ).json()
    task_id = answer["meta"]["file_prefix"]
    result = client.get("/v3/async/task-result", params={"task_id": task_id}).json()
    assert result["task"]["status"] == "TASK_STATUS_SUCCEED"
    assert decode(httpx2.get(result["videos"][0]["video_url"]).content).shape == (5, 64, 64)
    stranger = client.get(
        "/v3/async/task-result",
        params={"task_id": task_id},
        headers={"Authorization": "Bearer bob-key-0123456789ab"},
    )
    assert (stranger.status_code, stranger.json()["reason"]) == (404, "TASK_NOT_FOUND")


def test_a_seed_that_is_not_given_is_drawn_and_reported(client: httpx2.Client) -> None:
    small = {"model_id": "ltx", "num_frames": 1, "height": 64, "width": 64, "num_inference_steps": 2}
    seeds = {modelslab(client, seed=seed, **small)["meta"]["seed"] for seed in (None, -1)}
    assert len(seeds) == 2
    assert all(0 <= seed < 2**32 for seed in seeds)

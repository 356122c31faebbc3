"""`POST /polyreel/v1/snippets`: the call that is shown makes, in its own dialect, the very request that was asked for.

Every call is sent, and the job that it makes is held against the one that our own API makes of the same body: a snippet
cannot lie. Its texts are run: the curl line by a shell, the program by Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from polyreel.request import VideoRequest
from server.dialects import dialects
from tests.conftest import KEY, Api
from tests.dialects.calling import Worker, every_submit
from tests.server.pictures import picture_text, png

pytestmark = pytest.mark.anyio

PICTURE = png(64, 64)
HEADERS = {"Authorization": f"Bearer {KEY}"}

#: What no quoting survives by luck.
NASTY = 'it\'s a "cat"\n$HOME `id` \\ 100% {key} ${KEY} é 🎬 __blank0_0__ <script>alert(1)</script> !x %s'

LTX = {"model": "ltx", "prompt": NASTY, "seed": 7, "height": 128, "width": 128, "num_frames": 9, "fps": 16}
PLAIN = {**LTX, "num_inference_steps": 4, "guidance_scale": 3.5, "negative_prompt": 'no "dogs"'}
TRAVEL = {
    "model": "animatediff-tiny",
    "prompts": [{"prompt": "dusk", "num_frames": 8}, {"prompt": NASTY, "num_frames": 9}],
    "height": 256,
    "width": 256,
    "fps": 8,
    "seed": 3,
    "guidance_scale": 7.5,
    "loras": [{"name": "style-tiny", "strength": 0.5}],
    "embeddings": ["badhandv4-tiny"],
    "closed_loop": True,
    "clip_skip": 2,
}
BODIES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "drawn seed": {name: value for name, value in PLAIN.items() if name != "seed"},
    "gif": {**PLAIN, "outputs": [{"format": "gif", "fps": 10}]},
    "webm and zip": {**PLAIN, "outputs": [{"format": "webm", "quality": "best"}, {"format": "zip"}]},
    "picture": {**PLAIN, "image": picture_text(PICTURE)},
    "linked picture": {**PLAIN, "image": "https://example.com/cat.png"},
    "keyframes": {
        **PLAIN,
        "image": picture_text(PICTURE),
        "keyframes": [{"frame_index": 4, "image": picture_text(PICTURE), "strength": 0.5}],
        "last_image": picture_text(png(32, 64)),
    },
    "prompt travel": TRAVEL,
    "novita": {**TRAVEL, "outputs": [{"format": "gif"}]},
    "defaults": {"model": "sora-2", "prompt": "a cat"},
    "large": {**PLAIN, "num_frames": 97, "height": 512, "width": 768, "num_inference_steps": 60},
    "second pass": {
        **PLAIN,
        "model": "animatediff-tiny",
        "upscale": {"height": 256, "width": 256, "strength": 0.4},
        "improved_sampling": True,
        "improved_sampling_seed": 11,
    },
    "flow shift": {**PLAIN, "model": "atelier", "flow_shift": 3},
    "kept briefly": {**PLAIN, "keep_s": 600, "webhook": "https://example.com/hook"},
}

#: Which dialects say a request, and what of its files comes otherwise: "" for none.
SAID: dict[str, dict[str, str]] = {
    "plain": dict.fromkeys(("huggingface", "modelslab", "novita"), "")
    | {
        "openai": "outputs: mp4 at 16 fps, thumbnail at 16 fps, spritesheet at 16 fps instead of mp4 at 16 fps",
        "universal": "outputs: gif at 16 fps instead of mp4 at 16 fps",
    },
    "gif": {
        "huggingface": "outputs: mp4 at 16 fps instead of gif at 10 fps",
        "modelslab": "outputs: gif at 16 fps instead of gif at 10 fps",
        "novita": "outputs: mp4 at 16 fps instead of gif at 10 fps",
        "openai": "outputs: mp4 at 16 fps, thumbnail at 16 fps, spritesheet at 16 fps instead of gif at 10 fps",
        "universal": "",
    },
    "prompt travel": {"novita": ""},
    "novita": {"novita": ""},
    "second pass": {"modelslab": ""},
    "flow shift": {},
    "keyframes": {},
}

#: Why a dialect does not say one.
REASONS = {
    ("prompt travel", "huggingface"): "model: animatediff-tiny has no name in this API "
    "(setting models.animatediff-tiny.names.huggingface)",
    ("prompt travel", "openai"): "prompts: OpenAI Videos cannot say a prompt with frames, a prompt with frames; "
    "it would be a prompt with frames",
    ("large", "modelslab"): "width must be between 64 and 512, got 768 "
    "(setting dialects.modelslab.out_of_range: clamp would adjust it)",
    ("picture", "novita"): "images: Novita v3 cannot say a picture",
    ("flow shift", "huggingface"): "flow_shift: Hugging Face Inference cannot say 3",
    ("defaults", "universal"): "model: this endpoint has one, which is not atelier "
    "(setting dialects.universal.endpoint_model)",
}


async def told(api: Api, body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the snippets of a body by their dialect."""
    answer = await api.http.post("/polyreel/v1/snippets", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    return {one["dialect"]: one for one in answer.json()["snippets"]}


def fill(value: Any) -> Any:
    """Fill the blanks of a body in, as whoever copies it does."""
    if isinstance(value, dict):
        return {name: fill(one) for name, one in value.items()}
    if isinstance(value, list):
        return [fill(one) for one in value]
    if value in ("{key}", "Bearer {key}"):
        return value.replace("{key}", KEY)
    if isinstance(value, str) and value.endswith(".png}"):
        file = PICTURE if "last_image" not in value else png(32, 64)
        return value.partition("{")[0] + picture_text(file)
    return value


async def made(api: Api, method: str, path: str, headers: dict[str, str], body: dict[str, Any]) -> VideoRequest:
    """Send a submit and return the request of the job that it makes."""
    worker = Worker(api)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            answer = await api.http.request(method, path, headers=headers, json=body)
            group.cancel_scope.cancel()
    worker.finish_all()
    assert answer.status_code in (200, 202), answer.text
    [stored] = worker.seen
    return stored.job.request


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """An API that fetches no link: the pictures of this file's links are checked apart."""
    return make_api(dialects={"modelslab": {"hold_s": 0}, "universal": {"endpoint_model": "ltx"}})


#: Bodies whose calls are all sent; the others differ from one of these in a single field.
SENT = ("plain", "drawn seed", "webm and zip", "picture", "keyframes", "novita", "second pass", "defaults")


@pytest.mark.parametrize("name", SENT)
async def test_each_call_makes_the_request_that_was_asked_for_but_for_what_it_says(api: Api, name: str) -> None:
    body = BODIES[name]
    asked = await made(api, "POST", "/polyreel/v1/jobs", HEADERS, body)
    found = await told(api, body)
    assert list(found) == ["native", *sorted(set(dialects()) - {"native"})]
    assert found["native"]["reason"] == ""
    for dialect, one in found.items():
        if one["reason"]:
            assert (one["path"], one["body"], one["curl"], one["python"]) == ("", {}, "", ""), dialect
            continue
        got = await made(api, one["method"], one["path"], fill(one["headers"]), fill(one["body"]))
        if "seed" not in body:
            got = replace(got, seed=asked.seed)
        wrong = {field.name for field in fields(VideoRequest) if getattr(got, field.name) != getattr(asked, field.name)}
        said = {text.partition(":")[0] for text in one["differences"]} - {"webhook", "keep_s"}
        assert wrong == said, (dialect, one["differences"])


@pytest.mark.parametrize("name", SAID)
async def test_who_can_say_a_request_and_what_of_its_files_comes_otherwise(api: Api, name: str) -> None:
    found = await told(api, BODIES[name])
    able = {dialect: "; ".join(one["differences"]) for dialect, one in found.items() if not one["reason"]}
    assert able == {"native": "", **SAID[name]}


@pytest.mark.parametrize(("name", "dialect"), REASONS)
async def test_who_cannot_say_a_request_names_the_field(api: Api, name: str, dialect: str) -> None:
    assert (await told(api, BODIES[name]))[dialect]["reason"] == REASONS[name, dialect]


@every_submit
async def test_every_dialect_that_takes_jobs_shows_a_call(api: Api, dialect: Any) -> None:
    """Whichever model it has a name for: a dialect that never says anything would pass all the others."""
    models = (await api.http.get("/polyreel/v1/models", headers=HEADERS)).json()["models"]
    size = {"height": 256, "width": 256, "num_frames": 9, "fps": 8, "guidance_scale": 5}
    shown = [await told(api, {"model": one["name"], "prompt": "a cat", **size}) for one in models]
    assert any(not found[dialect.name]["reason"] for found in shown)


async def test_what_a_call_leaves_out_beside_the_request_is_told(api: Api) -> None:
    found = await told(api, BODIES["kept briefly"])
    left_out = {name: [text for text in one["differences"] if "left out" in text] for name, one in found.items()}
    assert left_out["native"] == []
    assert left_out["modelslab"] == ["keep_s: left out"]
    assert left_out["huggingface"] == ["webhook: left out", "keep_s: left out"]


async def test_a_link_to_a_picture_stays_the_link(api: Api) -> None:
    found = await told(api, BODIES["linked picture"])
    assert found["native"]["body"]["image"] == "https://example.com/cat.png"
    assert found["huggingface"]["body"]["inputs"] == "https://example.com/cat.png"
    assert found["modelslab"]["body"]["init_image"] == "https://example.com/cat.png"
    assert found["openai"]["body"]["input_reference"] == {"image_url": "https://example.com/cat.png"}


async def test_a_refused_request_is_refused_here_as_it_would_be_there(api: Api) -> None:
    for body in ({**PLAIN, "num_frames": 5000}, {**PLAIN, "closed_loop": True}, {"model": "ltx"}, {**PLAIN, "fps": 0}):
        there = await api.http.post("/polyreel/v1/jobs", json=body, headers=HEADERS)
        here = await api.http.post("/polyreel/v1/snippets", json=body, headers=HEADERS)
        assert there.status_code == 400
        assert (here.status_code, here.json()) == (400, there.json())
    assert api.records.open_ids() == []


async def test_neither_key_nor_picture_stands_in_a_snippet(api: Api) -> None:
    answer = await api.http.post("/polyreel/v1/snippets", json=BODIES["keyframes"], headers=HEADERS)
    assert KEY not in answer.text
    assert picture_text(PICTURE) not in answer.text
    assert "frame-4.png" in answer.text


#: Stands for curl: says what it was called with.
CURL = """#!/bin/sh
exec "$PYTHON" -c 'import json, sys; a = sys.argv[1:]; b = sys.stdin.buffer.read().decode() if "@-" in a else None
print(json.dumps([a, b]))' "$@"
"""


def run(command: list[str], folder: Path) -> str:
    (folder / "curl").write_text(CURL)
    (folder / "curl").chmod(0o755)
    for name in ("image.png", "frame-4.png"):
        (folder / name).write_bytes(PICTURE)
    (folder / "last_image.png").write_bytes(png(32, 64))
    path = f"{folder}:{os.environ['PATH']}"
    environment = {"PATH": path, "KEY": KEY, "PYTHON": sys.executable, "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["keyframes", "picture"])
async def test_a_shell_sends_exactly_the_body_that_is_told(api: Api, tmp_path: Path, name: str) -> None:
    script = []
    found = {dialect: one for dialect, one in (await told(api, BODIES[name])).items() if not one["reason"]}
    for one in found.values():
        script.append(one["curl"])
    lines = run(["sh", "-c", "\n".join(script)], tmp_path).splitlines()
    for line, one in zip(lines, found.values(), strict=True):
        words, piped = json.loads(line)
        body = words[words.index("-d") + 1] if piped is None else piped
        assert json.loads(body) == fill(one["body"])
        assert words[1:4] == ["-X", "POST", f"http://api.test{one['path']}"]
        sent = [words[i + 1] for i, word in enumerate(words) if word == "-H"]
        assert sent == [f"{name}: {value}" for name, value in fill(one["headers"]).items()] + [
            "Content-Type: application/json"
        ]


#: Stands for the network: tells what a program would send.
NO_NETWORK = """
import io, json, urllib.request
def urlopen(r):
    print(json.dumps([r.get_method(), r.full_url, dict(r.header_items()), json.loads(r.data)]))
    return io.BytesIO(b"answer")
urllib.request.urlopen = urlopen
"""


@pytest.mark.parametrize("name", ["keyframes", "picture"])
async def test_the_program_sends_exactly_the_body_that_is_told(api: Api, tmp_path: Path, name: str) -> None:
    found = {dialect: one for dialect, one in (await told(api, BODIES[name])).items() if not one["reason"]}
    programs = NO_NETWORK + "\n".join(f"exec({one['python']!r})" for one in found.values())
    lines = [line for line in run([sys.executable, "-c", programs], tmp_path).splitlines() if line != "answer"]
    for line, one in zip(lines, found.values(), strict=True):
        method, url, headers, body = json.loads(line)
        assert (method, url, body) == ("POST", f"http://api.test{one['path']}", fill(one["body"]))
        wanted = fill(one["headers"]) | {"Content-Type": "application/json"}
        assert headers == {name.capitalize(): value for name, value in wanted.items()}
    if "huggingface" in found:
        assert (tmp_path / "video.mp4").read_bytes() == b"answer"

"""OpenAI's own Python client, sync and async, with nothing changed but the base URL and the key."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import LiveServer
from tests.drop_in.running import run_script
from tests.live.decode import decode
from tests.server.pictures import png

pytestmark = pytest.mark.slow

VIDEO = """
import json, pathlib, sys
from openai import OpenAI
base, key, folder = sys.argv[1:]
folder = pathlib.Path(folder)
client = OpenAI(base_url=f"{base}/v1", api_key=key)
video = client.videos.create_and_poll(
    model="sora-2", prompt="a cat", seconds="4", size="64x64",
    extra_body={"fps": 4, "num_inference_steps": 2, "seed": 7, "guidance_scale": 2.5, "negative_prompt": "blurry"},
)
for variant in ("video", "thumbnail", "spritesheet"):
    client.videos.download_content(video.id, variant=variant).write_to_file(folder / variant)
client.videos.download_content(video.id).write_to_file(folder / "default")
again = client.videos.retrieve(video.id)
print(json.dumps({"video": video.to_dict(), "is_the_same": again == video}))
"""

VIDEO_ASYNC = """
import asyncio, json, pathlib, sys
from openai import AsyncOpenAI
base, key, folder = sys.argv[1:]

async def main():
    async with AsyncOpenAI(base_url=f"{base}/v1", api_key=key) as client:
        video = await client.videos.create_and_poll(
            prompt="a cat", size="64x64", poll_interval_ms=100, extra_body={"num_frames": 9, "num_inference_steps": 2},
        )
        content = await client.videos.download_content(video.id)
        content.write_to_file(pathlib.Path(folder) / "video")
        listed = [one.id async for one in client.videos.list(limit=1, order="asc")]
        deleted = await client.videos.delete(video.id)
    print(json.dumps({"video": video.to_dict(), "listed": listed, "deleted": deleted.to_dict()}))

asyncio.run(main())
"""

LIST = """
import json, sys
from openai import NotFoundError, OpenAI
base, key = sys.argv[1:]
client = OpenAI(base_url=f"{base}/v1", api_key=key)
few = {"num_frames": 1, "num_inference_steps": 1, "width": 64, "height": 64}
made = [client.videos.create(prompt=f"cat {n}", extra_body=few).id for n in range(3)]
newest_first = [video.id for video in client.videos.list(limit=2)][:3]
oldest_first = [video.id for video in client.videos.list(limit=2, order="asc")][-3:]
for video_id in made:
    client.videos.poll(video_id)
remixed = client.videos.remix(made[0], prompt="a dog")
before = client.videos.create(prompt="to be thrown away", seconds="8", extra_body={"num_inference_steps": 50})
deleted = [client.videos.delete(video_id).to_dict() for video_id in (before.id, made[1])]
gone = []
for video_id in (before.id, made[1]):
    try:
        client.videos.retrieve(video_id)
    except NotFoundError as err:
        gone.append(err.status_code)
after = client.videos.poll(remixed.id)
print(json.dumps({
    "made": made, "newest_first": newest_first, "oldest_first": oldest_first, "deleted": deleted, "gone": gone,
    "remix": [after.status, after.remixed_from_video_id, after.prompt, after.size],
    "models": [model.id for model in client.models.list()], "model": client.models.retrieve("sora-2").to_dict(),
}))
"""

REFERENCE = """
import base64, io, json, pathlib, sys
from openai import OpenAI
base, key, picture = sys.argv[1:]
client = OpenAI(base_url=f"{base}/v1", api_key=key)
few = {"num_frames": 9, "num_inference_steps": 1, "seed": 3, "size": "64x64"}
content = pathlib.Path(picture).read_bytes()
url = "data:image/png;base64," + base64.b64encode(content).decode()
forms = [pathlib.Path(picture), io.BytesIO(content), ("cat.png", content, "image/png")]
videos = [client.videos.create(prompt="a cat", input_reference=form, extra_body=few) for form in forms]
# The client's types allow an object as input_reference, and its code refuses it; this way it goes out.
in_object = few | {"input_reference": {"image_url": url}}
videos.append(client.videos.create(prompt="a cat", extra_body=in_object))
plain = client.videos.create(prompt="a cat", extra_body=few)
done = [client.videos.poll(video.id) for video in [*videos, plain]]
contents = [client.videos.download_content(video.id).read() for video in done]
print(json.dumps({"status": [v.status for v in done], "same": [c == contents[0] for c in contents]}))
"""

ERRORS = """
import json, sys
import openai
from openai import OpenAI
base, key = sys.argv[1:]
client = OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
wrong = OpenAI(base_url=f"{base}/v1", api_key="wrong-key-0123456789", max_retries=0)
no_one = "00000000-0000-4000-8000-000000000000"
slow = client.videos.create(prompt="a cat", size="64x64", extra_body={"num_frames": 9, "num_inference_steps": 100})

def caught(ask):
    try:
        ask()
    except openai.APIStatusError as err:
        assert err.request_id
        return [type(err).__name__, err.code, err.param]

once = {"Idempotency-Key": "once"}
client.videos.create(prompt="a cat", size="64x64", extra_headers=once, extra_body={"num_frames": 1})
print(json.dumps({
    "wrong key": caught(lambda: wrong.videos.list()),
    "unknown id": caught(lambda: client.videos.retrieve(no_one)),
    "not ready": caught(lambda: client.videos.download_content(slow.id)),
    "unknown model": caught(lambda: client.videos.create(prompt="a cat", model="sora-3")),
    "wrong size": caught(lambda: client.videos.create(prompt="a cat", size="9999x64")),
    "no prompt": caught(lambda: client.videos.create(prompt="")),
    "key reused": caught(lambda: client.videos.create(prompt="a dog", extra_headers=once)),
    "no picture": caught(lambda: client.videos.create(prompt="a cat", input_reference=b"not a picture")),
    "an edit": caught(lambda: client.videos.edit(prompt="a cat", video=b"an mp4")),
}))
client.videos.delete(slow.id)
"""


# The guide's own commands, but for host, key, length and size, and with steps to keep them short.
GUIDE = """
cd "$FOLDER"
curl -sS -X POST "$BASE/v1/videos" -H "Authorization: Bearer $KEY" -H "Content-Type: multipart/form-data" \\
  -F prompt="She turns around and smiles, then slowly walks out of the frame." \\
  -F model="sora-2-pro" -F size="64x64" -F seconds="1" -F num_inference_steps=2 \\
  -F input_reference="@sample_720p.jpeg;type=image/jpeg" > created.json
ID=$(python3 -c 'import json; print(json.load(open("created.json"))["id"])')
until curl -sS "$BASE/v1/videos/$ID" -H "Authorization: Bearer $KEY" | tee status.json | grep -q '"completed"'; do
  grep -q '"failed"' status.json && exit 1
  sleep 0.2
done
curl -L "$BASE/v1/videos/$ID/content" -H "Authorization: Bearer $KEY" --output video.mp4
curl -L "$BASE/v1/videos/$ID/content?variant=thumbnail" -H "Authorization: Bearer $KEY" --output thumbnail.webp
curl -sS -X POST "$BASE/v1/videos/$ID/remix" -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
  -d '{"prompt": "Shift the color palette to teal, sand, and rust, with a warm backlight."}' > remixed.json
curl -sS "$BASE/v1/videos?limit=20&after=$ID&order=asc" -H "Authorization: Bearer $KEY" > listed.json
curl -X DELETE "$BASE/v1/videos/$ID" -H "Authorization: Bearer $KEY" > deleted.json
"""


def size_of(file: Path) -> tuple[str | None, tuple[int, int]]:
    with Image.open(io.BytesIO(file.read_bytes())) as picture:
        return picture.format, picture.size


def test_a_video_is_made_polled_and_downloaded_in_every_variant(live: LiveServer, tmp_path: Path) -> None:
    done = run_script(VIDEO, live.base_url, live.key, str(tmp_path))
    video = done["video"]
    assert (video["status"], video["model"], video["seconds"], video["size"]) == ("completed", "sora-2", "4", "64x64")
    assert done["is_the_same"] is True
    clip = decode((tmp_path / "video").read_bytes())
    assert (clip.shape, clip.fps) == ((16, 64, 64), 4.0)
    assert (tmp_path / "default").read_bytes() == (tmp_path / "video").read_bytes()
    assert size_of(tmp_path / "thumbnail") == ("WEBP", (64, 64))
    assert size_of(tmp_path / "spritesheet") == ("JPEG", (256, 256))


def test_the_asynchronous_client_does_the_same(live: LiveServer, tmp_path: Path) -> None:
    done = run_script(VIDEO_ASYNC, live.base_url, live.key, str(tmp_path))
    assert done["video"]["status"] == "completed"
    assert done["video"]["id"] in done["listed"]
    assert done["deleted"] == {"id": done["video"]["id"], "object": "video.deleted", "deleted": True}
    assert decode((tmp_path / "video").read_bytes()).shape == (9, 64, 64)


def test_videos_are_listed_in_pages_remixed_and_deleted(live: LiveServer) -> None:
    done = run_script(LIST, live.base_url, live.key)
    assert done["newest_first"] == done["made"][::-1]
    assert done["oldest_first"] == done["made"]
    assert [one["deleted"] for one in done["deleted"]] == [True, True]
    assert done["gone"] == [404, 404]
    assert done["remix"] == ["completed", done["made"][0], "a dog", "64x64"]
    assert "sora-2" in done["models"]
    assert done["model"] == {"id": "sora-2", "object": "model", "created": 0, "owned_by": "polyreel"}


def test_a_picture_goes_in_as_a_file_a_stream_a_tuple_or_a_data_url(live: LiveServer, tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(png(64, 64))
    done = run_script(REFERENCE, live.base_url, live.key, str(picture))
    assert done["status"] == ["completed"] * 5
    assert done["same"] == [True, True, True, True, False]


def test_the_commands_of_the_guide_work(live: LiveServer, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        if os.environ.get("CI"):
            pytest.fail("curl is needed for the guide's commands")
        pytest.skip("curl is not installed")
    picture = Image.new("RGB", (1280, 720), (90, 140, 200))
    picture.save(tmp_path / "sample_720p.jpeg")
    environment = {**os.environ, "BASE": live.base_url, "KEY": live.key, "FOLDER": str(tmp_path)}
    subprocess.run(["bash", "-euc", GUIDE], env=environment, check=True, capture_output=True, timeout=200)
    said = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in
            ("created", "remixed", "listed", "deleted")}  # fmt: skip
    assert (said["created"]["status"], said["created"]["model"]) == ("queued", "sora-2-pro")
    assert decode((tmp_path / "video.mp4").read_bytes()).shape == (16, 64, 64)
    assert size_of(tmp_path / "thumbnail.webp") == ("WEBP", (64, 64))
    assert said["remixed"]["remixed_from_video_id"] == said["created"]["id"]
    assert [video["id"] for video in said["listed"]["data"]] == [said["remixed"]["id"]]
    assert said["deleted"] == {"id": said["created"]["id"], "object": "video.deleted", "deleted": True}


def test_every_refusal_is_an_exception_of_the_right_class(live: LiveServer) -> None:
    assert run_script(ERRORS, live.base_url, live.key) == {
        "wrong key": ["AuthenticationError", "invalid_api_key", None],
        "unknown id": ["NotFoundError", None, None],
        "not ready": ["NotFoundError", None, None],
        "unknown model": ["NotFoundError", "model_not_found", "model"],
        "wrong size": ["BadRequestError", "invalid_value", "size"],
        "no prompt": ["BadRequestError", "invalid_value", "prompt"],
        "key reused": ["UnprocessableEntityError", "idempotency_key_reused", None],
        "no picture": ["BadRequestError", "invalid_value", "input_reference"],
        "an edit": ["BadRequestError", "unsupported", None],
    }

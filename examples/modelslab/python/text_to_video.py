"""ModelsLab's own client (`pip install modelslab-py requests`), which fetches until the video is there."""

import os
import sys
from pathlib import Path
from urllib.request import urlopen

from modelslab_py.core.apis.video import Video
from modelslab_py.core.client import Client
from modelslab_py.schemas.video import Text2Video

client = Client(api_key=os.environ["KEY"], fetch_timeout=1)  # seconds between two fetches; its own are 60
client.base_url = f"{os.environ['BASE']}/api/"  # before Video(), which copies it
video = Video(client)
answer = video.text_to_video(
    Text2Video(
        model_id="wan2.2",
        prompt="a green square growing on a white background",
        output_type="mp4",
        num_frames=17,
        width=256,
        height=256,
        num_inference_steps=20,
        fps=8,
        seed=7,
    )
)
if answer["status"] == "processing":
    answer = video.fetch(str(answer["id"]))
with urlopen(answer["output"][0], timeout=60) as file:
    Path(sys.argv[1] if len(sys.argv) > 1 else "video.mp4").write_bytes(file.read())

"""Novita's own client (`pip install novita-client dataclass-wizard==0.39.1`), which polls and downloads."""

import os
import sys
from pathlib import Path

from novita_client import NovitaClient, Txt2VideoPrompt

client = NovitaClient(os.environ["KEY"], os.environ["BASE"])
result = client.txt2video(
    model_name="wan2.2",
    prompts=[
        Txt2VideoPrompt(frames=17, prompt="a red circle moving right on a black background"),
        Txt2VideoPrompt(frames=16, prompt="a blue circle moving right on a black background"),
    ],
    height=256,
    width=256,
    steps=20,
    seed=7,
    guidance_scale=7.5,
    loras=[],  # the client fails before it sends where these two are left out
    embeddings=[],
)
Path(sys.argv[1] if len(sys.argv) > 1 else "video.mp4").write_bytes(result.video_bytes[0])

"""Novita's own client (`pip install novita-client dataclass-wizard==0.39.1`), which polls and downloads."""

import os
import sys
from pathlib import Path

from novita_client import NovitaClient, Txt2VideoPrompt

client = NovitaClient(os.environ["KEY"], os.environ["BASE"])
result = client.txt2video(
    model_name="darkSushiMixMix_225D_64380.safetensors",
    prompts=[
        Txt2VideoPrompt(frames=8, prompt="a street at dusk"),
        Txt2VideoPrompt(frames=8, prompt="the street at dawn"),
    ],
    height=256,
    width=256,
    steps=8,
    seed=7,
    guidance_scale=7.5,
    loras=[],  # the client fails before it sends where these two are left out
    embeddings=[],
)
Path(sys.argv[1] if len(sys.argv) > 1 else "video.mp4").write_bytes(result.video_bytes[0])

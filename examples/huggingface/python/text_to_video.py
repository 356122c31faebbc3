"""huggingface_hub's own client (`pip install huggingface_hub`); its `text_to_video` returns the video's bytes."""

import os
import sys
from pathlib import Path

from huggingface_hub import InferenceClient
from huggingface_hub.inference._providers import PROVIDERS, HFInferenceTask

# No released version lists this task for a URL of one's own; without this line the client raises before it sends.
PROVIDERS["hf-inference"]["text-to-video"] = HFInferenceTask("text-to-video")

client = InferenceClient(base_url=f"{os.environ['BASE']}/models/Wan-AI/Wan2.1-T2V-1.3B", api_key=os.environ["KEY"])
video = client.text_to_video(
    "a red circle moving right on a black background", num_frames=17, num_inference_steps=20, seed=7
)
Path(sys.argv[1] if len(sys.argv) > 1 else "video.mp4").write_bytes(video)

"""Plain Python, nothing to install: several files of one video come in base64."""

import base64
import json
import os
import sys
from pathlib import Path
from urllib.request import Request, urlopen

inputs = {
    "prompt": "a purple star bouncing on a white background",
    "num_frames": 17,
    "width": 256,
    "height": 256,
    "num_inference_steps": 20,
    "seed": 7,
    "outputs": ["webm"],
}
request = Request(
    f"{os.environ['BASE']}/",
    json.dumps({"inputs": inputs}).encode(),
    {"Authorization": f"Bearer {os.environ['KEY']}", "Content-Type": "application/json"},
)
with urlopen(request, timeout=300) as answer:
    outputs = json.load(answer)["outputs"]
file = Path(sys.argv[1] if len(sys.argv) > 1 else "video.webm")
file.write_bytes(base64.b64decode(outputs["webm_base64"]))

"""Plain Python, nothing to install: submit, follow the job's events, save its first file."""

import json
import os
import sys
from pathlib import Path
from urllib.request import Request, urlopen

BASE, HEADERS = os.environ["BASE"], {"Authorization": f"Bearer {os.environ['KEY']}", "Content-Type": "application/json"}
wanted = {
    "model": "wan2.2",
    "prompt": "a yellow triangle growing on a navy background",
    "num_frames": 17,
    "height": 256,
    "width": 384,
    "num_inference_steps": 20,
    "seed": 7,
}
with urlopen(Request(f"{BASE}/polyreel/v1/jobs", json.dumps(wanted).encode(), HEADERS)) as answer:
    job = json.load(answer)

event = ""
with urlopen(Request(f"{BASE}/polyreel/v1/jobs/{job['id']}/events", headers=HEADERS), timeout=600) as events:
    for line in events:
        name, _, value = line.decode().rstrip().partition(": ")
        if name == "event":
            event = value
        elif name == "data" and event == "end":
            job = json.loads(value)
        elif name == "data":
            print(event, value[:100], file=sys.stderr)

if job["status"] != "succeeded":
    sys.exit(str(job["error"]))
with urlopen(job["outputs"][0]["url"]) as file:
    Path(sys.argv[1] if len(sys.argv) > 1 else "video.mp4").write_bytes(file.read())

"""OpenAI's own client (`pip install openai`), which polls and downloads."""

import os
import sys

from openai import OpenAI

client = OpenAI(base_url=f"{os.environ['BASE']}/v1", api_key=os.environ["KEY"])
video = client.videos.create_and_poll(
    model="sora-2",
    prompt="a blue square falling on a pink background",
    size="256x256",  # beyond OpenAI's own sizes, which are types of the client and work as well
    seconds="1",
    extra_body={"num_inference_steps": 20, "seed": 7},  # fields of this server's own
)
if video.status != "completed":
    sys.exit(f"{video.error}")
client.videos.download_content(video.id).write_to_file(sys.argv[1] if len(sys.argv) > 1 else "video.mp4")

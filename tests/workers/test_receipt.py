"""What a receipt says of a video, and what of it goes into the files that clients get."""

from __future__ import annotations

import json
from typing import Any

from workers.receipt import metadata

FACTS: dict[str, Any] = {  # Any: JSON
    "prompts": [{"prompt": "a fox", "num_frames": 9}],
    "device": "cuda",
    "dtype": "bfloat16",
    "placement": "resident",
    "fp8": False,
    "vae_tiling": False,
    "vae_slicing": False,
    "seed": 42,
}


def test_a_file_does_not_say_what_changes_no_pixel() -> None:
    elsewhere = {
        **FACTS,
        "device": "cuda:1",
        "placement": "cpu_offload",
        "vae_slicing": True,
        "after_out_of_memory": ["alone", "cpu_offload"],
    }
    assert metadata(elsewhere) == metadata(FACTS)


def test_a_file_says_what_changes_pixels() -> None:
    about = metadata({**FACTS, "fp8": True, "vae_tiling": True, "after_out_of_memory": ["vae_tiling"]})
    assert about["title"] == "a fox"
    assert json.loads(about["comment"]) == {
        "prompts": [{"prompt": "a fox", "num_frames": 9}],
        "device": "cuda",
        "dtype": "bfloat16",
        "fp8": True,
        "vae_tiling": True,
        "seed": 42,
    }

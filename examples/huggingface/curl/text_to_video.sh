#!/usr/bin/env bash
# The request of Hugging Face's API page; the answer is the video itself.
set -euo pipefail

curl -sS --fail-with-body "$BASE/models/Wan-AI/Wan2.1-T2V-1.3B" \
  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \
  -d '{
    "inputs": "a red circle moving right on a black background",
    "parameters": {"num_frames": 17, "num_inference_steps": 20, "seed": 7}
  }' \
  -o "${1:-video.mp4}"

#!/usr/bin/env bash
# The handler's own request, which asks for a webm; files come in base64.
set -euo pipefail

curl -sS --fail-with-body "$BASE/" \
  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \
  -d '{
    "inputs": {
      "prompt": "a purple star bouncing on a white background",
      "num_frames": 17, "width": 256, "height": 256, "num_inference_steps": 20, "seed": 7,
      "outputs": ["webm"]
    }
  }' \
  | jq -er .outputs.webm_base64 | base64 --decode > "${1:-video.webm}"

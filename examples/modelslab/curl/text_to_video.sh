#!/usr/bin/env bash
# Submits, fetches until the status is no longer "processing", and saves the link's file.
set -euo pipefail

answer=$(curl -sS --fail-with-body "$BASE/api/v6/video/text2video" -H "Content-Type: application/json" -d '{
  "key": "'"$KEY"'", "model_id": "wan2.2", "prompt": "a green square growing on a white background", "output_type": "mp4",
  "num_frames": 17, "width": 256, "height": 256, "num_inference_steps": 20, "fps": 8, "seed": 7
}')
while [ "$(jq -r .status <<< "$answer")" = processing ]; do
  sleep 1
  answer=$(curl -sS --fail-with-body "$BASE/api/v6/video/fetch/$(jq -r .id <<< "$answer")" \
    -H "Content-Type: application/json" -d '{"key": "'"$KEY"'"}')
done
curl -sS --fail "$(jq -er '.output[0]' <<< "$answer")" -o "${1:-video.mp4}"

#!/usr/bin/env bash
# Polyreel's own API: submit, follow the job's events to its end, save its first file.
set -euo pipefail

id=$(curl -sS --fail-with-body "$BASE/polyreel/v1/jobs" \
  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d '{
    "model": "wan2.2", "prompt": "a yellow triangle growing on a navy background",
    "num_frames": 17, "height": 256, "width": 384, "num_inference_steps": 20, "seed": 7
  }' | jq -r .id)
# The stream ends with the job; an event is a line "event: NAME" and a line "data: JSON".
curl -sSN --fail "$BASE/polyreel/v1/jobs/$id/events" -H "Authorization: Bearer $KEY" | grep '^event: ' >&2
job=$(curl -sS --fail-with-body "$BASE/polyreel/v1/jobs/$id" -H "Authorization: Bearer $KEY")
curl -sS --fail "$(jq -er '.outputs[0].url' <<< "$job")" -o "${1:-video.mp4}"

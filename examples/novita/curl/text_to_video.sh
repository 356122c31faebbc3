#!/usr/bin/env bash
# Submits two prompts one after the other, polls the task's result, and saves the link's file.
set -euo pipefail

id=$(curl -sS --fail-with-body "$BASE/v3/async/txt2video" \
  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d '{
    "model_name": "wan2.2",
    "height": 256, "width": 256, "steps": 20, "seed": 7,
    "prompts": [{"frames": 17, "prompt": "a red circle moving right on a black background"},
                {"frames": 16, "prompt": "a blue circle moving right on a black background"}]
  }' | jq -r .task_id)
while result=$(curl -sS --fail-with-body "$BASE/v3/async/task-result?task_id=$id" -H "Authorization: Bearer $KEY"); do
  case $(jq -r .task.status <<< "$result") in
    TASK_STATUS_SUCCEED) break ;;
    TASK_STATUS_FAILED) jq -r .task.reason <<< "$result" >&2; exit 1 ;;
  esac
  sleep 1
done
curl -sS --fail "$(jq -r '.videos[0].video_url' <<< "$result")" -o "${1:-video.mp4}"

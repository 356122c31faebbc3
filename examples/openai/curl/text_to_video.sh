#!/usr/bin/env bash
# The guide's commands: create, ask until it is completed, download the content.
set -euo pipefail

video=$(curl -sS --fail-with-body "$BASE/v1/videos" -H "Authorization: Bearer $KEY" \
  -F model=sora-2 -F prompt="a blue square falling on a pink background" -F size=256x256 -F seconds=1 \
  -F num_inference_steps=20 -F seed=7)
id=$(jq -r .id <<< "$video")
until [ "$(jq -r .status <<< "$video")" = completed ]; do
  if [ "$(jq -r .status <<< "$video")" = failed ]; then jq .error <<< "$video" >&2; exit 1; fi
  sleep 1
  video=$(curl -sS --fail-with-body "$BASE/v1/videos/$id" -H "Authorization: Bearer $KEY")
done
curl -sS --fail "$BASE/v1/videos/$id/content" -H "Authorization: Bearer $KEY" -o "${1:-video.mp4}"

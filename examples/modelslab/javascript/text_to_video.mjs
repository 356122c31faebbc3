// Plain Node, nothing to install: submit, fetch until it is no longer processing, save the link's file.
import { writeFile } from "node:fs/promises";

const { BASE, KEY } = process.env;

async function post(path, body) {
  const answer = await fetch(`${BASE}/api/v6/video/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ key: KEY, ...body }),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

let video = await post("text2video", {
  model_id: "wan2.2", prompt: "a green square growing on a white background", output_type: "mp4",
  num_frames: 17, width: 256, height: 256, num_inference_steps: 20, fps: 8, seed: 7,
});
while (video.status === "processing") {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  video = await post(`fetch/${video.id}`, {});
}
if (video.status !== "success") throw new Error(video.message);
const file = await fetch(video.output[0]);
await writeFile(process.argv[2] ?? "video.mp4", Buffer.from(await file.arrayBuffer()));

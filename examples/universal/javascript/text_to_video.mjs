// Plain Node, nothing to install: several files of one video come in base64.
import { writeFile } from "node:fs/promises";

const { BASE, KEY } = process.env;
const answer = await fetch(`${BASE}/`, {
  method: "POST",
  headers: { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" },
  body: JSON.stringify({
    inputs: {
      prompt: "a purple star bouncing on a white background",
      num_frames: 17, width: 256, height: 256, num_inference_steps: 20, seed: 7,
      outputs: ["webm"],
    },
  }),
});
if (!answer.ok) throw new Error(await answer.text());
const { outputs } = await answer.json();
await writeFile(process.argv[2] ?? "video.webm", Buffer.from(outputs.webm_base64, "base64"));

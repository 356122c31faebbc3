// Hugging Face's own client (`npm install @huggingface/inference`); `request`, as its `textToVideo` refuses a URL.
import { writeFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const { BASE, KEY } = process.env;
const client = new InferenceClient(KEY).endpoint(`${BASE}/models/Wan-AI/Wan2.1-T2V-1.3B`);
const video = await client.request({
  inputs: "a red circle moving right on a black background",
  parameters: { num_frames: 17, num_inference_steps: 20, seed: 7 },
});
await writeFile(process.argv[2] ?? "video.mp4", Buffer.from(await video.arrayBuffer()));

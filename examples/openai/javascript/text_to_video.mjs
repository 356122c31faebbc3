// OpenAI's own client (`npm install openai`): create, ask until it is completed, download the content.
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const { BASE, KEY } = process.env;
const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY });
let video = await client.videos.create({
  model: "sora-2", prompt: "a blue square falling on a pink background", size: "256x256", seconds: "1",
  num_inference_steps: 20, seed: 7, // fields of this server's own
});
while (video.status === "queued" || video.status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  video = await client.videos.retrieve(video.id);
}
if (video.status !== "completed") throw new Error(JSON.stringify(video.error));
const content = await client.videos.downloadContent(video.id);
await writeFile(process.argv[2] ?? "video.mp4", Buffer.from(await content.arrayBuffer()));

// The novita-sdk of npm (`npm install novita-sdk`): submit, ask for the progress, save the link's file.
import { writeFile } from "node:fs/promises";
import { NovitaSDK } from "novita-sdk";

const { BASE, KEY } = process.env;
const novita = new NovitaSDK(KEY);
novita.setBaseUrl(BASE);
const { task_id } = await novita.txt2Video({
  model_name: "wan2.2",
  height: 256, width: 256, steps: 20, seed: 7, guidance_scale: 7.5,
  prompts: [
    { frames: 17, prompt: "a red circle moving right on a black background" },
    { frames: 16, prompt: "a blue circle moving right on a black background" },
  ],
});
let result;
do {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  result = await novita.progress({ task_id });
} while (["TASK_STATUS_QUEUED", "TASK_STATUS_PROCESSING"].includes(result.task.status));
if (result.task.status !== "TASK_STATUS_SUCCEED") throw new Error(result.task.reason);
const file = await fetch(result.videos[0].video_url);
await writeFile(process.argv[2] ?? "video.mp4", Buffer.from(await file.arrayBuffer()));

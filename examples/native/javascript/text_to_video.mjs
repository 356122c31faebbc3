// Plain Node, nothing to install: submit, follow the job's events, save its first file.
import { writeFile } from "node:fs/promises";

const { BASE, KEY } = process.env;

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" };
  const answer = await fetch(`${BASE}/polyreel/v1/${path}`, { headers, ...options });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

const submitted = await call("jobs", {
  method: "POST",
  body: JSON.stringify({
    model: "wan2.2", prompt: "a yellow triangle growing on a navy background",
    num_frames: 17, height: 256, width: 384, num_inference_steps: 20, seed: 7,
  }),
});
let job = await submitted.json();

// An event is a line "event: NAME" and a line "data: JSON"; the stream ends with the job.
const events = await call(`jobs/${job.id}/events`);
const reader = events.body.pipeThrough(new TextDecoderStream()).getReader();
let rest = "", event = "";
for (let part = await reader.read(); !part.done; part = await reader.read()) {
  const lines = (rest + part.value).split(/\r?\n/);
  rest = lines.pop();
  for (const line of lines) {
    const [name, value] = line.split(/: (.*)/s);
    if (name === "event") event = value;
    else if (name === "data" && event === "end") job = JSON.parse(value);
    else if (name === "data") console.error(event, value.slice(0, 100));
  }
}
if (job.status !== "succeeded") throw new Error(JSON.stringify(job.error));
const file = await fetch(job.outputs[0].url);
await writeFile(process.argv[2] ?? "video.mp4", Buffer.from(await file.arrayBuffer()));

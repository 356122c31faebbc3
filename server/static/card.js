// A job as a card: what it is about, how it is getting on, what it made.

import { at, copy, h, lasting, sized } from "./dom.js";

/** What a status is called, and what its worker does. @type {Record<string, string>} */
const STATUSES = {
  queued: "Waiting",
  loading: "Loading the model",
  running: "Generating",
  encoding: "Making the file",
  uploading: "Storing the file",
  succeeded: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
};

/** @typedef {{again: (job: any) => void, cancel: (job: any) => Promise<void>, remove: (job: any) => Promise<void>}} Deeds */

/** @param {string} status */
export function isOver(status) {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

export class Card {
  /** @param {any} job @param {Deeds} deeds */
  constructor(job, deeds) {
    this.deeds = deeds;
    this.frame = h("div", { class: "frame" });
    this.bar = h("progress", { max: 100, "aria-label": "Progress" });
    this.where = h("p", { class: "where" });
    this.live = h("div", { class: "live" }, this.bar, this.where);
    this.prompt = h("p", { class: "prompt" });
    this.facts = h("p", { class: "facts" });
    this.error = h("p", { class: "error" });
    this.actions = h("div", { class: "actions" });
    this.more = h("div", {});
    this.element = h("li", { class: "card job", "data-id": job.id, tabindex: -1 },
      this.frame, h("div", { class: "about" }, this.prompt, this.facts, this.live, this.error, this.actions, this.more));
    this.show(job);
  }

  /** Show a job whole. @param {any} job */
  show(job) {
    const before = this.job?.status;
    this.job = job;
    const { request } = job;
    const text = request.prompts.map((span) => span.prompt).join(" → ") || "(a picture without a prompt)";
    this.prompt.textContent = text;
    this.prompt.title = text;
    const size = request.upscale || request;
    this.facts.textContent = [job.model, `${size.width} × ${size.height}`, `${request.num_frames} frames`, `seed ${request.seed}`].join(" · ");
    this.frame.style.aspectRatio = String(Math.min(2.4, Math.max(0.75, size.width / size.height)));
    this.element.dataset.status = job.status;
    this.error.textContent = job.error?.message ?? (job.status === "cancelled" ? "Cancelled." : "");
    this.tell(job);
    if (before === job.status) return;
    if (isOver(job.status)) this.#end();
    else this.actions.replaceChildren(h("button", { type: "button", class: "small", onclick: () => this.deeds.cancel(this.job) }, "Cancel"));
  }

  /** Show how a job is getting on. @param {any} progress of an event, or a whole job */
  tell(progress) {
    this.live.hidden = isOver(progress.status);
    if (this.live.hidden) return;
    this.element.dataset.status = progress.status;
    const parts = [STATUSES[progress.status]];
    if (progress.status === "running" && progress.total_steps) parts.push(`step ${progress.step} of ${progress.total_steps}`);
    if (progress.position !== null) parts.push(progress.position ? `${progress.position} before it` : "next in line");
    if (progress.eta_s !== null) parts.push(`about ${lasting(progress.eta_s)} left`);
    this.where.textContent = parts.join(" · ");
    if (progress.status === "queued") this.bar.removeAttribute("value");
    else this.bar.value = progress.progress;
    if (progress.preview) this.#preview(progress.preview);
  }

  /** @param {string} picture a data URL */
  #preview(picture) {
    const shown = this.frame.querySelector("img");
    if (shown) shown.src = picture;
    else this.frame.replaceChildren(h("img", { class: "preview", src: picture, alt: "What it looks like so far" }));
  }

  #end() {
    const { job } = this;
    this.frame.replaceChildren(...shown(job));
    const played = job.outputs[0];
    this.actions.replaceChildren(
      h("button", { type: "button", class: "small", onclick: () => this.deeds.again(job) }, "Again with this seed"),
      ...job.outputs.map((output) => h("a", { class: "small", href: here(output.url), download: `polyreel-${job.number}.${extension(output)}`,
        "aria-label": `Download ${output.format}` }, `↓ ${output.format}`)),
      played && h("button", { type: "button", class: "small", onclick: (event) => copied(event.currentTarget, played.url) }, "Copy link"),
      h("button", { type: "button", class: "small danger", onclick: () => this.deeds.remove(job) }, "Delete"),
    );
    for (const empty of [...this.actions.childNodes]) if (empty.nodeType === Node.TEXT_NODE) empty.remove();
    this.more.replaceChildren(part("Settings", settings(job)));
    if (job.status === "succeeded") this.more.append(part("Receipt", receipt(job)));
  }
}

/** @param {any} button @param {string} text */
async function copied(button, text) {
  await copy(text);
  button.textContent = "Copied";
}

/**
 * A link to a file of this server, by the host that the page came from: behind a proxy it may have several names.
 * @param {string} url
 */
function here(url) {
  const { pathname, search } = new URL(url);
  const start = pathname.indexOf("/files/");
  return start < 0 ? url : new URL(pathname.slice(start + 1) + search, document.baseURI).href;
}

/** @param {any} output */
function extension(output) {
  return new URL(output.url).pathname.split(".").pop();
}

/** @param {any} job @returns {Node[]} what there is to see of it */
function shown(job) {
  const outputs = job.outputs;
  const prompt = job.request.prompts[0]?.prompt || "a picture";
  const video = outputs.find((output) => output.media_type.startsWith("video/"));
  if (video) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const player = h("video", { src: here(video.url), controls: true, loop: true, muted: true, playsinline: true,
      preload: "metadata", "aria-label": `Video: ${prompt}` });
    player.muted = true; // the attribute counts for elements of a parser alone
    if (!still) playWhileSeen(player);
    return [player];
  }
  const picture = outputs.find((output) => output.media_type.startsWith("image/"));
  if (picture) return [h("img", { src: here(picture.url), alt: `Video: ${prompt}` })];
  return [h("p", { class: "nothing" }, job.status === "succeeded" ? `${outputs[0]?.format ?? "No"} file, to download` : STATUSES[job.status])];
}

const seen = "IntersectionObserver" in window ? new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const player = /** @type {HTMLVideoElement} */ (target);
    if (isIntersecting) player.play().catch(() => {}); // a browser may not let it; its controls do
    else player.pause();
  }
}, { threshold: 0.4 }) : null;

/** @param {HTMLVideoElement} player */
function playWhileSeen(player) {
  seen?.observe(player);
}

/** @param {string} title @param {[string, unknown][]} rows */
function part(title, rows) {
  const cells = rows.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))));
  return h("details", { class: "more" }, h("summary", {}, title), h("dl", {}, ...cells));
}

/** @param {any} job @returns {[string, unknown][]} */
function settings(job) {
  const r = job.request;
  return [
    ["Model", job.model],
    ["Made through", job.dialect],
    ...(r.prompts.length > 1 ? r.prompts.map((span, i) => [`Prompt ${i + 1}`, `${span.prompt} (${span.num_frames} frames)`]) : []),
    ["Negative prompt", r.negative_prompt],
    ["Size", `${r.width} × ${r.height}`],
    ["Frames", `${r.num_frames} at ${r.fps} a second`],
    ["Steps", r.num_inference_steps],
    ["Guidance", r.guidance_scale],
    ["Flow shift", r.flow_shift],
    ["Seed", r.seed],
    ["CLIP skip", r.clip_skip],
    ["Pictures", r.images.map((image) => `frame ${image.frame_index}`).join(", ")],
    ["LoRAs", r.loras.map((lora) => `${lora.name} × ${lora.strength}`).join(", ")],
    ["Embeddings", r.embeddings.join(", ")],
    ["Loop", r.closed_loop ? "yes" : ""],
    ["Second pass", r.upscale && `${r.upscale.width} × ${r.upscale.height}, strength ${r.upscale.strength}`],
    ["Improved sampling", r.improved_sampling_seed === null ? "" : `seed ${r.improved_sampling_seed}`],
    ["Files", r.outputs.map((output) => `${output.format}, ${output.quality}`).join("; ")],
  ];
}

/** @param {any} job @returns {[string, unknown][]} */
function receipt(job) {
  const flat = (/** @type {any} */ value, /** @type {string} */ name) => {
    if (value && typeof value === "object" && !Array.isArray(value)) {
      return Object.entries(value).flatMap(([key, one]) => flat(one, name ? `${name} ${key}` : key));
    }
    return [[name.replaceAll("_", " "), Array.isArray(value) ? value.map((one) => typeof one === "object" ? JSON.stringify(one) : one).join(", ") : value]];
  };
  const kept = job.expires_at && `${lasting(job.expires_at - Date.now() / 1000)} from now`;
  return [
    ["Job", job.id],
    ["Attempts", job.attempts],
    ...job.outputs.flatMap((output) => [[`${output.format}`, sized(output.bytes)], [`${output.format} SHA-256`, output.sha256]]),
    ...Object.entries(job.timings).map(([stage, seconds]) => [`${stage}, seconds`, Number(seconds).toFixed(2)]),
    ...flat(job.receipt, ""),
    ["Deleted", kept],
  ];
}

/** Ask before something is gone. @param {string} title @param {string} text @returns {Promise<boolean>} */
export function confirmed(title, text) {
  at("confirm-title").textContent = title;
  at("confirm-text").textContent = text;
  const dialog = at("confirm");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

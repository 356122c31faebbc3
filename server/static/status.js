// The queue, the workers and their GPUs, what the key has used; and, for administrators, the models in memory.

import { Problem, call } from "./api.js";
import { announce, at, counted, h, sized } from "./dom.js";

/** @param {any} usage the answer of GET usage */
export function showUsage(usage) {
  const { limits } = usage;
  const of = (/** @type {number} */ used, /** @type {number | null} */ most, /** @type {string} */ unit) =>
    most === null ? `${used} ${unit}` : `${used} of ${most} ${unit}`;
  const parts = [
    `${counted(usage.submits, "submit")} today`,
    of(Math.round(usage.gpu_seconds), limits.gpu_seconds_per_day, "GPU-seconds"),
    of(usage.queued, limits.max_queued, "waiting"),
    of(usage.running, limits.max_running, "running"),
  ];
  if (limits.requests_per_minute !== null) parts.push(`${limits.requests_per_minute} submits a minute`);
  at("usage").replaceChildren(h("strong", {}, usage.owner), h("span", { class: "wide" }, ` · ${parts.join(" · ")}`));
  at("usage").title = parts.join(" · ");
  at("usage").hidden = false;
}

/** @param {any} status the answer of GET status */
export function showStatus(status) {
  const { queue } = status;
  const waiting = queue.unfinished - queue.running;
  const lines = queue.models.filter((line) => line.waiting)
    .map((line) => h("li", {}, h("span", {}, line.model), h("strong", {}, line.waiting)));
  const card = h("article", { class: "card tile" },
    h("h3", {}, "Queue"),
    h("p", { class: "big" }, h("strong", {}, waiting), " waiting"),
    h("p", { class: "muted" }, `${queue.running} running · room for ${queue.most - queue.unfinished} more`),
    lines.length > 0 && h("ul", { class: "lines" }, ...lines));
  const workers = status.workers.map(worker);
  if (!workers.length) workers.push(h("article", { class: "card tile warn" }, h("h3", {}, "No worker"), h("p", {}, "Jobs wait until one is started.")));
  at("status").replaceChildren(card, ...workers);
}

/** @param {any} about */
function worker(about) {
  const gpu = about.gpu;
  const tile = h("article", { class: "card tile" },
    h("h3", { title: about.name }, gpu?.name || (about.device === "cpu" ? "CPU" : about.device), h("small", {}, about.name)));
  if (gpu) {
    const label = `${sized(gpu.memory_used_bytes)} of ${sized(gpu.memory_total_bytes)} memory`;
    const meter = h("meter", { min: 0, max: gpu.memory_total_bytes, high: gpu.memory_total_bytes * 0.95, "aria-label": label });
    meter.value = gpu.memory_used_bytes;
    const load = [gpu.utilization_percent !== null && `${gpu.utilization_percent} % busy`,
      gpu.temperature_c !== null && `${gpu.temperature_c} °C`, gpu.power_w !== null && `${Math.round(gpu.power_w)} W`];
    tile.append(meter, h("p", { class: "muted" }, label), h("p", { class: "muted" }, load.filter(Boolean).join(" · ")));
  } else if (about.memory_bytes) {
    tile.append(h("p", { class: "muted" }, `${sized(about.memory_bytes)} of memory`));
  }
  const pace = about.jobs_per_minute === undefined ? "" : `${about.jobs_per_minute.toFixed(1)} jobs/min · `;
  tile.append(h("p", {}, pace, about.busy ? counted(about.busy, "job") : "idle", about.loading && !about.loaded.includes(about.loading) ? ` · loading ${about.loading}` : ""));
  const resident = about.loaded.map((model) => h("li", { class: "tag" }, model, about.pinned.includes(model) ? " (pinned)" : ""));
  tile.append(resident.length ? h("ul", { class: "tags", "aria-label": "Models in memory" }, ...resident) : h("p", { class: "muted" }, "No model in memory"));
  return tile;
}

/**
 * @param {any[]} models the answer of GET models
 * @param {boolean} isAdmin
 * @param {() => void} changed told after a command
 */
export function showModelList(models, isAdmin, changed) {
  at("models-part").hidden = !isAdmin;
  if (!isAdmin || at("model-list").contains(document.activeElement)) return; // a button in use stays where it is
  at("model-list").replaceChildren(...models.map((model) => {
    const deed = (/** @type {string} */ action) =>
      h("button", { type: "button", class: "small", "aria-label": `${action} ${model.name}`, onclick: () => command(model.name, action, changed) }, action);
    return h("li", {}, h("span", {}, model.name, h("small", {}, `${model.state}${model.pinned ? ", pinned" : ""}`)),
      h("span", { class: "actions" }, deed(model.state === "loaded" ? "unload" : "load"), deed(model.pinned ? "unpin" : "pin")));
  }));
}

/** @param {string} model @param {string} action @param {() => void} changed */
async function command(model, action, changed) {
  /** @type {HTMLElement | null} */ (document.activeElement)?.blur();
  try {
    await call("POST", `models/${encodeURIComponent(model)}/${action}`);
    announce(`Workers were told to ${action} ${model}.`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    announce(error.message);
  }
  changed();
}

/** @param {import("./api.js").Problem | null} problem of the newest answer */
export function showConnection(problem) {
  const banner = at("banner");
  const isAway = problem?.isPassing ?? false;
  if (isAway) banner.textContent = `${problem?.message} Trying again; jobs go on meanwhile.`;
  banner.hidden = !isAway;
}


// The form: a model's real limits and defaults, and what it holds as the body of a submit.

import { at, h, lasting } from "./dom.js";
import { extraFields, fillExtras, offerExtras, setUpExtras } from "./extras.js";
import { DropZone } from "./pictures.js";
import { fillPrompts, frames, offerTravel, promptFields, setUpPrompts } from "./prompts.js";

/** Fields that are sent as they stand, when they are not empty; the server names what is wrong with one. */
const PLAIN = ["width", "height", "num_inference_steps", "negative_prompt", "seed", "guidance_scale", "fps"];
const OPTIONAL = ["flow_shift", "clip_skip", "keep_s", "webhook"];

/** Shapes to choose from, by their aspect. */
const SHAPES = [["Square", 1], ["Wide 16:9", 16 / 9], ["Tall 9:16", 9 / 16]];

/** Sides that every family takes without work on the side, pixels. */
const MULTIPLE = 32;

/** Smallest side, pixels. */
const LEAST_SIDE = 64;

/** @type {any[]} */
let models = [];

/** @type {DropZone} */
let firstFrame;
/** @type {DropZone} */
let lastFrame;

let changed = () => {};

/**
 * @param {any[]} formats of the discovery document
 * @param {() => void} listener told of each change
 */
export function setUpCompose(formats, listener) {
  changed = () => {
    tellSize();
    listener();
  };
  firstFrame = new DropZone(at("first-frame"), "image", "First frame", changed);
  lastFrame = new DropZone(at("last-frame"), "last_image", "Last frame", changed);
  setUpPrompts(changed);
  setUpExtras(formats, changed);
  at("model").addEventListener("change", () => choose(at("model").value, true));
  at("compose").addEventListener("input", (event) => {
    mark(event.target, "");
    changed();
  });
}

/** @param {any[]} listed the answer of GET models */
export function showModels(listed) {
  const before = at("model").value;
  const isSame = models.map((model) => model.name).join() === listed.map((model) => model.name).join();
  models = listed;
  if (isSame && before) {
    for (const option of at("model").options) option.textContent = called(modelNamed(option.value));
    tellModel();
    return;
  }
  at("model").replaceChildren(...listed.map((model) => h("option", { value: model.name, disabled: !model.allowed }, called(model))));
  const first = listed.find((model) => model.name === before) || listed.find((model) => model.allowed && model.state !== "unavailable") || listed[0];
  if (first) choose(first.name, true);
}

/** @returns {Record<string, unknown>} the body of a submit */
export function body() {
  /** @type {Record<string, unknown>} */
  const said = { model: at("model").value, ...promptFields() };
  for (const name of [...PLAIN, ...OPTIONAL]) {
    const field = at(name);
    if (field.value.trim() && !field.closest(".field").hidden) said[name] = field.value;
  }
  if (!at("pictures").hidden) {
    if (firstFrame.value) said.image = firstFrame.value;
    if (lastFrame.value && !at("last-frame").hidden) said.last_image = lastFrame.value;
  }
  return { ...said, ...extraFields() };
}

/** @returns {Record<string, string>} what of a submit stands in headers */
export function terms() {
  return {
    ...(at("bulk").checked ? { "X-Polyreel-Priority": "bulk" } : {}),
    ...(at("exact").checked ? { "X-Polyreel-Exact": "true" } : {}),
  };
}

/** Take over what an earlier video ran with, its seed too. @param {any} job */
export function fill(job) {
  const request = job.request;
  at("compose").querySelector("details").open = true;
  choose(job.model, false);
  fillPrompts(request.prompts);
  for (const name of [...PLAIN, "flow_shift", "clip_skip"]) at(name).value = request[name] ?? "";
  fillExtras(request);
  firstFrame.clear();
  lastFrame.clear();
  showProblem(null);
  if (request.images.length) at("compose-error").textContent = "This video began from a picture, which the server does not give back: choose it again.";
  changed();
  at("submit").focus();
  at("compose").scrollIntoView({ block: "start", behavior: "smooth" });
}

/** Show why a submit was refused, at its field where it names one. @param {{message: string, field: string} | null} problem */
export function showProblem(problem) {
  for (const field of at("compose").querySelectorAll("[aria-invalid]")) mark(field, "");
  at("compose-error").textContent = problem ? problem.message : "";
  if (!problem) return;
  const field = fieldOf(problem.field);
  if (field) {
    mark(field, problem.message);
    for (let part = field.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  }
  (field || at("compose-error")).focus();
}

/** @param {string} name dotted, as the server says it @returns {any} */
function fieldOf(name) {
  if (!name) return null;
  const own = document.getElementById(name.replace("upscale.", "upscale_").split(".")[0]);
  if (own?.matches("input, textarea, select") && !own.closest("[hidden]")) return own;
  return name.startsWith("prompts") ? at("spans").querySelector("textarea") : null;
}

/** @param {any} field @param {string} message "" for none */
function mark(field, message) {
  if (message) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", "compose-error");
  } else {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

/** @param {string} name */
function modelNamed(name) {
  return models.find((model) => model.name === name) || models[0];
}

/** @param {any} model */
function called(model) {
  if (!model.allowed) return `${model.name} (not for this key)`;
  return model.state === "unavailable" ? `${model.name} (not available)` : model.name;
}

/** @param {string} name @param {boolean} takesDefaults */
function choose(name, takesDefaults) {
  const model = modelNamed(name);
  at("model").value = model.name;
  const { limits, defaults } = model;
  for (const side of ["width", "height"]) limit(side, LEAST_SIDE, limits.side);
  limit("num_frames", 1, limits.num_frames);
  limit("num_inference_steps", 1, limits.num_inference_steps);
  if (takesDefaults) {
    for (const field of ["width", "height", "num_frames", "num_inference_steps", "guidance_scale", "fps"]) at(field).value = defaults[field];
  }
  const companion = model.runs_pictures && modelNamed(model.runs_pictures);
  at("pictures").hidden = !(model.tasks.includes("i2v") || companion);
  at("last-frame").hidden = !(companion || model).tasks.includes("first_last");
  offerTravel(model.tasks.includes("prompt_travel"));
  offerExtras(model);
  at("presets").replaceChildren(...SHAPES.map(([title, aspect]) => preset(String(title), Number(aspect), defaults)));
  tellModel();
  changed();
}

/** @param {string} id @param {number} least @param {number} most */
function limit(id, least, most) {
  at(id).min = least;
  at(id).max = most;
}

/** A button for a shape with about the pixels of the model's default. @param {string} title @param {number} aspect @param {any} defaults */
function preset(title, aspect, defaults) {
  const pixels = defaults.width * defaults.height;
  const near = (/** @type {number} */ side) => Math.max(LEAST_SIDE, Math.round(side / MULTIPLE) * MULTIPLE);
  const [width, height] = [near(Math.sqrt(pixels * aspect)), near(Math.sqrt(pixels / aspect))];
  return h("button", { type: "button", class: "chip", title: `${width} × ${height}`, onclick: () => {
    at("width").value = width;
    at("height").value = height;
    changed();
  } }, title);
}

function tellModel() {
  const model = modelNamed(at("model").value);
  const states = { loaded: "In memory, starts at once.", ready: "Is loaded when it is needed.", unavailable: model.reason };
  at("model-about").textContent = `${states[model.state]}${model.licence ? ` Licence: ${model.licence}.` : ""}`;
}

function tellSize() {
  const { limits } = modelNamed(at("model").value);
  const count = frames();
  const fps = Number(at("fps").value);
  const pixels = count * Number(at("width").value) * Number(at("height").value);
  const share = pixels / limits.pixels;
  const parts = [`Sides to ${limits.side} px, ${limits.num_frames} frames, ${limits.num_inference_steps} steps.`];
  if (count && fps) parts.unshift(`${count < fps * 90 ? `${(count / fps).toFixed(1)} s` : lasting(count / fps)} of video.`);
  if (share > 1) parts.push(`Too many pixels in all: ${share.toFixed(1)} times what this model takes.`);
  at("size-about").textContent = parts.join(" ");
  at("size-about").classList.toggle("warn", share > 1);
}

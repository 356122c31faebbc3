// What most videos do without: files, LoRAs, embeddings, pictures for other frames, a second pass.

import { at, h } from "./dom.js";
import { DropZone } from "./pictures.js";

/** @typedef {{row: any, zone: DropZone, index: any, strength: any}} Keyframe */

/** Pictures for frames in between. @type {Keyframe[]} */
let keyframes = [];

/** How many rows were made so far: each needs ids of its own. */
let made = 0;

let changed = () => {};

/** @param {any[]} formats of the discovery document @param {() => void} listener */
export function setUpExtras(formats, listener) {
  changed = listener;
  at("formats").replaceChildren(...formats.map((format) => check("format", format.name, format.name, format.name === "mp4")));
  at("add-keyframe").addEventListener("click", () => addKeyframe());
}

/** Show what a model can do. @param {any} model */
export function offerExtras(model) {
  at("loras").replaceChildren(...model.loras.map(loraRow));
  at("loras-part").hidden = !model.loras.length;
  at("embeddings").replaceChildren(
    ...model.embeddings.map((one) => check("embedding", one.name, `${one.name}, called ${one.token} in prompts`, false)),
  );
  at("embeddings-part").hidden = !model.embeddings.length;
  at("keyframes-part").hidden = !model.tasks.includes("keyframes");
  for (const one of [...keyframes]) if (at("keyframes-part").hidden) removeKeyframe(one);
  for (const part of document.querySelectorAll("[data-task]")) {
    /** @type {HTMLElement} */ (part).hidden = !model.tasks.includes(/** @type {HTMLElement} */ (part).dataset.task);
  }
  for (const part of document.querySelectorAll("[data-family]")) {
    /** @type {HTMLElement} */ (part).hidden = /** @type {HTMLElement} */ (part).dataset.family !== model.family;
  }
}

/** @returns {Record<string, unknown>} the fields of a submit */
export function extraFields() {
  const fields = {
    loras: chosen("lora").map((name) => ({ name, strength: at(`strength-${name}`).value })),
    embeddings: chosen("embedding"),
    keyframes: keyframes
      .filter((one) => one.zone.value)
      .map((one) => ({ frame_index: one.index.value, image: one.zone.value, strength: one.strength.value })),
    closed_loop: isShown("closed_loop") && at("closed_loop").checked,
    improved_sampling: isShown("improved_sampling") && at("improved_sampling").checked,
  };
  const quality = at("quality").value;
  const formats = chosen("format");
  const said = { ...Object.fromEntries(Object.entries(fields).filter(([, value]) => (Array.isArray(value) ? value.length : value))) };
  if (formats.length && !(formats.join() === "mp4" && quality === "good")) {
    said.outputs = formats.map((format) => ({ format, quality }));
  }
  const upscale = Object.fromEntries(
    ["width", "height", "strength"].map((name) => [name, at(`upscale_${name}`).value]).filter(([, value]) => value),
  );
  if (isShown("upscale_width") && (upscale.width || upscale.height)) said.upscale = upscale;
  return said;
}

/** @param {any} request of an earlier video */
export function fillExtras(request) {
  for (const input of at("formats").querySelectorAll("input")) {
    input.checked = request.outputs.some((output) => output.format === input.value);
  }
  at("quality").value = request.outputs[0].quality;
  for (const input of at("loras").querySelectorAll("input[type=checkbox]")) {
    const used = request.loras.find((lora) => lora.name === input.value);
    input.checked = Boolean(used);
    if (used) at(`strength-${input.value}`).value = used.strength;
  }
  for (const input of at("embeddings").querySelectorAll("input")) input.checked = request.embeddings.includes(input.value);
  at("closed_loop").checked = request.closed_loop;
  at("improved_sampling").checked = request.improved_sampling_seed !== null;
  for (const name of ["width", "height", "strength"]) at(`upscale_${name}`).value = request.upscale?.[name] ?? "";
  for (const one of [...keyframes]) removeKeyframe(one);
}

/** @param {string} id @returns {boolean} */
function isShown(id) {
  return !at(id).closest("[data-task]").hidden;
}

/** @param {string} name @returns {string[]} the values that are ticked */
function chosen(name) {
  const ticked = document.querySelectorAll(`#compose input[name=${name}]:checked`);
  return [...ticked].map((input) => /** @type {HTMLInputElement} */ (input).value);
}

/** @param {string} name @param {string} value @param {string} label @param {boolean} isChecked */
function check(name, value, label, isChecked) {
  return h("label", { class: "check" }, h("input", { type: "checkbox", name, value, checked: isChecked }), ` ${label}`);
}

/** @param {any} lora */
function loraRow(lora) {
  const strength = { id: `strength-${lora.name}`, type: "number", min: 0, max: 2, step: "any", value: 1 };
  return h("div", { class: "lora" }, check("lora", lora.name, lora.name, false),
    h("label", {}, "Strength ", h("input", { ...strength, "aria-label": `Strength of ${lora.name}` })));
}

function addKeyframe() {
  made += 1;
  const zone = h("div", { class: "drop" });
  const one = {
    row: h("li", {}),
    zone: new DropZone(zone, `keyframe-${made}`, "Picture", () => changed()),
    index: h("input", { id: `keyframe-${made}-frame`, type: "number", min: -1, step: 1, value: 8 }),
    strength: h("input", { id: `keyframe-${made}-strength`, type: "number", min: 0, max: 1, step: "any", value: 1 }),
  };
  one.row.append(
    zone,
    h("div", { class: "field" }, h("label", { for: one.index.id }, "Frame"), one.index),
    h("div", { class: "field" }, h("label", { for: one.strength.id }, "Strength"), one.strength),
    h("button", { type: "button", class: "small", "aria-label": "Remove this picture", onclick: () => removeKeyframe(one) }, "✕"),
  );
  keyframes.push(one);
  at("keyframes").append(one.row);
  one.zone.input.focus();
}

/** @param {Keyframe} one */
function removeKeyframe(one) {
  one.row.remove();
  keyframes = keyframes.filter((other) => other !== one);
  changed();
}

// The prompt, or several of them, each with the frames that it governs.

import { at, h } from "./dom.js";

/** Most prompts of one video. */
const MOST = 16;

/** Told of each change. */
let changed = () => {};

/** @param {() => void} listener */
export function setUpPrompts(listener) {
  changed = listener;
  at("travels").addEventListener("change", () => {
    if (at("travels").checked && !at("spans").children.length) {
      const frames = Number(at("num_frames").value) || 16;
      addSpan(at("prompt").value, Math.ceil(frames / 2));
      addSpan("", Math.floor(frames / 2) || 1);
    }
    show();
    changed();
  });
  at("add-span").addEventListener("click", () => {
    addSpan("", 8);
    at("spans").lastElementChild.querySelector("textarea").focus();
    changed();
  });
}

/** Offer several prompts, or not. @param {boolean} isOffered */
export function offerTravel(isOffered) {
  at("travel-switch").hidden = !isOffered;
  if (!isOffered) at("travels").checked = false;
  show();
}

/** @returns {Record<string, unknown>} the fields of a submit that say what is to be seen, and for how many frames */
export function promptFields() {
  if (!at("travels").checked) return { prompt: at("prompt").value, num_frames: at("num_frames").value };
  const prompts = [...at("spans").children].map((row) => ({
    prompt: row.querySelector("textarea").value,
    num_frames: row.querySelector("input").value,
  }));
  return { prompts };
}

/** @returns {number} frames of the video */
export function frames() {
  if (!at("travels").checked) return Number(at("num_frames").value);
  return [...at("spans").querySelectorAll("input")].reduce((sum, input) => sum + Number(input.value), 0);
}

/** @param {{prompt: string, num_frames: number}[]} prompts of an earlier video */
export function fillPrompts(prompts) {
  at("travels").checked = prompts.length > 1;
  at("spans").replaceChildren();
  if (prompts.length > 1) for (const span of prompts) addSpan(span.prompt, span.num_frames);
  at("prompt").value = prompts.length > 1 ? "" : prompts[0].prompt;
  at("num_frames").value = prompts.reduce((sum, span) => sum + span.num_frames, 0);
  show();
}

function show() {
  const travels = at("travels").checked;
  at("travel").hidden = !travels;
  at("one-prompt").hidden = travels;
  at("num_frames").disabled = travels;
  if (travels) at("num_frames").value = frames();
  at("add-span").disabled = at("spans").children.length >= MOST;
}

/** @param {string} prompt @param {number} numFrames */
function addSpan(prompt, numFrames) {
  const text = h("textarea", { rows: 2, "aria-label": "Prompt", name: "prompts" });
  const count = h("input", { type: "number", min: 1, step: 1, "aria-label": "Frames of this prompt", value: numFrames });
  text.value = prompt;
  const row = h("li", {}, text, count);
  row.append(
    h("button", { type: "button", class: "small", "aria-label": "Remove this prompt", onclick: () => {
      row.remove();
      if (at("spans").children.length < 2) at("travels").checked = false;
      show();
      changed();
      (at("travels").checked ? at("add-span") : at("prompt")).focus();
    } }, "✕"),
  );
  count.addEventListener("input", show);
  at("spans").append(row);
  show();
}

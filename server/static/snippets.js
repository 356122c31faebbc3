// The request that is composed, as a call of each dialect to copy.

import { Problem, call } from "./api.js";
import { at, copy, h } from "./dom.js";
import { key } from "./key.js";

/** How long the form is left alone before the calls are made anew, milliseconds. */
const REST_MS = 400;

/** @type {() => Record<string, any>} */
let body = () => ({});

/** @type {any[]} */
let snippets = [];

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** Which request was asked for last: an older answer is late. */
let asked = 0;

/** @param {() => Record<string, any>} composed returns the body of a submit */
export function setUpSnippets(composed) {
  body = composed;
  at("code").addEventListener("toggle", refreshSnippets);
  at("dialect").addEventListener("change", show);
  at("show-key").addEventListener("change", show);
  for (const choice of document.querySelectorAll("input[name=language]")) choice.addEventListener("change", show);
  at("copy-code").addEventListener("click", async () => {
    await copy(at("code-text").textContent);
    at("copy-code").textContent = "Copied";
  });
}

/** The form has changed. */
export function refreshSnippets() {
  clearTimeout(timer);
  if (at("code").open) timer = setTimeout(ask, REST_MS);
}

async function ask() {
  asked += 1;
  const mine = asked;
  const said = body();
  const prompts = said.prompts || [{ prompt: said.prompt }];
  if (!prompts.every((span) => span.prompt.trim())) {
    tell("Write a prompt, and it stands here as code.");
    return;
  }
  try {
    const answer = await call("POST", "snippets", { body: withoutPictures(said) });
    if (mine !== asked) return;
    snippets = answer.snippets;
    fillDialects();
    show();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (mine !== asked) return;
    tell(error.message);
  }
}

/** Say why there is no code. @param {string} why */
function tell(why) {
  snippets = [];
  at("code-notes").replaceChildren(h("li", {}, why));
  at("code-text").textContent = "";
}

/** A picture stands in a call as a file, so there is no need to send it. @param {Record<string, any>} said */
function withoutPictures(said) {
  const short = (/** @type {string} */ picture) => (picture.startsWith("data:") ? "picture" : picture);
  const copied = { ...said };
  for (const name of ["image", "last_image"]) if (copied[name]) copied[name] = short(copied[name]);
  if (copied.keyframes) copied.keyframes = copied.keyframes.map((one) => ({ ...one, image: short(one.image) }));
  return copied;
}

function fillDialects() {
  const select = at("dialect");
  const chosen = select.value;
  select.replaceChildren(...snippets.map((one) => h("option", { value: one.dialect }, one.reason ? `${one.title} (cannot say it)` : one.title)));
  if (snippets.some((one) => one.dialect === chosen)) select.value = chosen;
}

function show() {
  const one = snippets.find((snippet) => snippet.dialect === at("dialect").value);
  if (!one) return;
  const chosen = /** @type {HTMLInputElement} */ (document.querySelector("input[name=language]:checked")).value;
  const notes = one.reason ? [one.reason] : one.differences.map((text) => `Differs: ${text}`);
  at("code-notes").replaceChildren(...notes.map((note) => h("li", {}, note)));
  at("code-text").textContent = withKey(one[chosen], chosen, at("show-key").checked);
  at("copy-code").disabled = Boolean(one.reason);
  at("copy-code").textContent = "Copy";
}

/**
 * @param {string} text
 * @param {string} language
 * @param {boolean} isShown only then the key itself stands in the page
 */
function withKey(text, language, isShown) {
  if (!text || !isShown) return text;
  if (language === "curl") return `KEY=${quoted(key())}\n${text}`;
  return text.replace('KEY = os.environ["KEY"]', () => `KEY = ${JSON.stringify(key())}`);
}

/** @param {string} text @returns {string} for a POSIX shell */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

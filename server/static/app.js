// The page: signs in, puts the parts together, and looks around now and then.

import { Problem, call, listen } from "./api.js";
import { body, fill, setUpCompose, showModels, showProblem, terms } from "./compose.js";
import { at } from "./dom.js";
import { add, clear, load, refresh, setUpGallery } from "./gallery.js";
import { forget, keep, key } from "./key.js";
import { refreshSnippets, setUpSnippets } from "./snippets.js";
import { showConnection, showModelList, showStatus, showUsage } from "./status.js";

/** How often the page looks around while it is seen, milliseconds. */
const LOOK_MS = 4000;

/** Names the submit that is being made, so that a second try after a lost answer is the same job. */
let attempt = { body: "", key: "" };

let isAdmin = false;

async function start() {
  listen((problem) => {
    showConnection(problem);
    if (problem?.status === 401 && key()) signOut(problem.message);
  });
  at("key-form").addEventListener("submit", signIn);
  at("sign-out").addEventListener("click", () => signOut(""));
  at("compose").addEventListener("submit", submit);
  setUpGallery(fill);
  setUpSnippets(body);
  // What formats there are needs no key, and no Redis either.
  const about = await insist(() => call("GET", ""));
  setUpCompose(about.formats, refreshSnippets);
  if (key()) await insist(enter);
  else ask("");
  setInterval(() => {
    if (!document.hidden && !at("studio").hidden) look();
  }, LOOK_MS);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !at("studio").hidden) look();
  });
}

/** Try until it is done or refused for good. @param {() => Promise<any>} deed */
async function insist(deed) {
  while (true) {
    try {
      return await deed();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (!error.isPassing) return null;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

/** Show the studio of whoever has the key. */
async function enter() {
  const usage = await call("GET", "usage"); // alone: a wrong key is refused once
  const { models } = await call("GET", "models");
  isAdmin = usage.scopes.includes("admin");
  showUsage(usage);
  showModels(models);
  showModelList(models, isAdmin, look);
  at("sign-in").hidden = true;
  at("studio").hidden = at("sign-out").hidden = false;
  await load();
  await look();
}

/** Look at everything that changes by itself. */
async function look() {
  try {
    const [status, usage, { models }] = await Promise.all([call("GET", "status"), call("GET", "usage"), call("GET", "models"), refresh()]);
    showStatus(status);
    showUsage(usage);
    showModels(models);
    showModelList(models, isAdmin, look);
  } catch (error) {
    if (!(error instanceof Problem)) throw error; // a refusal is shown by who listens
  }
}

/** @param {Event} event */
async function signIn(event) {
  event.preventDefault();
  const field = at("key");
  at("key-error").textContent = "";
  if (!field.value.trim()) {
    at("key-error").textContent = "Enter a key.";
    field.focus();
    return;
  }
  forget();
  keep(field.value.trim(), at("remember").checked);
  try {
    await enter();
    field.value = "";
    at("main").focus({ preventScroll: true });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (!error.isPassing) forget();
    ask(error.message);
  }
}

/** @param {string} why "" for no reason to tell */
function signOut(why) {
  forget();
  clear();
  at("studio").hidden = at("sign-out").hidden = at("usage").hidden = true;
  at("code-text").textContent = "";
  at("show-key").checked = false;
  ask(why);
}

/** Ask for a key. @param {string} why */
function ask(why) {
  at("sign-in").hidden = false;
  at("key-error").textContent = why;
  at("key").focus();
}

/** @param {Event} event */
async function submit(event) {
  event.preventDefault();
  const said = body();
  const button = at("submit");
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Sending…";
  showProblem(null);
  try {
    const headers = { ...terms(), "Idempotency-Key": attemptOf(JSON.stringify([said, terms()])) };
    add(await call("POST", "jobs", { body: said, headers }));
    attempt = { body: "", key: "" };
    at("gallery-title").scrollIntoView({ block: "nearest", behavior: "smooth" });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(error);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = "Make the video";
  }
}

/** Return the Idempotency-Key of a submit: the same as before while it is the same one. @param {string} text */
function attemptOf(text) {
  if (attempt.body !== text) {
    const random = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is hidden where the page is not on https
    attempt = { body: text, key: [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
  }
  return attempt.key;
}

start();

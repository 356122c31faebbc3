// This key's jobs, of every dialect: followed while they are made, kept up to date with what happens elsewhere.

import { Problem, call, follow } from "./api.js";
import { Card, confirmed, isOver } from "./card.js";
import { announce, at } from "./dom.js";

/** Jobs on a page of the list. */
const PAGE = 12;

/** Streams at a time: browsers open six connections to a host, and videos need some. The rest is looked at now and then. */
const MOST_STREAMS = 2;

/** @type {Map<string, Card>} */
const cards = new Map();

/** @type {Map<string, AbortController>} */
const streams = new Map();

/** Job after which older ones follow, null on the last page. @type {string | null} */
let older = null;

/** @type {(job: any) => void} */
let again = () => {};

/** @param {(job: any) => void} listener told which job is to be made again */
export function setUpGallery(listener) {
  again = listener;
  at("more-jobs").addEventListener("click", async () => {
    const page = await page_of(older);
    for (const job of page.jobs) put(job, false);
    at("gallery").lastElementChild?.focus();
  });
}

/** Show the newest page afresh. */
export async function load() {
  const page = await page_of(null);
  stop();
  cards.clear();
  at("gallery").replaceChildren();
  for (const job of page.jobs) put(job, false);
  at("empty").hidden = cards.size > 0;
  followSome();
}

/** Let go of all streams and cards. */
export function stop() {
  for (const stream of streams.values()) stream.abort();
  streams.clear();
}

export function clear() {
  stop();
  cards.clear();
  at("gallery").replaceChildren();
}

/** Show a job that was just made. @param {any} job */
export function add(job) {
  put(job, true);
  at("empty").hidden = true;
  followSome();
  announce("The video is in the queue.");
}

/** Look at what no stream tells: jobs beyond the followed ones, made or deleted elsewhere. */
export async function refresh() {
  const page = await call("GET", `jobs?limit=${PAGE}`);
  const listed = new Set(page.jobs.map((job) => job.id));
  const oldest = page.jobs.length ? page.jobs[page.jobs.length - 1].created_at : 0;
  for (const [id, card] of cards) {
    if (!listed.has(id) && (card.job.created_at > oldest || !page.has_more)) drop(id);
  }
  for (const job of page.jobs.toReversed ? page.jobs.toReversed() : [...page.jobs].reverse()) {
    const card = cards.get(job.id);
    if (!card) put(job, true);
    else if (!streams.has(job.id)) change(card, job);
  }
  at("empty").hidden = cards.size > 0;
  followSome();
}

/** @param {string | null} after */
async function page_of(after) {
  const page = await call("GET", `jobs?limit=${PAGE}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
  older = page.next;
  at("more-jobs").hidden = !page.has_more;
  return page;
}

/** @param {any} job @param {boolean} isNewest */
function put(job, isNewest) {
  if (cards.has(job.id)) return;
  const card = new Card(job, { again, cancel, remove });
  cards.set(job.id, card);
  if (isNewest) at("gallery").prepend(card.element);
  else at("gallery").append(card.element);
}

/** @param {Card} card @param {any} job */
function change(card, job) {
  const before = card.job.status;
  card.show(job);
  if (before !== job.status && isOver(job.status)) {
    announce({ succeeded: "A video is done.", failed: `A video failed: ${job.error?.message}`, cancelled: "The video was cancelled." }[job.status] || "");
  }
}

/** @param {string} id */
function drop(id) {
  streams.get(id)?.abort();
  streams.delete(id);
  cards.get(id)?.element.remove();
  cards.delete(id);
  at("empty").hidden = cards.size > 0;
}

/** Follow the unfinished jobs that come first, running ones above all. */
function followSome() {
  const unfinished = [...cards.values()].filter((card) => !isOver(card.job.status) && !streams.has(card.job.id));
  unfinished.sort((a, b) => Number(a.job.status === "queued") - Number(b.job.status === "queued") || a.job.created_at - b.job.created_at);
  for (const card of unfinished.slice(0, Math.max(0, MOST_STREAMS - streams.size))) {
    const { id } = card.job;
    const stream = new AbortController();
    streams.set(id, stream);
    const tell = (/** @type {string} */ event, /** @type {any} */ data) => {
      if (event === "progress") card.tell(data);
      else if (event === "end") change(card, data);
      else if (event === "gone") drop(id);
    };
    follow(id, tell, stream.signal).finally(() => {
      if (streams.get(id) === stream) streams.delete(id);
      if (!stream.signal.aborted) followSome();
    });
  }
}

/** @param {any} job */
async function cancel(job) {
  const card = cards.get(job.id);
  try {
    const ended = await call("POST", `jobs/${job.id}/cancel`);
    if (card) change(card, ended);
  } catch (error) {
    tellOf(job, error);
  }
}

/** @param {any} job */
async function remove(job) {
  if (!(await confirmed("Delete this video?", "Its files, links and prompt go for good."))) return;
  try {
    await call("DELETE", `jobs/${job.id}`);
    drop(job.id);
    announce("The video was deleted.");
    at("gallery-title").scrollIntoView({ block: "nearest" });
  } catch (error) {
    tellOf(job, error);
  }
}

/** @param {any} job @param {unknown} error */
function tellOf(job, error) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 404) drop(job.id); // deleted elsewhere
  else if (cards.has(job.id)) /** @type {Card} */ (cards.get(job.id)).error.textContent = error.message;
}

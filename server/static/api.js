// The native API, as docs/compatibility/native.md has it. Nothing else of the server is called.

import { key } from "./key.js";

const BASE = "polyreel/v1";

/** How long a stream that broke is left alone, milliseconds. */
const AGAIN_MS = 1000;

/** A refusal, or no answer at all (status 0). */
export class Problem extends Error {
  /** @param {number} status @param {string} detail @param {string} [code] @param {string} [field] */
  constructor(status, detail, code = "", field = "") {
    super(detail);
    this.status = status;
    this.code = code;
    this.field = field;
  }

  /** Whether the same request may well succeed later. */
  get isPassing() {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** Told of each answer: null for a good one. @type {(problem: Problem | null) => void} */
let heard = () => {};

/** @param {(problem: Problem | null) => void} listener */
export function listen(listener) {
  heard = listener;
}

/**
 * @param {string} method
 * @param {string} path below /polyreel/v1, "" for what is there itself
 * @param {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [more]
 * @returns {Promise<any>} the answer's JSON
 * @throws {Problem}
 */
export async function call(method, path, more = {}) {
  const response = await send(method, path, more);
  return response.status === 204 ? null : parsed(await response.text());
}

/**
 * @param {string} method
 * @param {string} path
 * @param {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} more
 * @returns {Promise<Response>}
 */
async function send(method, path, { body, headers = {}, signal }) {
  const sent = { ...headers };
  if (key()) sent.Authorization = `Bearer ${key()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path ? `${BASE}/${path}` : BASE, document.baseURI), {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const problem = new Problem(0, "The server does not answer.");
    heard(problem);
    throw problem;
  }
  if (response.ok) {
    heard(null);
    return response;
  }
  const problem = await problemOf(response);
  heard(problem);
  throw problem;
}

/**
 * JSON, with seeds that a number here cannot hold kept as texts: they are to come out as they went in.
 * @param {string} text
 */
function parsed(text) {
  const reviver = (/** @type {string} */ name, /** @type {any} */ value, /** @type {any} */ context) =>
    name.endsWith("seed") && typeof value === "number" && !Number.isSafeInteger(value) ? context?.source || value : value;
  return JSON.parse(text, /** @type {any} */ (reviver)); // its third argument is young
}

/** @param {Response} response @returns {Promise<Problem>} */
async function problemOf(response) {
  try {
    const told = await response.json();
    return new Problem(response.status, String(told.detail || told.error || response.statusText), told.code, told.field);
  } catch {
    return new Problem(response.status, `The server answered ${response.status}.`); // a proxy's own page
  }
}

/**
 * Follow a job until its end. Comes back by itself after a restart of the server, or of the network.
 * @param {string} id
 * @param {(event: string, data: any) => void} tell `progress`, `end` or `gone`, as the API calls them
 * @param {AbortSignal} signal
 */
export async function follow(id, tell, signal) {
  let last = "";
  while (!signal.aborted) {
    try {
      /** @type {Record<string, string>} */
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await send("GET", `jobs/${id}/events`, { headers, signal });
      if (response.status === 204 || !response.body) {
        tell("end", await call("GET", `jobs/${id}`, { signal }));
        return;
      }
      for await (const event of eventsOf(response.body)) {
        last = event.id || last;
        if (event.name === "server-restarting") break;
        tell(event.name, event.data);
        if (event.name === "end" || event.name === "gone") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 404) {
        tell("gone", { id });
        return;
      }
      // Whatever else it is may pass; where it is the key, whoever listens ends this.
      if (!(error instanceof Problem) && !(error instanceof TypeError)) throw error; // a TypeError: the stream broke
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

/**
 * @param {ReadableStream<any>} stream server-sent events
 * @returns {AsyncGenerator<{name: string, id: string, data: any}>}
 */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop() || "";
      for (const block of blocks) {
        const fields = { event: "", id: "", data: "" };
        for (const line of block.split("\n")) {
          const [, name, content] = /^(\w+): ?(.*)$/.exec(line) || [];
          if (name in fields) fields[name] += content;
        }
        if (fields.data) yield { name: fields.event, id: fields.id, data: parsed(fields.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

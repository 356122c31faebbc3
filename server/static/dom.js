// Elements from data. Text is only ever set as text, so nothing that a prompt holds becomes markup.

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] `onclick` and the like are listeners; false, null and undefined are left
 *   out, true is an attribute without a value.
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {any} the element; any, because its class follows from `tag`
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) {
    if (child !== null && child !== undefined && child !== false) element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/**
 * @param {string} id
 * @returns {any} the element of the page with this id; any, because its class follows from the page
 */
export function at(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no #${id}.`);
  return found;
}

/** Say something to screen readers. @param {string} text */
export function announce(text) {
  at("announce").textContent = text;
}

/** @param {number} count @param {string} noun @returns {string} "1 job", "2 jobs" */
export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {number} seconds @returns {string} "40 s", "3 min", "2 h" */
export function lasting(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** @param {number} bytes @returns {string} "1.5 MB" */
export function sized(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 10 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/**
 * Copy a text; also where the page is not served over https, for which browsers hide the clipboard.
 * @param {string} text
 */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = h("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// A place to drop, paste or choose a picture, and what is to be sent of it.

import { h, sized } from "./dom.js";

/** The server's own limit for one picture, bytes: docs/compatibility/native.md. */
const MOST_BYTES = 15_000_000;

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

export class DropZone {
  /**
   * @param {HTMLElement} element that becomes it
   * @param {string} id of its file field
   * @param {string} label what the picture is for
   * @param {() => void} changed
   */
  constructor(element, id, label, changed) {
    this.changed = changed;
    /** The picture as a data URL, "" for none. */
    this.value = "";
    this.input = h("input", { type: "file", id, accept: TYPES.join(","), "aria-describedby": `${id}-error` });
    this.image = h("img", { alt: `${label}, as chosen`, hidden: true });
    this.words = h("span", {}, label, h("small", {}, "drop or choose a picture"));
    this.remove = h("button", { type: "button", class: "small", hidden: true, "aria-label": `Remove: ${label}` }, "Remove");
    this.error = h("p", { id: `${id}-error`, class: "error", role: "alert" });
    element.replaceChildren(h("label", { for: id }, this.image, this.words), this.input, this.remove, this.error);
    this.input.addEventListener("change", () => this.take(this.input.files?.[0]));
    this.remove.addEventListener("click", () => {
      this.clear();
      this.input.focus();
    });
    for (const name of ["dragenter", "dragover"]) {
      element.addEventListener(name, (event) => {
        event.preventDefault();
        element.classList.add("over");
      });
    }
    for (const name of ["dragleave", "drop"]) element.addEventListener(name, () => element.classList.remove("over"));
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.take(/** @type {DragEvent} */ (event).dataTransfer?.files[0]);
    });
  }

  /** @param {File | undefined} file */
  async take(file) {
    if (!file) return;
    this.clear();
    if (!TYPES.includes(file.type)) {
      this.error.textContent = "Choose a PNG, JPEG, WebP, GIF or BMP file.";
    } else if (file.size > MOST_BYTES) {
      this.error.textContent = `The file has ${sized(file.size)}; at most ${sized(MOST_BYTES)} are taken.`;
    } else {
      this.value = await dataUrlOf(file);
      this.image.src = this.value;
      this.image.hidden = this.remove.hidden = false;
      this.words.hidden = true;
    }
    this.changed();
  }

  clear() {
    const had = this.value;
    this.value = this.error.textContent = this.input.value = "";
    this.image.removeAttribute("src");
    this.image.hidden = this.remove.hidden = true;
    this.words.hidden = false;
    if (had) this.changed();
  }
}

/** @param {File} file @returns {Promise<string>} */
function dataUrlOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

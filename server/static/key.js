// Where the API key is kept: for this tab, or on this device where its owner says so. Never in an address or a cookie.

const NAME = "polyreel-key";

/** For browsers that keep nothing. */
let forNow = "";

/** @returns {string} the key, "" for none */
export function key() {
  try {
    return sessionStorage.getItem(NAME) || localStorage.getItem(NAME) || forNow;
  } catch {
    return forNow;
  }
}

/** @param {string} value @param {boolean} isRemembered */
export function keep(value, isRemembered) {
  forNow = value;
  try {
    (isRemembered ? localStorage : sessionStorage).setItem(NAME, value);
  } catch {
    // it holds until the page is closed
  }
}

export function forget() {
  forNow = "";
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
  } catch {
    // there was none
  }
}

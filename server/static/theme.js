// Before the first paint, so no module: the colours that were chosen on this device, else those of the system.
(() => {
  const choices = ["auto", "light", "dark"];
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const signs = { auto: "◐", light: "☀", dark: "☾" };
  const kept = () => {
    try {
      return localStorage.getItem("polyreel-theme") || "auto";
    } catch {
      return "auto"; // a browser that keeps nothing
    }
  };
  const show = (/** @type {string} */ choice) => {
    document.documentElement.dataset.theme = choices.includes(choice) ? choice : "auto";
  };
  show(kept());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const tell = () => {
      const choice = document.documentElement.dataset.theme || "auto";
      button.textContent = signs[choice];
      button.setAttribute("aria-label", `Colours: ${names[choice]}`);
      button.title = `Colours: ${names[choice]}`;
    };
    tell();
    button.addEventListener("click", () => {
      const next = choices[(choices.indexOf(document.documentElement.dataset.theme || "auto") + 1) % choices.length];
      show(next);
      tell();
      try {
        localStorage.setItem("polyreel-theme", next);
      } catch {
        // it holds until the page is closed
      }
    });
  });
})();

/* Light or dark: as the system says, until the reader chooses. A classic script in <head>, so that no page flashes in the wrong colours. */
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    // Storage is switched off: the choice lasts for this page.
  }
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element) || !event.target.closest("[data-theme-toggle]")) return;
    const systemDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const dark = (root.dataset.theme ?? (systemDark ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // As above.
    }
    document.dispatchEvent(new CustomEvent("themechange"));
  });
})();

/* button[data-copy="#id"]: copies that element's text and says so. */
document.addEventListener("click", async (event) => {
  const button = event.target instanceof Element ? event.target.closest("[data-copy]") : null;
  if (!(button instanceof HTMLElement)) return;
  const source = document.querySelector(button.dataset.copy ?? "");
  if (!source) return;
  const label = button.getAttribute("aria-label") ?? "";
  try {
    await navigator.clipboard.writeText(source.textContent ?? "");
    button.classList.add("star-on");
    button.setAttribute("aria-label", "Copied");
  } catch {
    // Clipboard access needs https or localhost: select the text instead, for Ctrl+C.
    getSelection()?.selectAllChildren(source);
  }
  setTimeout(() => {
    button.classList.remove("star-on");
    button.setAttribute("aria-label", label);
  }, 1500);
});

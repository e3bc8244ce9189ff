/* form[data-quiet="names"]: sent without leaving the page, so that a playing sound goes on; the named fragments are drawn again. */
import { replaceFragments } from "./refresh.js";

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (event.defaultPrevented || !(form instanceof HTMLFormElement) || !form.hasAttribute("data-quiet")) return;
  event.preventDefault();
  const buttons = form.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form, event.submitter) });
    if (!response.ok) throw new Error(`${form.action} answered ${response.status}`);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    if (new URL(response.url).pathname === location.pathname) replaceFragments((form.getAttribute("data-quiet") ?? "").split(" "), fresh);
    else location.assign(response.url);
  } catch {
    // The plain way shows whatever is wrong.
    form.removeAttribute("data-quiet");
    form.submit();
  } finally {
    for (const button of buttons) button.disabled = false;
  }
});

/* [data-check]: asks the server what the run in the form would need, without leaving the page. */
import { replaceFragments } from "./refresh.js";

document.addEventListener("click", async (event) => {
  const button = event.target instanceof Element ? event.target.closest("[data-check]") : null;
  if (!(button instanceof HTMLButtonElement) || !button.form) return;
  event.preventDefault();
  const { form } = button;
  button.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form, button) });
    // 422 comes with the page too: it says which values have to be mended first.
    if (!response.ok && response.status !== 422) throw new Error(`${form.action} answered ${response.status}`);
    replaceFragments(["estimate"], new DOMParser().parseFromString(await response.text(), "text/html"));
  } catch {
    // The ordinary way says what is wrong.
    form.requestSubmit(button);
  } finally {
    button.disabled = false;
  }
});

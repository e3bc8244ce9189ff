/* [data-check]: asks the server what the run in the form would need, without leaving the page; again whenever a value has changed. */
import { replaceFragments } from "./refresh.js";

const WAIT_MS = 700;
const button = document.querySelector("[data-check]");
if (button instanceof HTMLButtonElement && button.form) attach(button, button.form);

/** @param {HTMLButtonElement} button @param {HTMLFormElement} form */
function attach(button, form) {
  let asked = 0;
  let timer = 0;

  /** @returns {Promise<Document | null>} the page with the answer; null when a newer question is on its way */
  async function ask() {
    const number = ++asked;
    // Set, not left to the button: one that is disabled adds nothing, and without it the run would be started.
    const question = new FormData(form);
    question.set(button.name, button.value);
    const response = await fetch(form.action, { method: "POST", body: question });
    if (!response.ok) throw new Error(`${form.action} answered ${response.status}`);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    if (number !== asked) return null;
    replaceFragments(["estimate"], fresh);
    return fresh;
  }

  async function check() {
    button.disabled = true;
    try {
      const fresh = await ask();
      if (fresh) mark(form, fresh);
    } catch {
      // The ordinary way says what is wrong.
      form.requestSubmit(button);
    } finally {
      button.disabled = false;
    }
  }

  const complete = () => ["dataset", "checkpoint"].every((name) => new FormData(form).get(name));

  function later() {
    clearTimeout(timer);
    // Nobody asked: what cannot be answered yet is left alone.
    if (complete()) timer = setTimeout(() => ask().catch(() => {}), WAIT_MS);
  }

  button.addEventListener("click", (event) => {
    event.preventDefault();
    check();
  });
  form.addEventListener("input", ({ target }) => {
    if (/** @type {HTMLInputElement} */ (target).name !== "force") later();
  });
  form.addEventListener("valueschange", later);
  form.addEventListener("click", ({ target }) => {
    const chosen = target instanceof Element ? target.closest("[data-suggestion]") : null;
    if (!chosen) return;
    form.dispatchEvent(new CustomEvent("fillvalues", { detail: JSON.parse(chosen.getAttribute("data-suggestion") ?? "{}") }));
    clearTimeout(timer);
    check();
  });
  later();
}

/** Show each value's fault beside it as the server does, and go to the first. @param {HTMLFormElement} form @param {Document} fresh */
function mark(form, fresh) {
  /** @type {HTMLElement | null} */
  let first = null;
  for (const box of form.querySelectorAll("[data-field]")) {
    const name = box.getAttribute("data-field") ?? "";
    const errors = [...fresh.querySelectorAll(`[data-field="${name}"] > p.error`)];
    for (const old of box.querySelectorAll(":scope > p.error")) old.remove();
    const input = box.querySelector("input, select, textarea");
    input?.toggleAttribute("aria-invalid", false);
    if (!errors.length) continue;
    const help = box.querySelector(".help, .limits");
    for (const error of errors) {
      const shown = document.importNode(error, true);
      help ? help.before(shown) : box.append(shown);
    }
    input?.setAttribute("aria-invalid", "true");
    box.closest("details")?.setAttribute("open", "");
    if (!first && input instanceof HTMLElement) first = input;
  }
  first?.focus();
}

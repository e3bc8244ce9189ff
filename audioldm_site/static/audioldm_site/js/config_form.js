/* form[data-config-form]: presets and a checkpoint's recommendations fill the fields, a die rolls seeds, and the command keeps up. */
import { commandLine } from "./command_line.js";

const MAX_SEED = 2 ** 32;
const form = document.querySelector("[data-config-form]");
if (form instanceof HTMLFormElement) attach(form);

/** @param {HTMLFormElement} form */
function attach(form) {
  // Not form.dataset: a field of that name hides it.
  const command = form.getAttribute("data-command") ?? "";
  const choices = JSON.parse(document.getElementById("config-choices")?.textContent ?? "{}");
  const { defaults, presets = {}, recommended = {} } = choices;
  /** @type {Set<string>} fields that the reader changed by hand: recommendations leave them alone */
  const touched = new Set();
  const field = (/** @type {string} */ name) => /** @type {HTMLInputElement | null} */ (form.elements.namedItem(name));

  /** @param {Record<string, any>} values */
  function fill(values) {
    for (const [name, value] of Object.entries(values)) {
      const input = field(name);
      if (!input) continue;
      if (input.type === "checkbox") input.checked = Boolean(value);
      else input.value = Array.isArray(value) ? value.join("\n") : String(value);
    }
    warn();
    showCommand();
    form.dispatchEvent(new CustomEvent("valueschange"));
  }

  /** @returns {Record<string, any>} */
  function values() {
    return Object.fromEntries(
      Object.keys(defaults).map((name) => {
        const input = field(name);
        return [name, input?.type === "checkbox" ? input.checked : (input?.value ?? defaults[name])];
      }),
    );
  }

  function showCommand() {
    const output = document.getElementById("command-line");
    if (!output) return;
    const chosen = (/** @type {string} */ name) => {
      const select = /** @type {any} */ (field(name));
      return select instanceof HTMLSelectElement && select.value ? (select.selectedOptions[0].textContent ?? "…") : "…";
    };
    const hasDataset = command !== "generate";
    /** @type {[string, string][]} */
    const parts = hasDataset
      ? [["--dataset", chosen("dataset")], ["--checkpoint", chosen("checkpoint")]]
      : [["prompt", field("prompt")?.value || "…"], ["--checkpoint", chosen("checkpoint")]];
    output.textContent = commandLine(command, parts, values(), defaults, hasDataset ? [] : ["prompt"]);
  }

  /** Values that are allowed and probably not meant are said before the form is sent, in the server's words. */
  function warn() {
    for (const element of form.querySelectorAll("[data-warn-above]")) {
      const box = element.closest("[data-field]");
      const name = box?.getAttribute("data-field") ?? "";
      const value = field(name)?.value ?? "";
      const limit = element.getAttribute("data-warn-above");
      const text = element.querySelector("span");
      const help = box?.querySelector(".help")?.textContent ?? "";
      /** @type {HTMLElement} */ (element).hidden = value === "" || !(Number(value) > Number(limit));
      if (text) text.textContent = `${name} (${value}) is above ${Number(limit)}: ${help}`;
    }
  }

  const recommendation = () => recommended[field("checkpoint")?.value ?? ""] ?? {};

  form.addEventListener("click", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const card = target?.closest("[data-preset]");
    if (card instanceof HTMLElement && card.dataset.preset) {
      event.preventDefault();
      fill({ ...defaults, ...recommendation(), ...presets[card.dataset.preset] });
      for (const other of form.querySelectorAll("[data-preset]")) other.removeAttribute("aria-current");
      card.setAttribute("aria-current", "true");
    }
    if (target?.closest("[data-dice]")) {
      fill({ seed: crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED });
      touched.add("seed");
    }
  });

  form.addEventListener("input", ({ target }) => {
    const { name } = /** @type {HTMLInputElement} */ (target);
    touched.add(name);
    if (name === "checkpoint") {
      const fresh = { ...defaults, ...recommendation() };
      const suited = Object.keys(defaults).filter((key) => !touched.has(key) && Object.values(recommended).some((values) => key in values));
      fill(Object.fromEntries(suited.map((key) => [key, fresh[key]])));
    }
    for (const card of form.querySelectorAll("[data-preset]")) {
      if (name in defaults) card.removeAttribute("aria-current");
    }
    warn();
    showCommand();
  });

  form.addEventListener("fillvalues", (event) => {
    const chosen = /** @type {CustomEvent} */ (event).detail;
    fill(chosen);
    for (const name of Object.keys(chosen)) touched.add(name);
  });

  // Ctrl+Enter in a text sends the form, as in any prompt box.
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

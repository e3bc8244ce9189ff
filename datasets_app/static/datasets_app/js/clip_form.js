/* form[data-clip]: saves a clip where it stands, a select or box at once and a caption when it is left; without JavaScript its button does. */

document.addEventListener("input", (event) => {
  formOf(event)?.classList.add("is-changed");
});

document.addEventListener("change", (event) => {
  const form = formOf(event);
  if (form) save(form);
});

document.addEventListener("submit", (event) => {
  const form = formOf(event);
  if (!form) return;
  event.preventDefault();
  save(form);
});

document.addEventListener("keydown", (event) => {
  // Enter saves: captions are one line, and Shift+Enter is of no use in them.
  if (event.key !== "Enter" || event.isComposing || !(event.target instanceof HTMLTextAreaElement)) return;
  const form = formOf(event);
  if (!form) return;
  event.preventDefault();
  event.target.blur();
});

/** @param {Event} event @returns {HTMLFormElement | null} */
function formOf(event) {
  return event.target instanceof Element ? event.target.closest("form[data-clip]") : null;
}

/**
 * Saves run one after another, so that the last change wins.
 * @type {WeakMap<HTMLFormElement, Promise<void>>}
 */
const running = new WeakMap();

/** @param {HTMLFormElement} form */
function save(form) {
  running.set(form, (running.get(form) ?? Promise.resolve()).then(() => send(form)));
}

/** @param {HTMLFormElement} form */
async function send(form) {
  const body = new FormData(form);
  show(form, "Saving", false);
  try {
    const response = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } });
    if (response.redirected) throw new Error("You are logged out");
    const answer = response.headers.get("Content-Type")?.includes("json") ? await response.json() : {};
    if (!response.ok) throw new Error(answer.detail ?? `The server answered ${response.status}`);
    apply(form, answer, String(body.get("caption") ?? ""));
    show(form, "Saved", false);
  } catch (error) {
    show(form, `Not saved: ${error instanceof Error ? error.message : error}`, true);
  }
}

/**
 * @param {HTMLFormElement} form
 * @param {{caption: string, split: string, included: boolean, flags: {code: string, label: string}[]}} clip
 * @param {string} sent the caption that was saved; one that has been typed on meanwhile is left alone
 */
function apply(form, clip, sent) {
  const caption = /** @type {HTMLTextAreaElement} */ (form.elements.namedItem("caption"));
  const untouched = caption.value === sent;
  if (untouched && caption.value !== clip.caption) caption.value = clip.caption;
  form.classList.toggle("is-changed", !untouched);
  /** @type {HTMLInputElement} */ (form.querySelector("[type=checkbox][name=included]")).checked = clip.included;
  form.closest(".clip")?.classList.toggle("clip-unused", !clip.included || !clip.caption);
  form.querySelector("[data-clip-flags]")?.replaceChildren(...clip.flags.map(({ label }) => tag(label)));
}

/** @param {string} label */
function tag(label) {
  const element = document.createElement("span");
  element.className = "tag tag-warn";
  element.textContent = label;
  return element;
}

/** @param {HTMLFormElement} form @param {string} words @param {boolean} failed */
function show(form, words, failed) {
  form.classList.toggle("is-failed", failed);
  if (failed) form.classList.add("is-changed");
  const state = form.querySelector("[data-clip-state]");
  if (state) state.textContent = words;
}
